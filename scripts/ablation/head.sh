# What head_pacl.sh, head_pacl_rope.sh and head_sparc.sh share: `launch_head CONFIG FLAGS...`
# Sourced, not run.
source "$(dirname "${BASH_SOURCE[0]}")/../v1_5/train/common.sh"

launch_head() {
  case "${2:-}" in -h | --help) usage ;; esac
  need TOWER DATA IMAGES OUTPUT
  local how=(law) gpus="${GPUS:-$(count_gpus)}"
  # -- because torchrun takes flags that begin like its own
  [ "$gpus" -lt 2 ] || how=(torchrun --standalone --nproc_per_node "$gpus" -m -- llava)
  exec "${how[@]}" a-score head --config "$ROOT/configs/A_score/$1.yaml" \
    --tower "$TOWER" --data "$DATA" --images "$IMAGES" --out "$OUTPUT" "${@:2}"
}
