#!/usr/bin/env bash
# ScienceQA (Img) of a finetuned model, through lmms-eval; inputs are those of paper8.sh.
#
#   RUN=runs/stage2 bash scripts/v1_5/eval/sqa.sh [FLAG VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate scienceqa_img "$@"
