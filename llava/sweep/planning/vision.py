"""What a plan knows of a sweep's representations, and of towers that are not there yet."""

import functools
from dataclasses import dataclass

from llava import catalog
from llava.model.multimodal_encoder.cost import Cost, known_cost
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_encoder.spec import TowerSpec


@dataclass(frozen=True)
class Unresolved:
    """A representation whose towers a step of `prepare` will make; its cost cannot be known."""

    name: str
    parts: tuple[str, ...]


Candidate = Representation | Unresolved


@dataclass(frozen=True)
class Tower:
    """One tower at one size."""

    name: str
    spec: TowerSpec | None = None
    cost: Cost | None = None

    @property
    def flops(self) -> float:
        """Of an image; 0 where that is not known."""
        return self.cost.flops if self.cost else 0.0

    @property
    def parameters(self) -> int:
        """Those that are kept; 0 where that is not known."""
        return self.cost.parameters if self.cost else 0

    @property
    def floats(self) -> int:
        """Numbers that an image's tokens are; 0 where that is not known."""
        return self.spec.tokens * self.spec.dim if self.spec else 0


@dataclass(frozen=True)
class Vision:
    """A representation: its towers, and what the projector takes."""

    name: str
    towers: tuple[Tower, ...]
    tokens: int = 0
    """Of an image; 0 where that is not known."""
    dim: int = 0

    @property
    def shown(self) -> str:
        """The name as people say it."""
        if self.name in catalog.representations():
            return catalog.display_representation(self.name)
        return "+".join(_shown(tower) for tower in self.towers)

    @property
    def flops(self) -> float:
        """Of an image's way through the towers whose cost is known."""
        return sum(tower.flops for tower in self.towers)

    @property
    def parameters(self) -> int:
        """Of the towers whose cost is known."""
        return sum(tower.parameters for tower in self.towers)


def vision_of(candidate: Candidate) -> Vision:
    """What a plan knows of a representation."""
    if isinstance(candidate, Unresolved):
        return Vision(candidate.name, tuple(Tower(part) for part in candidate.parts))
    towers = tuple(_tower(spec) for spec in candidate.parts)
    return Vision(candidate.name, towers, candidate.tokens, candidate.dim)


@functools.cache
def _tower(spec: TowerSpec) -> Tower:
    """Once for each of the towers that a thousand combinations share."""
    name = f"{spec.id}@{spec.size}" if spec.flexible else spec.id
    return Tower(name, spec, known_cost(spec))


def distinct_towers(visions: list[Vision]) -> list[Tower]:
    """Every tower once; one at two sizes is two, since its tokens differ."""
    found: dict[object, Tower] = {}
    for vision in visions:
        for tower in vision.towers:
            found.setdefault(tower.spec or tower.name, tower)
    return list(found.values())


def _shown(tower: Tower) -> str:
    plain, at, size = tower.name.partition("@")
    usual = catalog.display_representation(plain)
    return usual.rpartition("/")[2] + (at + size if usual == plain else "")
