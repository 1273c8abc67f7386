#!/usr/bin/env bash
# The script of the same name under scripts/, where LLaVA's users look for it.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../../../scripts/v1_5/train/finetune_lora.sh" "$@"
