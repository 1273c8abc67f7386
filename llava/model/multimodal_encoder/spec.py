"""What a vision tower is, as data: a spec names everything that its features depend on.

Nothing here imports torch. A family's facts stand in one YAML file under `families/`.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from llava.config import to_plain

Select = Literal["patch", "cls_patch", "cls"]
SELECTS: tuple[str, ...] = ("patch", "cls_patch", "cls")

WHERE_FROM = ("id", "weights", "digest", "gated", "depth", "flexible")
"""Fields that no feature depends on, once weights and size are named (`TowerSpec.hash`)."""


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """One vision tower: which weights, what it sees, which block is read, which tokens are kept."""

    id: str
    """Hub id, or the path of a local folder."""
    family: str
    size: int
    """Side of the square input, pixels."""
    patch: int
    """Side of the input square that one token stands for, pixels: the grid is size // patch."""
    dim: int
    """Width of a token."""
    depth: int
    """Blocks of the whole encoder; those after `layer` are neither kept nor run."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["crop", "squash"]
    """The processor's own rule: shortest edge to `resize_to` and a centre crop, or squash."""
    resize_to: int = 0
    """Shortest edge before the centre crop, pixels; 0 means `size`."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    layer: int = -2
    """Index into the hidden states, 0 being the embeddings; -2 is what LLaVA reads."""
    select: Select = "patch"
    class_token: bool = True
    registers: int = 0
    """Register tokens between the class token and the patches; never selected."""
    flexible: bool = False
    """Takes any size that `patch` divides, so a combination may choose it."""
    position_resize: Literal["", "transformers-4", "transformers-5"] = ""
    """How a position table is resized: released checkpoints were trained with 4's form."""
    gated: bool = False
    """The hub asks for consent before a download."""
    up_ft_index: int | None = None
    """Diffusion: the block that is read."""
    t: int | None = None
    """Diffusion: time step of the noise."""
    prompt: str | None = None
    ensemble_size: int | None = None
    """Diffusion: noise draws whose features are averaged."""
    seed: int | None = None
    """Diffusion: of the noise, with the pixels' own hash."""
    compat: str | None = None
    """Diffusion: `reference` or `clean`."""
    options: dict[str, str | int | float | bool] = field(default_factory=dict, hash=False)
    """What only this family knows."""
    weights: str = ""
    """Where the weights are read from when that is not `id`."""
    digest: str = ""
    """SHA-256 over the files of a local folder; it stands for the id, so a folder may move."""

    def __post_init__(self):
        # Plain values that come back from a file as they went in, or hashes would not.
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"{name}: expected three numbers, got {values}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std: expected numbers above 0, got {self.std}")
        whole = {k: int(v) for k, v in self.options.items() if _whole(v)}
        object.__setattr__(self, "options", {**self.options, **whole})
        for name in ("size", "patch", "dim", "depth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.size < self.patch:
            raise ValueError(f"size: {self.size} px is less than one patch of {self.patch} px")
        if self.flexible and self.size % self.patch:
            raise ValueError(
                f"size: {self.id} takes multiples of {self.patch} px, got {self.size}; the nearest "
                f"is {max(1, round(self.size / self.patch)) * self.patch}"
            )
        if self.select not in SELECTS:
            raise ValueError(f"select: expected {', '.join(SELECTS)}, got '{self.select}'")
        if self.select != "patch" and not self.class_token:
            raise ValueError(
                f"select: {self.id} has no class token, so '{self.select}' has nothing to read; "
                f"take 'patch'"
            )
        if not -self.depth - 1 <= self.layer <= self.depth:
            raise ValueError(
                f"layer: {self.id} has hidden states 0 to {self.depth} (or -1 to "
                f"{-self.depth - 1}), got {self.layer}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return (self.size // self.patch, self.size // self.patch)

    @property
    def tokens(self) -> int:
        """Tokens that the tower gives for one image."""
        rows, columns = self.grid
        return {"patch": rows * columns, "cls_patch": rows * columns + 1, "cls": 1}[self.select]

    @property
    def block(self) -> int:
        """Index of the hidden state that is read, 0 to depth."""
        return self.layer if self.layer >= 0 else self.depth + 1 + self.layer

    def at(self, size: int) -> "TowerSpec":
        """The same tower at another input size; the shortest edge before the crop scales along."""
        resize_to = round(self.resize_to * size / self.size) if self.resize_to else 0
        return dataclasses.replace(self, size=size, resize_to=resize_to)

    def hash(self) -> str:
        """64 hex digits over everything that the features depend on; fields left out are not in."""
        plain = {
            name: value
            for name, value in to_plain(self).items()
            if name not in WHERE_FROM and value is not None and value != {}
        }
        plain["layer"] = self.block
        plain["resize_to"] = self.resize_to or self.size
        plain["weights"] = self.digest or self.weights or self.id
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


@dataclass(frozen=True)
class Family:
    """Towers that one class builds. A package adds its own through `llava.vision_towers`."""

    name: str
    tower: str
    """`module:Class`, a VisionTower; imported when one is built."""
    summary: str
    needs: list[str] = field(default_factory=list)
    """Requirements, e.g. `timm>=1.0`."""
    install: str = ""
    """What to type where one of them is missing."""
    model_types: list[str] = field(default_factory=list)
    """`model_type` (or diffusers `_class_name`) of configs that this family reads."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Spec fields of every tower of the family, known ones and those read from a config."""
    towers: list[TowerSpec] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    """Short name -> id, or id@size."""
