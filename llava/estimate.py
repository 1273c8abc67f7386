"""What a run will need: memory of a GPU, GPU hours, disk. Estimates, with what they assume.

Bytes of activations follow Korthikanti et al., Reducing Activation Recomputation in Large
Transformer Models (2022), section 4: 34 bytes per token, layer and hidden unit in 16 bits where
attention keeps no scores; 2 with gradient checkpointing, and one layer's 34 while it is recomputed.
FLOPs are 2 per parameter and token forward, 2 for gradients of activations, 2 for gradients of
weights, and 2 more where checkpointing computes the forward pass again.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml
from llava.errors import UsageError, unknown_name

ADAM = 8
"""Bytes of a parameter's two moments in float32."""
LAYER_BYTES = 34
INPUT_BYTES = 2
UTILISATION = 0.4
"""Share of the peak that a run is assumed to reach; measured runs lie between 0.3 and 0.5."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's peak and memory."""

    name: str
    tflops: float
    """Dense bf16, TFLOP/s."""
    memory: float
    """GB."""


@functools.cache
def gpus() -> dict[str, Gpu]:
    """Every known GPU, by name."""
    entries = read_yaml(Path(__file__).with_name("gpus.yaml"))
    return {g.name: g for g in (build(Gpu, entry, "gpus.yaml") for entry in entries)}


def gpu(name: str) -> Gpu:
    """The GPU of that name; UsageError with the nearest one."""
    if name not in gpus():
        begun = [known for known in gpus() if known.lower().startswith(name.lower())]
        if len(begun) > 1:
            raise UsageError(f"GPU '{name}': expected one of {', '.join(begun)}")
        raise UsageError(unknown_name("GPU", name, gpus()))
    return gpus()[name]


@dataclass(frozen=True)
class Sizes:
    """What is trained, and on what."""

    frozen: int
    """Parameters of language model and projector without gradients."""
    trained: int
    tower: int
    """Parameters of the towers, as far as they are kept."""
    layers: int
    hidden: int
    vocabulary: int
    tower_flops: float = 0.0
    """FLOPs of one image's way through the towers."""

    @property
    def parameters(self) -> int:
        """Of language model and projector."""
        return self.frozen + self.trained


@dataclass(frozen=True)
class Way:
    """How it is trained."""

    batch: int
    """Sequences of a GPU's micro-batch."""
    length: int
    """Tokens of a sequence, at most."""
    processes: int = 1
    zero: int = 0
    """DeepSpeed's stage: 0 (none), 2 or 3."""
    offload_weights: bool = False
    """Weights in the memory of the host (ZeRO-3)."""
    offload_optimizer: bool = False
    """The optimizer's states in the memory of the host."""
    half: bool = True
    """Whether bf16 or fp16 is computed in."""
    frozen_bytes: int = 2
    """Of a frozen weight, which may be wider than what is computed in."""
    checkpointing: bool = True
    supervised: float = 0.5
    """Share of positions with a label, at most, whose logits exist."""


def memory(sizes: Sizes, way: Way) -> dict[str, float]:
    """Bytes on one GPU, by what takes them."""
    compute = 2 if way.half else 4
    # without DeepSpeed what is trained is float32 itself; DeepSpeed has float32 copies besides
    trained_bytes = compute if way.zero else 4
    weights = sizes.frozen * way.frozen_bytes + sizes.trained * trained_bytes
    gradients = sizes.trained * trained_bytes
    optimizer = sizes.trained * (ADAM + (4 if way.zero and way.half else 0))
    shards = way.processes if way.zero >= 2 else 1
    tokens = way.batch * way.length
    layer_units = tokens * sizes.hidden * compute / 2
    kept = INPUT_BYTES if way.checkpointing else LAYER_BYTES
    activations = layer_units * (kept * sizes.layers + (LAYER_BYTES if way.checkpointing else 0))
    return {
        "weights": 0 if way.offload_weights else weights / (shards if way.zero == 3 else 1),
        "gradients": gradients / shards,
        "optimizer": 0 if way.offload_optimizer else optimizer / shards,
        "tower": sizes.tower * compute,
        "activations": activations,
        "logits": 2 * tokens * way.supervised * sizes.vocabulary * compute,
    }


def training_flops(sizes: Sizes, tokens: int, images: int, checkpointing: bool) -> float:
    """FLOPs of training over `tokens` positions and `images` tower passes."""
    through = 2 + 2 + (2 if checkpointing else 0)
    return tokens * (through * sizes.parameters + 2 * sizes.trained) + images * sizes.tower_flops


def gpu_hours(flops: float, card: Gpu, utilisation: float = UTILISATION) -> float:
    """Hours of one GPU, at a share of its peak."""
    return flops / (card.tflops * 1e12 * utilisation) / 3600


def disk(sizes: Sizes, way: Way, partial: bool, keep: int | None, saves: int) -> float:
    """Bytes of all checkpoints of a run at their most, and of what it leaves.

    `partial`: checkpoints hold what is trained alone. `keep` of `saves` checkpoints stay; one more
    exists while it is written.
    """
    trained = 2 if way.zero and way.half else 4
    weights = sizes.trained * trained + (0 if partial else sizes.frozen * (2 if way.half else 4))
    optimizer = sizes.trained * (ADAM + (4 + trained if way.zero else 0))
    at_once = saves if not keep else min(saves, keep + 1)
    return at_once * (weights + optimizer) + weights
