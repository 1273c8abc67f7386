"""What a grid of tokens sees of an image: where a point's cell is, and where a cell lies.

Coordinates are image pixels from the upper left corner, x to the right, y down.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava.errors import LawError, UsageError, unknown_name

FRAMES = ("pad", "stretch", "crop")
"""The frames of llava/model/multimodal_encoder/preprocess.py whose place in an image is fixed."""


@dataclass(frozen=True)
class View:
    """The part of an image that a grid covers; beyond the image where that is padded."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, size: tuple[int, int], frame: str, covered: float = 1.0) -> "View":
        """The view of an image of `size` (width, height).

        `covered` is how much of the input's side the patches fill: 378 of 384 for a tower of 14
        pixel patches at 384; what is left over lies at the right and at the bottom.
        """
        width, height = size
        if frame == "stretch":
            return cls(0, 0, width * covered, height * covered)
        if frame not in FRAMES:
            raise UsageError(unknown_name("frame", frame, FRAMES))
        side = max(width, height) if frame == "pad" else min(width, height)
        if frame == "pad":
            left, top = -((side - width) // 2), -((side - height) // 2)
        else:
            left, top = (width - side) // 2, (height - side) // 2
        return cls(left, top, side * covered, side * covered)

    def cells(self, points: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """int64 [..., 2] (column, row) of the cell that holds x, y; the nearest one for others."""
        rows, columns = grid
        share = (np.asarray(points, np.float64) - (self.left, self.top)) / (self.width, self.height)
        cells = np.floor(share * (columns, rows)).astype(np.int64)
        return np.clip(cells, 0, (columns - 1, rows - 1))

    def centres(self, cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """float64 [..., 2] x, y in the middle of cells (column, row)."""
        rows, columns = grid
        share = (np.asarray(cells, np.float64) + 0.5) / (columns, rows)
        return share * (self.width, self.height) + (self.left, self.top)

    def patches(self, points: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """int64 [...] row-major index of the cell that holds x, y."""
        cells = self.cells(points, grid)
        return cells[..., 1] * grid[1] + cells[..., 0]


def read_image(path: Path) -> Image.Image:
    """The RGB image in a file, as towers see it; LawError where it does not decode."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise LawError(f"{path}: no such image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LawError(f"{path}: does not decode as an image: {error}") from error


def check_inside(points: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """float64 [K, 2] points; UsageError for one that is no pixel of an image of `size`."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    for x, y in points:
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise UsageError(
                f"point {x:g},{y:g} is not on {where}, which is {size[0]} x {size[1]} pixels"
            )
    return points
