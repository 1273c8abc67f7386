"""Where features come from: the reference's `<image>_<name>.pt` files, or the feature store.

Letters in shapes: C channels, n side of the grid, N = n * n cells row by row, M = N + 1 (a zero
column behind the cells, which matching.py needs).
"""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional

from C_score.datasets.pairs import Picture
from llava.errors import LawError, UsageError
from llava.features import mirrored_key
from llava.model.multimodal_encoder.diffusion.options import suffix

EPSILON = 1e-10
"""Added to a feature's length before dividing by it (the reference's normalisation)."""

FLIPPED = "_flip"
"""Behind the name: features of the mirrored image."""


@dataclass(frozen=True)
class Features(ABC):
    """One tower's features of a set of images; a subclass says how one image's are read."""

    name: str
    """As the user wrote it."""
    representation: str
    """What results tables call this tower."""
    n: int
    """Side of the grid."""
    dim: int
    spec_hash: str
    """Of the spec behind stored features; empty for files from elsewhere."""
    origin: str
    """`tower` or `paper` as the store knows it, `external` for files."""

    @property
    def sized(self) -> str:
        """The name with the size and the settings that the registry must be told to make these."""
        return self.representation

    @property
    def dtype(self) -> str:
        """What they were computed in, where that changes more than rounding; else empty."""
        return ""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where all of the features are; two towers with one place are the same."""

    @abstractmethod
    def where(self, picture: Picture) -> str:
        """What holds the picture's features, for messages."""

    @abstractmethod
    def missing(self, pictures: Iterable[Picture]) -> list[Picture]:
        """The pictures whose features are not there."""

    @abstractmethod
    def flipped(self) -> "Features":
        """The same tower's features of the mirrored images."""

    @abstractmethod
    def raw(self, picture: Picture) -> torch.Tensor:
        """[C, n, n] of any floating type, as stored."""

    def unit(self, picture: Picture, n: int) -> torch.Tensor:
        """float32 [C, M], every cell's features at length 1, on an n x n grid.

        Another grid than the features' own is reached by bilinear interpolation upwards and area
        means downwards, before the lengths are taken.
        """
        map_Cnn = self.raw(picture).float()
        if n != self.n:
            map_Cnn = resample(map_Cnn, n)
        cells_CN = map_Cnn.flatten(1)
        length_N = cells_CN.square().sum(0).sqrt_()
        if not torch.isfinite(length_N).all():
            bad = int((~torch.isfinite(length_N)).sum())
            raise LawError(
                f"{self.where(picture)}: {bad} of {n * n} cells hold NaN or infinite features; "
                f"extract this image anew{write_hint(self.name)}"
            )
        if not length_N.any():
            raise LawError(
                f"{self.where(picture)}: all features are zero; extract this image anew"
                f"{write_hint(self.name)}"
            )
        unit_CM = torch.empty(len(cells_CN), n * n + 1)
        torch.div(cells_CN, length_N + EPSILON, out=unit_CM[:, :-1])
        unit_CM[:, -1] = 0
        return unit_CM


def resample(map_Cnn: torch.Tensor, n: int) -> torch.Tensor:
    """[C, n, n] by bilinear interpolation (pixel centres) upwards, by area means downwards."""
    if n > map_Cnn.shape[-1]:
        bilinear = {"mode": "bilinear", "align_corners": False}
        return functional.interpolate(map_Cnn[None], size=(n, n), **bilinear)[0]
    return functional.adaptive_avg_pool2d(map_Cnn[None], (n, n))[0]


@dataclass(frozen=True)
class FileFeatures(Features):
    """`<root>/<category>/<image>_<name>.pt`, a tensor [1, C, n, n] each, as the reference keeps."""

    root: Path

    @property
    def place(self) -> str:
        """The files as a pattern."""
        return str(self.root / f"*_{self.name}.pt")

    def path(self, picture: Picture) -> Path:
        """The picture's file."""
        return self.root / f"{picture.name}_{self.name}.pt"

    def where(self, picture: Picture) -> str:
        """The file's path."""
        return str(self.path(picture))

    def missing(self, pictures: Iterable[Picture]) -> list[Picture]:
        """Those without a file."""
        return [picture for picture in pictures if not self.path(picture).is_file()]

    def flipped(self) -> "FileFeatures":
        """Files with `_flip` behind the name."""
        return replace(self, name=self.name + FLIPPED)

    def raw(self, picture: Picture) -> torch.Tensor:
        """[C, n, n]; LawError where the file is damaged or of another shape than the first."""
        path = self.path(picture)
        map_Cnn = load_map(path, self.name)
        if map_Cnn.shape != (self.dim, self.n, self.n):
            raise LawError(
                f"{path}: features {_shape(map_Cnn)}, while the first image's are [1, {self.dim}, "
                f"{self.n}, {self.n}]; all must be of one tower and size{write_hint(self.name)}"
            )
        return map_Cnn


def load_map(path: Path, name: str) -> torch.Tensor:
    """[C, n, n] from a file that holds [1, C, n, n]; nothing in the file is ever run."""
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LawError(f"{path}: no such feature file{write_hint(name)}") from None
    except pickle.UnpicklingError as error:
        raise LawError(
            f"{path}: not a plain tensor ({_first_line(error)}); pickled objects are never loaded, "
            f"since they can run code; expected a tensor [1, C, n, n] from torch.save"
            f"{write_hint(name)}"
        ) from error
    except Exception as error:  # a damaged archive raises almost anything
        raise LawError(
            f"{path}: truncated or damaged ({_first_line(error)}); delete it and extract anew"
            f"{write_hint(name)}"
        ) from error
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise LawError(f"{path}: holds {found}; expected a floating-point tensor [1, C, n, n]")
    if tensor.ndim != 4 or len(tensor) != 1 or tensor.shape[2] != tensor.shape[3]:
        raise LawError(
            f"{path}: features {list(tensor.shape)}; expected [1, C, n, n], channels first on a "
            f"square grid"
        )
    if not tensor.numel():
        raise LawError(f"{path}: features {list(tensor.shape)} are empty; expected [1, C, n, n]")
    return tensor[0]


@dataclass(frozen=True)
class StoreFeatures(Features):
    """One space of a feature store: the features of one spec in one frame."""

    space: object
    """llava.features.Space"""
    keys: dict[str, str]
    """Picture name -> key of its image in the store."""

    @property
    def sized(self) -> str:
        """`id@size:option=value` of the stored spec."""
        spec = self.space.spec
        return f"{spec.id}@{spec.size}{suffix(spec)}"

    @property
    def dtype(self) -> str:
        """Of diffusion towers that compute as the published code does."""
        return self.space.dtype if self.space.spec.depends_on_dtype else ""

    @property
    def place(self) -> str:
        """The folder of the space."""
        return str(self.space.folder)

    def where(self, picture: Picture) -> str:
        """The space's folder and the image."""
        return f"{self.place}, {picture.path}"

    def missing(self, pictures: Iterable[Picture]) -> list[Picture]:
        """Those that the space does not hold."""
        return [p for p in pictures if self.keys.get(p.name) not in self.space]

    def flipped(self) -> "StoreFeatures":
        """The same space at the keys of the mirrored images."""
        keys = {name: mirrored_key(key) for name, key in self.keys.items()}
        return replace(self, name=self.name + FLIPPED, keys=keys)

    def raw(self, picture: Picture) -> torch.Tensor:
        """[C, n, n] of the stored patch tokens."""
        tokens_NC = self.space.read(self.keys[picture.name])
        expected = (self.n * self.n, self.dim)
        if tuple(tokens_NC.shape) != expected:
            raise LawError(
                f"{self.where(picture)}: {list(tokens_NC.shape)} tokens x width, expected "
                f"{list(expected)}"
            )
        return tokens_NC.T.unflatten(1, (self.n, self.n))


def common_grid(towers: Sequence[Features], asked: int | None = None) -> int:
    """The side of the grid that all towers are read on.

    Raises UsageError naming two towers whose grids differ, unless `asked` says what to resample to.
    """
    if asked is not None:
        if asked < 1:
            raise UsageError(f"--resample {asked}: expected the side of a grid, 1 or more")
        return asked
    first = towers[0]
    for tower in towers:
        if tower.n != first.n:
            raise UsageError(
                f"{first.name} has a grid of {first.n} x {first.n}, {tower.name} one of "
                f"{tower.n} x {tower.n}; features are compared cell by cell, so take towers of one "
                f"grid, or say --resample {max(tower.n, first.n)}"
            )
    return first.n


def write_hint(name: str) -> str:
    """What to type for features under `name`, as the end of a message."""
    if name.endswith(FLIPPED):
        return f"; expected features of the mirrored images, under the images' names and {FLIPPED}"
    return (
        f"; to write them: `python extract_feature.py --input_path IMAGES --output_path FEATURES "
        f"--feature {name} --pt` in C_score/"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _shape(map_Cnn: torch.Tensor) -> str:
    return str([1, *map_Cnn.shape])
