#!/usr/bin/env bash
# The paper's eight benchmarks of a finetuned model, through lmms-eval. A second call goes on.
#
#   RUN=runs/stage2 RESULTS=results.csv bash scripts/v1_5/eval/paper8.sh [FLAG VALUE ...]
#
# Optional: OUT (RUN/eval), GPUS (all), BATCH (8), LIMIT (documents of each), EVAL_PYTHON (interpreter of
# another environment, that has lmms-eval). Without a GPU it runs on the CPU, in PROCESSES_ON_CPU (1).
# Flags are those of `law evaluate --help`; --ocr gives TextVQA's questions OCR tokens.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate paper8 "$@"
