"""LLaVA's `anyres`: an image as an overview and tiles, each of the tower's own input size.

The image is fitted into the best of some resolutions, on black, and cut into tiles; the whole
image, squashed to the processor's shortest edge, comes first. Every one of these goes through the
tower's processor (frame `own`), or straight to its input (`crop`, where several towers are to see
the same).
"""

import ast
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from llava.errors import UsageError, unknown_name
from llava.model.multimodal_encoder.preprocess import pixels, to_rgb
from llava.model.multimodal_encoder.spec import TowerSpec

Size = tuple[int, int]
"""(width, height) in pixels."""

MERGES = ("flat", "spatial", "spatial_unpad")
"""How tokens of overview and tiles become one sequence, by LLaVA's `mm_patch_merge_type`."""


def parse_pinpoints(value: str | Sequence[Sequence[int]]) -> list[Size]:
    """Resolutions (width, height) from a config's list, or from its text `[(336, 672), ...]`.

    Raises UsageError for anything else.
    """
    found: Any = value
    if isinstance(value, str):
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
    pairs = list(found) if isinstance(found, list | tuple) else []
    if not pairs or not all(_is_size(pair) for pair in pairs):
        raise UsageError(
            f"image_grid_pinpoints: expected resolutions such as [(336, 672), (672, 336)], got "
            f"{str(value)[:80]!r}"
        )
    return [(pair[0], pair[1]) for pair in pairs]


def _is_size(pair: Any) -> bool:
    whole = isinstance(pair, list | tuple) and all(type(side) is int and side > 0 for side in pair)
    return whole and len(pair) == 2


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


def anyres_pixels(
    image: Image.Image, spec: TowerSpec, resolutions: Sequence[Size], frame: str = "own"
) -> torch.Tensor:
    """float32 [1 + tiles, 3, S, S]: the overview, then the tiles row by row."""
    image = to_rgb(image)
    edge = (spec.resize_to or spec.size) if frame == "own" else spec.size
    overview = image.resize((edge, edge))
    fitted = on_black(image, select_best_resolution(image.size, resolutions))
    return pixels([overview, *tiles(fitted, spec.size)], spec, frame)


def tiles(image: Image.Image, side: int) -> list[Image.Image]:
    """Squares of `side`, row by row; what they show beyond the image is black."""
    return [
        image.crop((left, top, left + side, top + side))
        for top in range(0, image.height, side)
        for left in range(0, image.width, side)
    ]


def anyres_tokens(
    size: Size, columns: int, rows: int, grid: tuple[int, int], merge: str, tokens: int
) -> int:
    """Tokens that an image of `size` becomes: an overview and columns x rows tiles, merged.

    `grid` (rows, columns) and `tokens` are one view's. `flat` and `spatial` keep every token;
    `spatial_unpad` drops those of black borders and ends every row of the tiles' common map with a
    newline.
    """
    if merge not in MERGES:
        raise UsageError(unknown_name("mm_patch_merge_type", merge, MERGES))
    if merge == "flat":
        return (1 + columns * rows) * tokens
    if tokens != math.prod(grid):
        raise UsageError(
            f"mm_patch_merge_type '{merge}' needs one token per patch: {grid[0]} x {grid[1]}, not "
            f"{tokens}; take 'flat'"
        )
    if merge == "spatial":
        return (1 + columns * rows) * tokens
    map_of_tiles = torch.empty(0, rows * grid[0], columns * grid[1])
    _, shown_rows, shown_columns = unpad(map_of_tiles, size).shape
    return tokens + shown_rows * (shown_columns + 1)


def unpad(map_CHW: torch.Tensor, size: Size) -> torch.Tensor:
    """The part of a map [C, H, W] that shows the image of `size`, without the black borders."""
    width, height = size
    _, rows, columns = map_CHW.shape
    if width / height > columns / rows:
        border = (rows - int(height * columns / width)) // 2
        return map_CHW[:, border : rows - border]
    border = (columns - int(width * rows / height)) // 2
    return map_CHW[:, :, border : columns - border]


def on_black(image: Image.Image, size: Size) -> Image.Image:
    """The RGB image as large as fits, in the middle of a black canvas."""
    across, down = size[0] / image.width, size[1] / image.height
    if across < down:
        fitted = size[0], min(math.ceil(image.height * across), size[1])
    else:
        fitted = min(math.ceil(image.width * down), size[0]), size[1]
    canvas = Image.new("RGB", size)
    canvas.paste(image.resize(fitted), ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return canvas
