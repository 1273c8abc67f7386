"""Feature maps of a chunk of pairs, and the source patches that are looked for in them.

Letters in shapes: T towers, P pairs, K keypoint columns, U rows (one source patch each),
C channels, M = n * n + 1 (see matching.py).
"""

from collections.abc import Sequence

import numpy as np
import torch

from C_score.datasets.pairs import Category, Picture
from C_score.sources import Features

MAPS_BYTES = 1 << 30
"""Target maps kept from when they were read as sources; the others are read again."""


class Maps:
    """Unit feature maps [C, M] of each tower; targets are kept from their first reading on."""

    def __init__(
        self, towers: Sequence[Features], pictures: Sequence[Picture], n: int, kept: np.ndarray
    ):
        self.towers, self.pictures, self.n = towers, pictures, n
        self.kept = set(np.unique(kept).tolist())
        self.left = MAPS_BYTES
        self.found = {}
        self.last = (None, None)

    def get(self, picture: int, tower: int) -> torch.Tensor:
        """The map of one tower; kept where it is to be and there is room."""
        key = (picture, tower)
        if key in self.found:
            return self.found[key]
        unit_CM = self.towers[tower].unit(self.pictures[picture], self.n)
        size = unit_CM.numel() * 4
        if picture in self.kept and size <= self.left:
            self.found[key] = unit_CM
            self.left -= size
        return unit_CM

    def all(self, picture: int) -> list[torch.Tensor]:
        """The maps of all towers."""
        return [self.get(picture, tower) for tower in range(len(self.towers))]

    def take(self, picture: int) -> list[torch.Tensor]:
        """The maps of all towers; another picture's, taken before, are forgotten."""
        if self.last[0] != picture:
            for tower in range(len(self.towers)):
                old = self.found.pop((self.last[0], tower), None)
                self.left += 0 if old is None else old.numel() * 4
            self.last = (picture, self.all(picture))
        return self.last[1]


class Rows:
    """The source patches under a chunk's keypoints, each once: [U, C] per tower."""

    def __init__(
        self,
        maps: Maps,
        category: Category,
        patch_PK: np.ndarray,
        wanted_PK: np.ndarray,
        used_P: np.ndarray,
    ):
        cells = maps.n * maps.n
        key_PK = category.source[:, None] * cells + patch_PK
        used_PK = np.zeros_like(wanted_PK)
        used_PK[used_P] = wanted_PK[used_P]
        key_U = np.unique(key_PK[used_PK])
        self.index_PK = np.searchsorted(key_U, key_PK)  # meaningless where not used
        pictures, starts = np.unique(key_U // cells, return_index=True)
        patches = [torch.from_numpy(part) for part in np.split(key_U % cells, starts[1:])]
        self.rows_TUC = []
        for tower in range(len(maps.towers)):
            rows = [
                maps.get(picture, tower)[:, patch].T
                for picture, patch in zip(pictures.tolist(), patches, strict=True)
            ]
            self.rows_TUC.append(torch.cat(rows))
