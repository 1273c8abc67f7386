#!/usr/bin/env bash
# MMVP and MMVP-VLM of one model. A LLaVA (RUN, or EMBEDDER) is asked MMVP's questions; a CLIP (MODEL) or
# a head (HEAD) takes statements, which have a file of their own: configs/pairs/mmvp_statements.yaml.
#
#   RUN=runs/stage2 bash scripts/pairs/mmvp.sh [FLAG VALUE ...]
#
# Optional: RESULTS (a results table), OUT (results/pairs), LIMIT, CONFIGS (configs/pairs).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
take_one
case "$SCORER" in
  vqa | embed) score mmvp "$@" ;;
  *) score mmvp_statements "$@" ;;
esac
score mmvp_vlm "$@"
