"""What a tower takes, known without making it. Nothing here imports torch."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from llava.config import build, read_yaml
from llava.model.multimodal_encoder.known import towers
from llava.model.multimodal_encoder.spec import TowerSpec

USUAL_MLP = (4, 2)
"""Width of a block's MLP in that of a token, and its matrices."""


@dataclass(frozen=True)
class Cost:
    """What a tower takes."""

    parameters: int
    """Those that are kept."""
    flops: float
    """Of one image, 2 per multiplication and addition."""


@dataclass(frozen=True)
class Counted:
    """FLOPs of a diffusion tower, counted with torch's FlopCounterMode at several sizes."""

    id: str
    parameters: int
    compat: list[str]
    """Behaviours that they hold for."""
    gflop: dict[str, list[float]]
    """Side of the input, pixels -> what runs once an image, and for each draw of noise."""

    def at(self, size: int) -> tuple[float, float]:
        """FLOPs (once an image, for each draw) at any size.

        Convolutions take as the area does and attention as its square, so three sizes give the
        polynomial in the area.
        """
        areas = [int(side) ** 2 for side in self.gflop]
        once, drawn = zip(*self.gflop.values(), strict=True)
        return _through(areas, once, size**2) * 1e9, _through(areas, drawn, size**2) * 1e9


@dataclass(frozen=True)
class CostFacts:
    """`costs.yaml` beside this file."""

    vision_transformers: list[str]
    """Families that the formula is right for."""
    mlp: dict[str, list[int]] = field(default_factory=dict)
    """Id -> width of a block's MLP and its matrices, where they are not the usual."""
    diffusion: list[Counted] = field(default_factory=list)


@functools.cache
def facts() -> CostFacts:
    """What is known of towers' costs."""
    path = Path(__file__).with_name("costs.yaml")
    return build(CostFacts, read_yaml(path), path.name)


def transformer_cost(spec: TowerSpec) -> Cost:
    """Of a vision transformer up to the block that is read.

    A block has 4 dim^2 parameters of attention and those of its MLP; each takes 2 FLOPs a token,
    and attention itself 4 dim for every pair of tokens.
    """
    width, matrices = facts().mlp.get(spec.id, (USUAL_MLP[0] * spec.dim, USUAL_MLP[1]))
    block = 4 * spec.dim**2 + matrices * width * spec.dim
    embedding = 3 * spec.patch**2 * spec.dim
    patches = spec.grid[0] * spec.grid[1]
    tokens = patches + spec.class_token + spec.registers
    attention = 4.0 * tokens**2 * spec.dim
    flops = spec.block * (2.0 * block * tokens + attention) + 2.0 * embedding * patches
    return Cost(spec.block * block + embedding, flops)


def known_cost(spec: TowerSpec) -> Cost | None:
    """What a tower of this spec takes; None where only making it would tell."""
    if spec.family in facts().vision_transformers:
        return transformer_cost(spec)
    usual = towers().get(spec.id)
    for entry in facts().diffusion:
        same = usual is not None and all(
            getattr(spec, name) == getattr(usual, name)
            for name in ("dim", "patch", "depth", "up_ft_index")
        )
        if entry.id == spec.id and same and spec.compat in entry.compat:
            once, drawn = entry.at(spec.size)
            return Cost(entry.parameters, once + spec.ensemble_size * drawn)
    return None


def _through(xs: list[int], ys: tuple[float, ...], x: float) -> float:
    """The polynomial through the points, at x (Lagrange)."""
    total = 0.0
    for i, (own, y) in enumerate(zip(xs, ys, strict=True)):
        for j, other in enumerate(xs):
            if j != i:
                y *= (x - other) / (own - other)
        total += y
    return total
