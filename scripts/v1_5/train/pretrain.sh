#!/usr/bin/env bash
# Stage 1: trains the projector on captions; tower and language model are frozen.
#
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=blip_laion_cc_sbu_558k.json IMAGES=images \
#   TOWER=openai/clip-vit-large-patch14-336 OUTPUT=runs/stage1 \
#   bash scripts/v1_5/train/pretrain.sh [FLAG VALUE ...]
#
# Optional: GPUS (all), PER_DEVICE (up to 32), GLOBAL_BATCH (256), ZERO (scripts/zero2.json, none: plain
# DDP), NNODES NODE_RANK MASTER_ADDR MASTER_PORT. Without a GPU it runs on the CPU. Flags are those of
# `law train --help`; --check looks at everything and trains nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need MODEL DATA IMAGES TOWER OUTPUT
ZERO="${ZERO:-$ROOT/scripts/zero2.json}"
settle 256 32
launch \
  --model_name_or_path "$MODEL" \
  --version plain \
  --data_path "$DATA" \
  --image_folder "$IMAGES" \
  --vision_tower "$TOWER" \
  --mm_projector_type mlp2x_gelu \
  --tune_mm_mlp_adapter True \
  --mm_vision_select_layer -2 \
  --mm_use_im_start_end False \
  --mm_use_im_patch_token False \
  --output_dir "$OUTPUT" \
  --num_train_epochs 1 \
  --save_strategy steps \
  --save_steps 1000 \
  --save_total_limit 1 \
  --learning_rate 1e-3 \
  --weight_decay 0. \
  --warmup_ratio 0.03 \
  --lr_scheduler_type cosine \
  --logging_steps 1 \
  --model_max_length 2048 \
  --gradient_checkpointing True \
  --dataloader_num_workers 4 \
  "$@"
