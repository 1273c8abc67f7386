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
  --version plain \
  --tune_mm_mlp_adapter True \
  --learning_rate 1e-3 \
  "$@"
