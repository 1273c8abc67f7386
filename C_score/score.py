"""Scores any number of representations in one pass over the pairs of a set.

All pairs that share a target are matched together: the source patches under their keypoints, each
once, times the target's features. A representation is a row of weights over towers, for the cosine
of concatenated features of length 1 is the mean of the towers' cosines; so every representation
comes from the same products.

Letters in shapes: S representations, T towers, P pairs, K keypoint columns, Q keypoints, R rows
(one source patch each), U rows of a chunk of pairs, C channels, A alphas, N = n * n cells,
M = N + 1 (see matching.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from C_score.datasets.frame import patch_centre, patch_index
from C_score.datasets.pairs import Category, PairSet
from C_score.flip import FlippedSources
from C_score.geo import Mapping, geo_points, mutual_points
from C_score.matching import Match, Matcher
from C_score.pck import Sums, Threshold, hits, limits
from C_score.rows import Maps, Rows
from C_score.sources import Features
from llava.log import progress

GROUP_PAIRS = 64
"""Pairs of one target that are matched together at most."""
ROWS = 512
"""Rows of one product at most: with ten towers their cosines still take a few megabytes."""
BLOCK_FLOATS = 1 << 20
"""Cosines of all representations that are matched at a time: few enough to stay in cache."""
ROWS_BYTES = 512 << 20
"""Source rows of a chunk of pairs: larger categories are read in several chunks."""


@dataclass(frozen=True)
class Options:
    """What a score depends on besides pairs and features."""

    match: Match = field(default_factory=Match)
    threshold: Threshold = "bbox"
    flip: bool = False
    mapping: Mapping = "right"
    """How keypoint ids become columns, for the geo-aware subset and the flip."""


@dataclass(frozen=True)
class Detail:
    """What is known of each pair of a category."""

    pairs: tuple[str, ...]
    hits_SPA: np.ndarray
    points_P: np.ndarray
    """Scored keypoints; 0 for a skipped pair."""
    scored_PK: np.ndarray
    predicted_SPK2: np.ndarray
    """float32, the 840 frame; also of keypoints that are not scored, NaN for skipped pairs."""
    hit_SPK: np.ndarray
    """Scored, and a hit at the first alpha."""


@dataclass(frozen=True)
class CategoryScore:
    """The sums over one category, [S, A] each; they add up."""

    name: str
    skipped: tuple[str, ...]
    """Pairs without a keypoint that both images show."""
    all: Sums
    geo_pairs: Sums
    """Geo-aware points, for the mean over pairs."""
    geo_points: Sums
    """Geo-aware points, for the mean over points; other than `geo_pairs` in the reference only."""
    detail: Detail | None = None


def score(
    pairs: PairSet,
    towers: Sequence[Features],
    members_ST: np.ndarray,
    n: int,
    options: Options | None = None,
    detail: bool = False,
) -> list[CategoryScore]:
    """The sums of every category, for S representations on an n x n grid.

    Args:
        pairs: what to score on.
        towers: T towers.
        members_ST: float [S, T], the weight of each tower's cosine; a row sums to 1.
        n: side of the grid; towers with another are resampled.
        options: the protocol.
        detail: also keep every pair's hits and predictions.
    """
    options = options or Options()
    scorer = _Scorer(pairs, towers, members_ST, n, options)
    return [scorer.category(category, detail) for category in progress(pairs.categories, "C score")]


class _Scorer:
    def __init__(self, pairs, towers, members_ST, n, options):
        self.pairs, self.towers, self.n, self.options = pairs, towers, n, options
        self.members_ST = torch.as_tensor(np.asarray(members_ST), dtype=torch.float32)
        self.single = self.members_ST.tolist() == [[1.0]]
        self.matcher = Matcher(options.match, n)
        self.row_bytes = 4 * sum(tower.dim for tower in towers)

    def category(self, category: Category, detail: bool) -> CategoryScore:
        mutual_PK = mutual_points(category)
        scored_P = mutual_PK.any(1)
        tallies = self._tallies(category, mutual_PK)
        shape = (len(self.members_ST), len(category), len(self.pairs.alphas))
        found = [np.zeros(shape, np.int32) for _ in tallies]
        known = None
        if detail:
            shape = (len(self.members_ST), *mutual_PK.shape)
            predicted_SPK2 = np.full((*shape, 2), np.nan, np.float32)
            points_P, hit_SPK = mutual_PK.sum(1), np.zeros(shape, bool)
            known = Detail(category.pairs, found[0], points_P, mutual_PK, predicted_SPK2, hit_SPK)
        wanted_PK = scored_P[:, None] & (mutual_PK | detail)
        for pair_Q, column_Q, xy_SQ2 in self._predictions(category, wanted_PK):
            true_Q2 = category.target_kps[pair_Q, column_Q, :2]
            starts = np.flatnonzero(np.diff(pair_Q, prepend=-1))
            for (counted_PK, limit_PA), hits_SPA in zip(tallies, found, strict=True):
                hit_ASQ = hits(xy_SQ2, true_Q2, limit_PA[pair_Q], counted_PK[pair_Q, column_Q])
                sums = np.add.reduceat(hit_ASQ, starts, axis=2, dtype=np.int32)
                hits_SPA[:, pair_Q[starts]] = sums.transpose(1, 2, 0)
                if known and hits_SPA is known.hits_SPA:
                    known.hit_SPK[:, pair_Q, column_Q] = hit_ASQ[0]
            if known:
                known.predicted_SPK2[:, pair_Q, column_Q] = xy_SQ2
        points = [counted_PK.sum(1) for counted_PK, _ in tallies]
        sums = [Sums.of(hits_SPA, m_P) for hits_SPA, m_P in zip(found, points, strict=True)]
        return CategoryScore(
            name=category.name,
            skipped=tuple(category.pairs[p] for p in np.flatnonzero(~scored_P)),
            all=sums[0],
            geo_pairs=sums[1],
            geo_points=sums[-1],
            detail=known,
        )

    def _tallies(self, category, mutual_PK):
        """(points that count [P, K], limits [P, A]) of: all, geo over pairs, geo over points.

        The last two are one, but for the reference: its geo figure over pairs maps ids rightly but
        always takes the box, the one over points the other way round.
        """
        alphas, mapping = self.pairs.alphas, self.options.mapping
        limit_PA = limits(category, alphas, self.options.threshold)
        geo_PK = geo_points(category, self.pairs.name, "right")
        if mapping == "right":
            return [(mutual_PK, limit_PA), (geo_PK, limit_PA)]
        listed_PK = geo_points(category, self.pairs.name, mapping)
        box_PA = limits(category, alphas, "bbox")
        return [(mutual_PK, limit_PA), (geo_PK, box_PA), (listed_PK, limit_PA)]

    def _predictions(
        self, category: Category, wanted_PK: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(pair [Q], column [Q], predicted x, y in the 840 frame [S, Q, 2]), target by target."""
        patch_PK = patch_index(category.source_kps, self.n)
        flip = self._flip(category) if self.options.flip else None
        for chunk in self._chunks(category, wanted_PK):
            used_P = np.concatenate(chunk)
            maps = Maps(self.towers, self.pairs.pictures, self.n, category.target[used_P])
            rows = Rows(maps, category, patch_PK, wanted_PK, used_P)
            if flip:
                flip.start(wanted_PK, used_P)
            for group_P in chunk:
                picture = category.target[group_P[0]]
                target_TCM = maps.take(picture)
                at, column_Q = np.nonzero(wanted_PK[group_P])
                pair_Q = group_P[at]
                cells_SQ2 = self._transfer(rows, pair_Q, column_Q, target_TCM)
                if flip:
                    flipped_SQ2 = self._transfer(flip.rows, pair_Q, column_Q, target_TCM)
                    nearer_SQ = flip.nearer(group_P, target_TCM)[:, at]
                    use_SQ = nearer_SQ & flip.usable_PK[pair_Q, column_Q]
                    cells_SQ2 = np.where(use_SQ[..., None], flipped_SQ2, cells_SQ2)
                yield pair_Q, column_Q, patch_centre(cells_SQ2, self.n)

    def _flip(self, category: Category) -> FlippedSources:
        mapping = self.options.mapping
        return FlippedSources(category, self.pairs, self.towers, self.members_ST, self.n, mapping)

    def _chunks(self, category: Category, wanted_PK: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Groups of pairs that share a target, in chunks whose source rows fit into memory."""
        pairs = np.flatnonzero(wanted_PK.any(1))
        pairs = pairs[np.argsort(category.target[pairs], kind="stable")]
        cuts = np.flatnonzero(np.diff(category.target[pairs])) + 1
        chunk, filled = [], 0
        for same in np.split(pairs, cuts) if len(pairs) else []:
            for start in range(0, len(same), GROUP_PAIRS):
                group = same[start : start + GROUP_PAIRS]
                size = int(wanted_PK[group].sum()) * self.row_bytes
                if chunk and filled + size > ROWS_BYTES:
                    yield chunk
                    chunk, filled = [], 0
                chunk.append(group)
                filled += size
        if chunk:
            yield chunk

    def _transfer(self, rows, pair_Q, column_Q, target_TCM) -> np.ndarray:
        """float32 [S, Q, 2] (column, row) on the grid where each keypoint goes."""
        wanted_R, where_Q = np.unique(rows.index_PK[pair_Q, column_Q], return_inverse=True)
        cells = [
            self._match([rows_UC[block] for rows_UC in rows.rows_TUC], target_TCM)
            for block in torch.from_numpy(wanted_R).split(ROWS)
        ]
        return torch.cat(cells, 1).numpy()[:, where_Q]

    def _match(self, rows_TRC, target_TCM) -> torch.Tensor:
        """float32 [S, R, 2]: all representations of a block of rows from one product."""
        if self.single:
            return self.matcher(rows_TRC[0] @ target_TCM[0])[None]
        count, columns = len(self.members_ST), target_TCM[0].shape[1]
        cosine_TRM = torch.stack([r @ t for r, t in zip(rows_TRC, target_TCM, strict=True)])
        step = max(1, BLOCK_FLOATS // (count * columns))
        cells = []
        for part_TRM in cosine_TRM.split(step, 1):
            # NumPy's product is a third quicker than torch's where the inner side is this short
            sums = torch.from_numpy(self.members_ST.numpy() @ part_TRM.flatten(1).numpy())
            cells.append(self.matcher(sums.view(-1, columns)).view(count, -1, 2))
        return torch.cat(cells, 1)
