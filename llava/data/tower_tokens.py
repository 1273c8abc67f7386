"""A frozen tower's tokens of image files: run whenever they are asked for, or out of a store.

Letters in shapes: B images, N tokens, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from llava.data.images import ImageError
from llava.data.stored import StoredFeatures
from llava.errors import LawError, UsageError, unknown_name
from llava.extraction import decode, extract
from llava.features import DTYPES, FeatureStore, image_key
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.frames import frame_of
from llava.model.multimodal_encoder.registry import Representation


@dataclass(frozen=True)
class Options:
    """How towers are run."""

    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 16
    """Images that a tower takes at once."""
    workers: int = 2
    """Threads that read images."""

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UsageError(unknown_name("dtype", self.dtype, DTYPES))
        if self.batch_size < 1:
            raise UsageError(f"a tower takes 1 image or more at once, got {self.batch_size}")


class Tokens(ABC):
    """Tokens of image files."""

    @abstractmethod
    def __call__(self, images: Sequence[Path]) -> Tensor:
        """float32 [B, N, C]; LawError naming an image that cannot be read."""


class LiveTokens(Tokens):
    """The tower is loaded once and runs anew each time."""

    def __init__(self, representation: Representation, frame: str, options: Options):
        self.options = options
        self.tower = build_tower(representation, frame, DTYPES[options.dtype], options.device)
        self.pool = ThreadPoolExecutor(max(1, options.workers))

    def __call__(self, images: Sequence[Path]) -> Tensor:
        """float32 [B, N, C], on the tower's device."""
        size = self.options.batch_size
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        return torch.cat([self._run(part) for part in parts])

    def _run(self, images: Sequence[Path]) -> Tensor:
        pixels = self.tower.preprocess(list(self.pool.map(_picture, images)))
        return self.tower(pixels.to(self.options.device)).float()


class StoredTokens(Tokens):
    """Out of a feature store, which is filled first."""

    def __init__(self, features: StoredFeatures):
        self.features = features
        self.keys: dict[Path, str] = {}

    def __call__(self, images: Sequence[Path]) -> Tensor:
        """float32 [B, N, C], on the CPU."""
        for path in images:
            if path not in self.keys:
                self.keys[path] = image_key(path)
        return torch.stack([self.features.of_key(self.keys[path]) for path in images]).float()


def fill(
    store: Path,
    representation: Representation,
    frame: str,
    images: Sequence[Path],
    options: Options,
) -> None:
    """Runs the towers over this process's share of the images that the store lacks."""
    extract(
        representation,
        images,
        FeatureStore(store),
        frame=frame,
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )


def default_frame(representation: Representation) -> str:
    """A tower's own, and for several the one in which all see the same."""
    return frame_of("square", "own" if len(representation.parts) == 1 else "shared")


def _picture(path: Path) -> Image.Image:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise ImageError(str(path), f"cannot be read: {error.strerror or error}") from None
    except LawError as error:
        raise ImageError(str(path), str(error)) from None
