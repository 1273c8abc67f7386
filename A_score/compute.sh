#!/usr/bin/env bash
# A score as likelihood: the stage-1 command with a trained projector; nothing is updated.
#
#   MODEL=lmsys/vicuna-7b-v1.5 DATA=blip_laion_cc_sbu_558k.json IMAGES=images \
#   TOWER=openai/clip-vit-large-patch14-336 PROJECTOR=runs/stage1/mm_projector.bin \
#   OUTPUT=runs/a_score bash A_score/compute.sh [FLAG VALUE ...]
#
# Prints the mean over caption tokens of the first 100 records with an image, in nats; lower is better
# aligned. --results results.csv adds a row for the policy. The number depends neither on GPUS nor on
# PER_DEVICE.
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/scripts/v1_5/train"
source "$scripts/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need MODEL DATA IMAGES TOWER PROJECTOR OUTPUT
PER_DEVICE="${PER_DEVICE:-10}" GPUS="${GPUS:-$(count_gpus)}" ZERO=none
processes="$GPUS"
[ "$GPUS" -gt 0 ] || processes="${PROCESSES_ON_CPU:-1}"
GLOBAL_BATCH=$((PER_DEVICE * processes * ${NNODES:-1}))
export ZERO GLOBAL_BATCH PER_DEVICE GPUS
exec bash "$scripts/pretrain.sh" --a_score True --pretrain_mm_mlp_adapter "$PROJECTOR" "$@"
