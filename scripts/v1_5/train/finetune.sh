#!/usr/bin/env bash
# Stage 2: trains projector and language model on conversations; the tower is frozen.
#
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=llava_v1_5_mix665k.json IMAGES=images \
#   TOWER=openai/clip-vit-large-patch14-336 PROJECTOR=runs/stage1/mm_projector.bin \
#   OUTPUT=runs/stage2 bash scripts/v1_5/train/finetune.sh [FLAG VALUE ...]
#
# Optional: GPUS (all), PER_DEVICE (up to 16), GLOBAL_BATCH (128), ZERO (scripts/zero2.json; zero3.json and
# zero3_offload.json need less memory), NNODES NODE_RANK MASTER_ADDR MASTER_PORT. Without a GPU it runs
# on the CPU. Flags are those of `law train --help`; --packing True fills sequences.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need MODEL DATA IMAGES TOWER PROJECTOR OUTPUT
ZERO="${ZERO:-$ROOT/scripts/zero2.json}"
settle 128 16
launch \
  --version v1 \
  --pretrain_mm_mlp_adapter "$PROJECTOR" \
  --group_by_modality_length True \
  --learning_rate 2e-5 \
  "$@"
