"""Training of stage 1 (projector) and stage 2 (projector and language model)."""

import os

import torch

if not torch.accelerator.is_available():  # DeepSpeed else warns of it, on stdout
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
