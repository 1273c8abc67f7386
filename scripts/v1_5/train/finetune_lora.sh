#!/usr/bin/env bash
# Stage 2 with LoRA: trains the projector, and adapters on the language model's linear layers.
#
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=llava_v1_5_mix665k.json IMAGES=images \
#   TOWER=openai/clip-vit-large-patch14-336 PROJECTOR=runs/stage1/mm_projector.bin \
#   OUTPUT=runs/stage2-lora bash scripts/v1_5/train/finetune_lora.sh [FLAG VALUE ...]
#
# Optional: GPUS (all), PER_DEVICE (up to 16), GLOBAL_BATCH (128), ZERO (scripts/zero3.json, none: plain
# DDP), NNODES NODE_RANK MASTER_ADDR MASTER_PORT. Without a GPU it runs
# on the CPU. Flags are those of `law train --help`; --bits 4 trains on a quantised model
# (QLoRA, needs bitsandbytes and ZERO=none).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need MODEL DATA IMAGES TOWER PROJECTOR OUTPUT
ZERO="${ZERO:-$ROOT/scripts/zero3.json}"
settle 128 16
launch \
  --model_name_or_path "$MODEL" \
  --version v1 \
  --data_path "$DATA" \
  --image_folder "$IMAGES" \
  --vision_tower "$TOWER" \
  --pretrain_mm_mlp_adapter "$PROJECTOR" \
  --lora_enable True \
  --lora_r 128 \
  --lora_alpha 256 \
  --mm_projector_lr 2e-5 \
  --mm_projector_type mlp2x_gelu \
  --mm_vision_select_layer -2 \
  --mm_use_im_start_end False \
  --mm_use_im_patch_token False \
  --group_by_modality_length True \
  --output_dir "$OUTPUT" \
  --num_train_epochs 1 \
  --save_strategy steps \
  --save_steps 1000 \
  --save_total_limit 1 \
  --learning_rate 2e-4 \
  --weight_decay 0. \
  --warmup_ratio 0.03 \
  --lr_scheduler_type cosine \
  --logging_steps 1 \
  --model_max_length 2048 \
  --gradient_checkpointing True \
  --dataloader_num_workers 4 \
  "$@"
