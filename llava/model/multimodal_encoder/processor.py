"""From PIL images to the pixels of every tower of a representation; holds facts, no weights.

This is what a loaded model gives as its image processor and what a data set runs in its workers.
Geometry says whether several towers see the same part of an image (`shared`) or each what its own
processor cuts out (`own`, as released checkpoints were trained); one tower alone is always `own`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from llava.errors import UsageError
from llava.model.multimodal_encoder.anyres import (
    Size,
    anyres_pixels,
    anyres_tokens,
    parse_pinpoints,
    select_best_resolution,
)
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.frames import frame_of
from llava.model.multimodal_encoder.preprocess import check_frame, pixels
from llava.model.multimodal_encoder.registry import Representation


@dataclass(frozen=True)
class ImageProcessor:
    """Preprocessing of a whole representation in one frame."""

    representation: Representation
    frame: str = "own"

    def __post_init__(self):
        check_frame(self.frame)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor | PixelBatch:
        """float32 [B, 3, S, S] for one tower, a PixelBatch for several."""
        return _together([pixels(images, spec, self.frame) for spec in self.representation.parts])

    def preprocess(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str = "pt"
    ) -> dict[str, Any]:
        """`{"pixel_values": ...}`, as transformers' image processors give it."""
        if return_tensors != "pt":
            raise UsageError(f"return_tensors: expected 'pt', got {return_tensors!r}")
        given = [images] if isinstance(images, Image.Image) else images
        return {"pixel_values": self(given)}

    def in_frame(self, frame: str) -> "ImageProcessor":
        """The same towers in another frame."""
        return self if frame == self.frame else replace(self, frame=frame)

    def for_aspect_ratio(
        self, image_aspect_ratio: str | None, geometry: str | None = None
    ) -> "ImageProcessor":
        """In the frame that a config's words mean; without a geometry several towers are `own`."""
        alone = len(self.representation.parts) == 1
        return self.in_frame(frame_of(image_aspect_ratio, "own" if alone else geometry or "own"))

    def anyres(
        self, image: Image.Image, pinpoints: str | Sequence[Size]
    ) -> torch.Tensor | PixelBatch:
        """float32 [1 + tiles, 3, S, S] of one image; several towers share the tiles' borders.

        Resolutions are in pixels of the first tower; another one cuts its tiles at its own size.
        """
        columns, rows = self.anyres_grid(image.size, pinpoints)
        return _together(
            [
                anyres_pixels(image, spec, [(columns * spec.size, rows * spec.size)], self.frame)
                for spec in self.representation.parts
            ]
        )

    def anyres_grid(self, image_size: Size, pinpoints: str | Sequence[Size]) -> tuple[int, int]:
        """Tiles (columns, rows) of an image of `image_size` (width, height)."""
        side = self.representation.parts[0].size
        resolutions = parse_pinpoints(pinpoints)
        for width, height in resolutions:
            if width % side or height % side:
                raise UsageError(
                    f"image_grid_pinpoints: {width} x {height} is not made of tiles of {side} x "
                    f"{side} px, which {self.representation.parts[0].id} takes"
                )
        width, height = select_best_resolution(image_size, resolutions)
        return width // side, height // side

    def anyres_tokens(
        self,
        image_size: Size,
        pinpoints: str | Sequence[Size],
        merge: str = "flat",
        tokens_per_view: int | None = None,
    ) -> int:
        """Tokens that an image of `image_size` becomes in the model.

        `tokens_per_view` is what the projector gives for one view, where that is not the towers'
        own number.
        """
        columns, rows = self.anyres_grid(image_size, pinpoints)
        each = tokens_per_view or self.num_tokens
        return anyres_tokens(image_size, columns, rows, self.representation.grid, merge, each)

    @property
    def num_tokens(self) -> int:
        """Tokens that the towers give for one view of an image."""
        return self.representation.tokens

    @property
    def image_mean(self) -> list[float]:
        """Of the first tower, per channel, as `image_std`, `size` and `crop_size` are."""
        return list(self.representation.parts[0].mean)

    @property
    def image_std(self) -> list[float]:
        """Of the first tower, per channel."""
        return list(self.representation.parts[0].std)

    @property
    def size(self) -> dict[str, int]:
        """What the first tower's processor resizes to, in transformers' words."""
        first = self.representation.parts[0]
        if first.resize == "crop":
            return {"shortest_edge": first.resize_to or first.size}
        return self.crop_size

    @property
    def crop_size(self) -> dict[str, int]:
        """The first tower's input."""
        side = self.representation.parts[0].size
        return {"height": side, "width": side}


def _together(parts: list[torch.Tensor]) -> torch.Tensor | PixelBatch:
    return parts[0] if len(parts) == 1 else PixelBatch(parts)
