# What the evaluation scripts share: inputs, the number of GPUs, the command. Sourced, not run.
# Every input is an environment variable; flags behind a script's name are passed on and win.

source "$(dirname "${BASH_SOURCE[0]}")/../train/common.sh"

# take_run: takes LLaVA's CKPT for RUN, and sets PROCESSES to the GPUs of this node, or those on a CPU
take_run() {
  RUN="${RUN:-${CKPT:-}}"
  need RUN
  GPUS="${GPUS:-$(count_gpus)}"
  PROCESSES="$GPUS"
  [ "$GPUS" -gt 0 ] || PROCESSES="${PROCESSES_ON_CPU:-1}"
}

# require COMMAND: it is on the PATH
require() {
  command -v "$1" > /dev/null || {
    echo "$(basename "$0"): no $1 on the PATH; activate the environment, e.g." \
      "source .venv/bin/activate" >&2
    exit 1
  }
}

# evaluate TASKS FLAGS...: `law evaluate` on all GPUs of this node
evaluate() {
  local more=()
  case "${2:-}" in -h | --help) usage ;; esac
  take_run
  require law
  [ -z "${OUT:-}" ] || more+=(--out "$OUT")
  [ -z "${RESULTS:-}" ] || more+=(--results "$RESULTS")
  [ -z "${BATCH:-}" ] || more+=(--batch_size "$BATCH")
  [ -z "${LIMIT:-}" ] || more+=(--limit "$LIMIT")
  [ -z "${EVAL_PYTHON:-}" ] || more+=(--python "$EVAL_PYTHON")
  exec law evaluate --run "$RUN" --tasks "$1" --processes "$PROCESSES" "${more[@]}" "${@:2}"
}
