#!/usr/bin/env bash
# lmms-eval's own command on a finetuned model, with its released class `llava`: the paper's eight, all
# results at the end. `law evaluate --model llava` is the same class, task by task.
#
#   RUN=runs/stage2 bash scripts/v1_5/eval/lmms_eval.sh [FLAG VALUE ...]
#
# Optional: MODEL (llava; law_llava), CONV (vicuna_v1), TASKS, OUT (RUN/lmms_eval), GPUS (all), BATCH (1),
# LIMIT. MMBench's task writes a table besides: pip install openpyxl.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
take_run
require accelerate
PAPER8=mmbench_en_dev_static,mme,ok_vqa_val2014,seedbench_img
PAPER8=$PAPER8,mmmu_val,textvqa_val,vizwiz_vqa_val,scienceqa_img
ARGS="pretrained=$RUN,conv_template=${CONV:-vicuna_v1}"
more=()
if [ "$GPUS" -eq 0 ]; then
  ARGS="$ARGS,device_map=auto"
  more=(--device cpu)
fi
[ -z "${LIMIT:-}" ] || more+=(--limit "$LIMIT")
exec accelerate launch --num_processes="$PROCESSES" -m lmms_eval \
  --model "${MODEL:-llava}" \
  --model_args "$ARGS" \
  --tasks "${TASKS:-$PAPER8}" \
  --include_path "$ROOT/llava/eval/tasks" \
  --batch_size "${BATCH:-1}" \
  --log_samples \
  --output_path "${OUT:-$RUN/lmms_eval}" \
  "${more[@]}" "$@"
