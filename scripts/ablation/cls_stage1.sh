#!/usr/bin/env bash
# Stage 1 on the class token alone: scripts/v1_5/train/pretrain.sh with one visual token per image.
#
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=blip_laion_cc_sbu_558k.json IMAGES=images \
#   TOWER=openai/clip-vit-large-patch14-336 OUTPUT=runs/cls_stage1 \
#   bash scripts/ablation/cls_stage1.sh [FLAG VALUE ...]
#
# The same variables as there. SELECT=patch trains the control, which differs in nothing else.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../v1_5/train/pretrain.sh" \
  --mm_vision_select_feature "${SELECT:-cls}" \
  "$@"
