#!/usr/bin/env bash
# A LLaVA as a contrastive encoder: trains adapters as VLM2Vec does (DoRA of rank 8, 1,000 updates of 256
# pairs, temperature .02), and scores What'sUp with and without the question beside the image.
#
#   RUN=runs/stage2 DATA=llava_v1_5_mix665k.json IMAGES=images OUTPUT=runs/embedder \
#   bash scripts/ablation/embedder.sh [FLAG VALUE ...]
#
# Optional: GPUS (all), GLOBAL_BATCH (256), CHUNK (1; pairs in memory at once), CONFIG (whatsup),
# CONFIGS (configs/pairs), OUT (results/pairs), RESULTS (a results table), LIMIT. Flags are those of
# `law pairs train-embedder --help`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../pairs/common.sh"

case "${1:-}" in -h | --help) usage ;; esac
need RUN DATA IMAGES OUTPUT
require law
require torchrun
GPUS="${GPUS:-$(count_gpus)}"
PROCESSES="$GPUS"
[ "$GPUS" -gt 0 ] || PROCESSES="${PROCESSES_ON_CPU:-1}"
torchrun --standalone --nproc_per_node "$PROCESSES" -m llava pairs train-embedder \
  --model_name_or_path "$RUN" --data_path "$DATA" --image_folder "$IMAGES" --output_dir "$OUTPUT" \
  --dora --gradient_checkpointing --batch_size "${GLOBAL_BATCH:-256}" --chunk_size "${CHUNK:-1}" "$@"
more=()
[ -z "${LIMIT:-}" ] || more+=(--limit "$LIMIT")
[ -z "${RESULTS:-}" ] || more+=(--results "$RESULTS")
name="$(tr '/' '-' <<< "${OUTPUT#/}")"
config="${CONFIG:-whatsup}"
for question in "" --no-question; do
  law pairs run --config "${CONFIGS:-$ROOT/configs/pairs}/$config.yaml" --scorer embed \
    --model-path "$OUTPUT" --out "$OUT/$config/$name-embed${question#-}.json" ${question:+"$question"} \
    "${more[@]}"
done
