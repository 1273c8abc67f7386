#!/usr/bin/env bash
# MMBench of a finetuned model, through lmms-eval; inputs are those of paper8.sh.
#
#   RUN=runs/stage2 bash scripts/v1_5/eval/mmbench.sh [FLAG VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate mmbench_en_dev "$@"
