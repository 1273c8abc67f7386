#!/usr/bin/env bash
# How alike towers find the two images of every pair: no text is needed, so any tower and any combination
# can be asked. Each tower runs once, however many combinations it is in.
#
#   MODELS="clip336 dinov2@336 clip336.dinov2@336" bash scripts/pairs/agreement.sh [FLAG VALUE ...]
#
# Optional: CONFIG (whatsup), RESULTS (a results table), OUT (results/pairs), LIMIT,
# CONFIGS (configs/pairs).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need MODELS
require law
CONFIG="${CONFIG:-whatsup}"
more=()
[ -z "${RESULTS:-}" ] || more+=(--results "$RESULTS")
[ -z "${LIMIT:-}" ] || more+=(--limit "$LIMIT")
read -ra models <<< "$MODELS"
exec law pairs agree --config "${CONFIGS:-$ROOT/configs/pairs}/$CONFIG.yaml" \
  --model "${models[@]}" --out "$OUT/$CONFIG/agreement.json" "${more[@]}" "$@"
