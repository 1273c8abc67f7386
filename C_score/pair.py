"""Which points of one picture match which of another, for any two pictures and any tower.

Letters in shapes: N cells of the source's grid and of the target's, C channels, K matches.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from C_score.view import View, check_inside, read_image
from llava.errors import LawError, UsageError


@dataclass(frozen=True)
class PairFeatures:
    """Patch tokens of two images from one tower, and what they see."""

    similarity_NN: np.ndarray
    """float32: cosine of every source cell (rows) to every target cell."""
    grid: tuple[int, int]
    """(rows, columns) of both."""
    source: View
    target: View
    source_size: tuple[int, int]
    target_size: tuple[int, int]


@dataclass(frozen=True)
class Matches:
    """K matches, in image pixels."""

    source_xy: np.ndarray
    """float64 [K, 2]."""
    predicted_xy: np.ndarray
    """float64 [K, 2]: the middle of the target's cell."""
    cosine: np.ndarray
    """float32 [K]."""


def pair_features(tower: torch.nn.Module, source: Path, target: Path) -> PairFeatures:
    """Runs `tower` (of `build_tower`) on both images.

    Raises LawError for an image that does not decode, a tower that gives NaN or no patch tokens.
    """
    images = [read_image(source), read_image(target)]
    tokens_BNC = torch.cat([_tokens(tower, image) for image in images])
    extra = tower.num_tokens - tower.num_patches
    rows, columns = tower.grid
    if tokens_BNC.shape[1] == 1 and rows * columns > 1:
        raise LawError(
            f"1 token for {rows} x {columns} patches, as of a tower that selects 'cls': a class "
            "token has no place in the image, so nothing can be matched; take a tower that selects "
            "'patch'"
        )
    if extra < 0 or tower.num_patches != rows * columns:
        raise LawError(
            f"{tokens_BNC.shape[1]} tokens are no grid of {rows} x {columns} patches; take a tower "
            f"that selects patches, or several joined by channel"
        )
    source_NC, target_NC = tokens_BNC[:, extra:]
    return PairFeatures(
        similarity_NN=cosines(source_NC, target_NC).numpy(),
        grid=(rows, columns),
        source=View.of(images[0].size, tower.frame, covered(tower)),
        target=View.of(images[1].size, tower.frame, covered(tower)),
        source_size=images[0].size,
        target_size=images[1].size,
    )


def _tokens(tower: torch.nn.Module, image: Image.Image) -> Tensor:
    """float32 [1, N, C] on the CPU."""
    return tower(tower.preprocess([image]).to(tower.device)).float().cpu()


def covered(tower: torch.nn.Module) -> float:
    """How much of the input's side the patches fill; the first part's in a combination."""
    first = tower.parts[0] if hasattr(tower, "parts") else tower
    return first.grid[1] * first.spec.patch / first.spec.size


def cosines(source_NC: Tensor, target_NC: Tensor) -> Tensor:
    """float32 [N source, N target]; a token of length zero has cosine 0 to all."""
    for tokens_NC, which in ((source_NC, "source"), (target_NC, "target")):
        if not torch.isfinite(tokens_NC).all():
            raise LawError(f"the {which} image's features hold NaN or infinity; take float32")
    return unit(source_NC) @ unit(target_NC).T


def unit(tokens_NC: Tensor) -> Tensor:
    """float32 [N, C] of length 1; zero rows stay zero."""
    tokens_NC = tokens_NC.double()
    length_N1 = torch.linalg.vector_norm(tokens_NC, dim=1, keepdim=True)
    return (tokens_NC / length_N1.masked_fill(length_N1 == 0, 1)).float()


def match_points(pair: PairFeatures, points: np.ndarray) -> Matches:
    """The target cell with the largest cosine to each point's cell. `points` [K, 2], image pixels.

    All cells are candidates, as in the C score: a match in the padding is a tower's mistake, and is
    shown as one. UsageError for a point off the image.
    """
    points = check_inside(points, pair.source_size, "the source image")
    rows = pair.similarity_NN[pair.source.patches(points, pair.grid)]
    return Matches(points, _middles(pair.target, pair.grid)[rows.argmax(1)], rows.max(1))


def mutual_matches(pair: PairFeatures, k: int) -> Matches:
    """The `k` (or fewer) best pairs of cells that are each other's nearest, best first.

    Cells whose middle lies in the padding take no part. A cell beside a better one is passed over
    while there are others, since plain areas would take every place otherwise.
    """
    if k < 1:
        raise UsageError(f"{k} matches: expected one or more")
    of_source = np.flatnonzero(_on_image(pair.source, pair.source_size, pair.grid))
    of_target = np.flatnonzero(_on_image(pair.target, pair.target_size, pair.grid))
    similarity = pair.similarity_NN[np.ix_(of_source, of_target)]
    there, back = similarity.argmax(1), similarity.argmax(0)
    rows = np.flatnonzero(back[there] == np.arange(len(there)))
    cosine = similarity[rows, there[rows]]
    rows = rows[np.argsort(-cosine, kind="stable")]
    rows = rows[_spread(np.stack(np.divmod(of_source[rows], pair.grid[1]), 1), k)]
    return Matches(
        _middles(pair.source, pair.grid)[of_source[rows]],
        _middles(pair.target, pair.grid)[of_target[there[rows]]],
        similarity[rows, there[rows]],
    )


def _spread(cells: np.ndarray, k: int) -> np.ndarray:
    """Indices, ascending, of at most `k` of `cells` [M, 2], best first: none beside a better one.

    Where that leaves fewer than `k`, the best of the others fill up.
    """
    taken, beside = [], []
    for index, cell in enumerate(cells):
        near = any(abs(cell - cells[other]).max() <= 1 for other in taken)
        (beside if near else taken).append(index)
    return np.array(sorted((taken + beside)[:k]), dtype=np.int64)


def _middles(view: View, grid: tuple[int, int]) -> np.ndarray:
    """float64 [N, 2] middles of all cells, row by row, image pixels."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return view.centres(np.stack([columns, rows], 1), grid)


def _on_image(view: View, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """bool [N]: cells whose middle lies on the image."""
    middles = _middles(view, grid)
    return ((middles >= 0) & (middles <= size)).all(1)
