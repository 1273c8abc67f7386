#!/usr/bin/env bash
# OKVQA of a finetuned model, through lmms-eval; inputs are those of paper8.sh.
#
#   RUN=runs/stage2 bash scripts/v1_5/eval/okvqa.sh [FLAG VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate ok_vqa_val2014 "$@"
