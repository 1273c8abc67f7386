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
COMPATS = ("reference", "clean")
VAE_SAMPLES = ("sample", "mode")

WHERE_FROM = ("id", "weights", "digest", "gated", "depth", "flexible", "taps", "step")
"""Fields that no feature depends on, once weights, size and block are named (`TowerSpec.hash`)."""

LAST_STEP = {"ddpm": 999, "flow": 1000}
"""The last time step of each noise process: ddpm counts 1,000 steps from 0, flow is t / 1000."""


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
    """Index into the hidden states, 0 being the embeddings; -2 is what LLaVA reads. Of a diffusion
    model it follows `up_ft_index`."""
    select: Select = "patch"
    class_token: bool = True
    registers: int = 0
    """Register tokens between the class token and the patches; never selected."""
    flexible: bool = False
    """Takes any size that `patch` (or `step`) divides, so a combination may choose it."""
    step: int | None = None
    """Sizes are multiples of this many pixels, where that is less than `patch`; what the last patch
    of a row lacks is padded inside of the encoder."""
    position_resize: Literal["", "transformers-4", "transformers-5"] = ""
    """How a position table is resized: released checkpoints were trained with 4's form."""
    gated: bool = False
    """The hub asks for consent before a download."""
    up_ft_index: int | None = None
    """Diffusion: the block that is read, counted from 0; given as -1, it is the last."""
    taps: tuple[tuple[int, int], ...] | None = None
    """Diffusion: (pixels per token, width) of every block, where they differ (U-Nets); `patch` and
    `dim` follow `up_ft_index` then."""
    fold: int | None = None
    """Diffusion: tokens per side that are joined into one; `patch` and `dim` are after that."""
    process: Literal["ddpm", "flow"] | None = None
    """Diffusion: how noise is mixed in, variance preserving or on a straight line."""
    t: int | None = None
    """Diffusion: time step of the noise."""
    prompt: str | None = None
    """Diffusion: text condition; None where a model takes none."""
    ensemble_size: int | None = None
    """Diffusion: noise draws whose features are averaged; draw k is that of seed + k."""
    seed: int | None = None
    """Diffusion: of the noise, with the pixels' own hash."""
    vae_sample: Literal["sample", "mode"] | None = None
    """Diffusion: whether latents are drawn from the VAE's posterior or are its mean."""
    compat: Literal["reference", "clean"] | None = None
    """Diffusion: as the published code computes, or as the models were trained."""
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
        if self.up_ft_index is not None:
            self._settle_diffusion()
        for name in ("size", "patch", "dim", "depth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.size < self.patch:
            raise ValueError(f"size: {self.size} px is less than one patch of {self.patch} px")
        unit = self.step or self.patch
        if self.flexible and self.size % unit:
            raise ValueError(
                f"size: {self.id} takes multiples of {unit} px, got {self.size}; the nearest "
                f"is {max(1, round(self.size / unit)) * unit}"
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

    def _settle_diffusion(self) -> None:
        """What follows from the block that is read; ValueError for what cannot be computed."""
        if not -self.depth <= self.up_ft_index < self.depth:
            raise ValueError(
                f"up_ft_index: {self.id} has blocks 0 to {self.depth - 1} (or -1 to "
                f"{-self.depth}), got {self.up_ft_index}"
            )
        index = self.up_ft_index % self.depth
        object.__setattr__(self, "up_ft_index", index)
        object.__setattr__(self, "layer", index + 1)
        if self.taps is not None:
            patch, dim = self.taps[index]
            object.__setattr__(self, "patch", patch)
            object.__setattr__(self, "dim", dim)
        if not 0 <= self.t <= LAST_STEP[self.process]:
            raise ValueError(
                f"t: {self.id} has time steps 0 to {LAST_STEP[self.process]}, got {self.t}"
            )
        if self.ensemble_size < 1:
            raise ValueError(f"ensemble_size: expected 1 or more draws, got {self.ensemble_size}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: expected 0 to {2**31 - 1}, got {self.seed}")
        if self.compat == "reference":
            self._check_reference()

    def _check_reference(self) -> None:
        """ValueError for what the published code computes without any use."""
        if self.process == "flow" and self.t > 1:
            raise ValueError(
                f"t: compat 'reference' mixes {self.t} * latent {1 - self.t:+} * noise for "
                f"{self.id}, which is no image; take t 1 (the clean latent), or compat 'clean'"
            )
        if self.fold and self.fold > 1 and self.ensemble_size > 1:
            raise ValueError(
                f"ensemble_size: compat 'reference' puts the draws of {self.id} side by side as "
                "channels, which no projector takes; take ensemble_size 1, or compat 'clean', "
                "which averages them"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        side = self.size // self.patch if self.step is None else -(-self.size // self.patch)
        return (side, side)

    @property
    def tokens(self) -> int:
        """Tokens that the tower gives for one image."""
        rows, columns = self.grid
        return {"patch": rows * columns, "cls_patch": rows * columns + 1, "cls": 1}[self.select]

    @property
    def depends_on_dtype(self) -> bool:
        """Whether features differ from dtype to dtype by more than rounding.

        The published code mixes noise in the tower's dtype, and bfloat16 rounds that of early steps
        away. Its flow matching takes the clean latent or noise alone, with nothing to round.
        """
        return self.process == "ddpm" and self.compat == "reference"

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
    dual: str = ""
    """`module:Class`, a DualEncoder: image and text halves together, where weights have both."""
