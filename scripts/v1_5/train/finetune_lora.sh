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
export ZERO="${ZERO:-$ROOT/scripts/zero3.json}"
exec bash "$ROOT/scripts/v1_5/train/finetune.sh" \
  --lora_enable True \
  --lora_r 128 \
  --lora_alpha 256 \
  --learning_rate 2e-4 \
  --mm_projector_lr 2e-5 \
  "$@"
