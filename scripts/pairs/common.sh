# What the scripts of pair benchmarks share: who is scored, and where results go. Sourced, not run.
# Every input is an environment variable; flags behind a script's name are passed on.

source "$(dirname "${BASH_SOURCE[0]}")/../v1_5/eval/common.sh"

OUT="${OUT:-results/pairs}"

# take_one: sets SCORER, WHO and WHICH by the one of RUN, MODEL, HEAD and EMBEDDER that is set
take_one() {
  local given=0
  [ -z "${MODEL:-}" ] || { given=$((given + 1)) SCORER=clip WHO="$MODEL" WHICH=(--model "$MODEL"); }
  [ -z "${RUN:-}" ] || { given=$((given + 1)) SCORER=vqa WHO="$RUN" WHICH=(--model-path "$RUN"); }
  [ -z "${HEAD:-}" ] || { given=$((given + 1)) SCORER=head WHO="$HEAD" WHICH=(--head "$HEAD"); }
  [ -z "${EMBEDDER:-}" ] || {
    given=$((given + 1)) SCORER=embed WHO="$EMBEDDER" WHICH=(--model-path "$EMBEDDER")
  }
  if [ "$given" -ne 1 ]; then
    echo "$(basename "$0"): set one of RUN, MODEL, HEAD and EMBEDDER; set are $given" >&2
    usage
  fi
}

# result CONFIG: the file of one model's result; no name begins with a dot
result() {
  local name="${WHO//\//-}"
  while [[ "$name" == [.-]* ]]; do name="${name:1}"; done
  echo "$OUT/$1/$name-$SCORER.json"
}

# score CONFIG FLAGS...: `law pairs run` of configs/pairs/CONFIG.yaml; what is there is not scored again
score() {
  local more=()
  require law
  [ -z "${RESULTS:-}" ] || more+=(--results "$RESULTS")
  [ -z "${LIMIT:-}" ] || more+=(--limit "$LIMIT")
  law pairs run --config "${CONFIGS:-$ROOT/configs/pairs}/$1.yaml" --scorer "$SCORER" "${WHICH[@]}" \
    --out "$(result "$1")" "${more[@]}" "${@:2}"
}
