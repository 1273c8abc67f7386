#!/usr/bin/env bash
# Trains a head on a frozen tower. SPARC: patches grouped for each text token, turned by their places.
#
#   TOWER=openai/clip-vit-large-patch14-336 DATA=llava_v1_5_mix665k.json IMAGES=images \
#   OUTPUT=runs/head_sparc bash scripts/ablation/head_sparc.sh [FLAG VALUE ...]
#
# Optional: GPUS (all). Flags are those of `law a-score head --help`; DATA may be several files,
# joined by ','.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/head.sh"

launch_head sparc "$@"
