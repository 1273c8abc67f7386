#!/usr/bin/env bash
# MMMU of a finetuned model, through lmms-eval; inputs are those of paper8.sh.
#
#   RUN=runs/stage2 bash scripts/v1_5/eval/mmmu.sh [FLAG VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate mmmu_val "$@"
