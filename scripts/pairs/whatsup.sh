#!/usr/bin/env bash
# What'sUp A and B, COCO-spatial and GQA-spatial of one model: the likelihood of yes (RUN), the cosine of
# a CLIP (MODEL), of a trained head (HEAD), or of a LLaVA's embeddings (EMBEDDER).
#
#   RUN=runs/stage2 bash scripts/pairs/whatsup.sh [FLAG VALUE ...]
#
# Optional: RESULTS (a results table), OUT (results/pairs), LIMIT, CONFIGS (configs/pairs).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
take_one
score whatsup "$@"
