#!/usr/bin/env bash
# Stage 2 on the class token alone, with LoRA as the published ablation: adapters are trained by
# scripts/v1_5/train/finetune_lora.sh, the whole language model with LORA=no.
#
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=llava_v1_5_mix665k.json IMAGES=images \
#   TOWER=openai/clip-vit-large-patch14-336 PROJECTOR=runs/cls_stage1/mm_projector.bin \
#   OUTPUT=runs/cls_stage2-lora bash scripts/ablation/cls_stage2.sh [FLAG VALUE ...]
#
# The same variables as there. SELECT=patch trains the control, which differs in nothing else.
set -euo pipefail
case "${LORA:-yes}" in
  yes) script=finetune_lora.sh ;;
  no) script=finetune.sh ;;
  *) echo "$(basename "$0"): LORA is yes or no, not ${LORA}" >&2 && exit 2 ;;
esac
exec bash "$(dirname "${BASH_SOURCE[0]}")/../v1_5/train/$script" \
  --mm_vision_select_feature "${SELECT:-cls}" \
  --image_aspect_ratio pad \
  "$@"
