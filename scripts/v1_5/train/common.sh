# What the training scripts share: inputs, the number of GPUs, the global batch, the launcher.
# Sourced, not run. Every input is an environment variable; flags behind a script's name are passed
# on and win over the script's own.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

# usage: prints the head of the calling script, from its second line to the first that is no comment
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

# need NAME...: every variable is set
need() {
  local name missing=
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing="$missing $name"
  done
  if [ -n "$missing" ]; then
    echo "$(basename "$0"): not set:$missing" >&2
    usage
  fi
}

count_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c . || true
  elif command -v nvidia-smi > /dev/null 2>&1; then
    nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true
  else
    echo 0
  fi
}

# settle GLOBAL_BATCH PER_DEVICE: sets PROCESSES, PER_DEVICE and ACCUMULATION, so that a step sees
# GLOBAL_BATCH samples on any number of processes
settle() {
  local global="${GLOBAL_BATCH:-$1}" together
  GPUS="${GPUS:-$(count_gpus)}"
  NNODES="${NNODES:-1}"
  PROCESSES="$GPUS"
  [ "$GPUS" -gt 0 ] || PROCESSES="${PROCESSES_ON_CPU:-1}"
  if [ -z "${PER_DEVICE:-}" ]; then  # at most its default; less where many share the batch
    PER_DEVICE=$((global / (PROCESSES * NNODES)))
    [ "$PER_DEVICE" -lt "$2" ] || PER_DEVICE="$2"
    [ "$PER_DEVICE" -gt 0 ] || PER_DEVICE=1
  fi
  together=$((PER_DEVICE * PROCESSES * NNODES))
  if [ "$together" -gt "$global" ] || [ $((global % together)) -ne 0 ]; then
    echo "$(basename "$0"): a global batch of $global is no multiple of $PER_DEVICE (PER_DEVICE)" \
      "x $PROCESSES processes x $NNODES nodes; set PER_DEVICE or GLOBAL_BATCH so that it is" >&2
    exit 2
  fi
  ACCUMULATION=$((global / together))
}

# launch FLAGS...: train.py on all GPUs of this node, or on the CPU where there is none, with the
# flags that all stages share
launch() {
  local how=(--nproc_per_node "$PROCESSES") machine=()
  if [ "$NNODES" -gt 1 ]; then
    need NODE_RANK MASTER_ADDR
    how+=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR"
      --master_port "${MASTER_PORT:-25001}")
  else
    how+=(--standalone)
  fi
  if [ "$GPUS" -gt 0 ]; then
    machine=(--bf16 True --tf32 True)
    [ "${ZERO:-none}" = none ] || machine+=(--deepspeed "$ZERO")
  fi
  command -v torchrun > /dev/null || {
    echo "$(basename "$0"): no torchrun on the PATH; activate the environment, e.g." \
      "source .venv/bin/activate" >&2
    exit 1
  }
  exec torchrun "${how[@]}" "$ROOT/llava/train/train.py" "${machine[@]}" \
    --per_device_train_batch_size "$PER_DEVICE" \
    --gradient_accumulation_steps "$ACCUMULATION" \
    --model_name_or_path "$MODEL" \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --vision_tower "$TOWER" \
    --output_dir "$OUTPUT" \
    --mm_projector_type mlp2x_gelu \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --model_max_length 2048 \
    --num_train_epochs 1 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --lr_scheduler_type cosine \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --logging_steps 1 \
    --save_strategy steps \
    --save_steps 1000 \
    --save_total_limit 1 \
    "$@"
}
