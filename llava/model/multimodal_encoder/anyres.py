"""LLaVA's `anyres`: an image as an overview and tiles, each of the tower's own input size.

The image is fitted into the best of some resolutions, on black, and cut into tiles; the whole
image, squashed to the processor's shortest edge, comes first. Every one of these goes through the
tower's processor (frame `own`).
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image

from llava.model.multimodal_encoder.preprocess import pixels, to_rgb
from llava.model.multimodal_encoder.spec import TowerSpec

Size = tuple[int, int]
"""(width, height) in pixels."""


def select_best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """The resolution that keeps most of an image's pixels; of equal ones the least wasteful.

    The first of those that are equal in both counts.
    """
    width, height = size

    def kept_and_wasted(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        scaled = int(width * scale) * int(height * scale)
        kept = min(scaled, width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=kept_and_wasted)


def anyres_pixels(image: Image.Image, spec: TowerSpec, resolutions: Sequence[Size]) -> torch.Tensor:
    """float32 [1 + tiles, 3, S, S]: the overview, then the tiles row by row."""
    image = to_rgb(image)
    edge = spec.resize_to or spec.size
    overview = image.resize((edge, edge))
    fitted = _on_black(image, select_best_resolution(image.size, resolutions))
    tiles = [
        fitted.crop((left, top, left + spec.size, top + spec.size))
        for top in range(0, fitted.height, spec.size)
        for left in range(0, fitted.width, spec.size)
    ]
    return pixels([overview, *tiles], spec, "own")


def unpad(map_CHW: torch.Tensor, size: Size) -> torch.Tensor:
    """The part of a map [C, H, W] that shows the image of `size`, without the black borders."""
    width, height = size
    _, rows, columns = map_CHW.shape
    if width / height > columns / rows:
        border = (rows - int(height * columns / width)) // 2
        return map_CHW[:, border : rows - border]
    border = (columns - int(width * rows / height)) // 2
    return map_CHW[:, :, border : columns - border]


def _on_black(image: Image.Image, size: Size) -> Image.Image:
    """The image as large as fits, in the middle of a black canvas."""
    across, down = size[0] / image.width, size[1] / image.height
    if across < down:
        fitted = size[0], min(math.ceil(image.height * across), size[1])
    else:
        fitted = min(math.ceil(image.width * down), size[0]), size[1]
    canvas = Image.new("RGB", size)
    canvas.paste(image.resize(fitted), ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return canvas
