#!/usr/bin/env bash
# The cosines of several CLIPs and SigLIPs on one set of benchmarks, and their table.
#
#   MODELS="clip336 clip224 siglip" bash scripts/pairs/towers.sh [FLAG VALUE ...]
#
# Optional: CONFIG (whatsup), RESULTS (a results table), OUT (results/pairs), LIMIT,
# CONFIGS (configs/pairs).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need MODELS
CONFIG="${CONFIG:-whatsup}"
files=()
for MODEL in $MODELS; do
  take_one
  score "$CONFIG" "$@" > /dev/null
  files+=("$(result "$CONFIG")")
done
law pairs table "${files[@]}"
