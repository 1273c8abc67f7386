"""Adaptive flip: where the mirrored source lies nearer to the target, its matches are taken.

Letters in shapes: S representations, T towers, P pairs, K keypoint columns, C channels, N cells,
M = N + 1 (see matching.py).
"""

from collections.abc import Sequence

import numpy as np
import torch

from C_score.datasets.frame import ANNO, patch_index
from C_score.datasets.groups import Groups, flip_columns, groups_of, right_columns
from C_score.datasets.pairs import Category, PairSet
from C_score.geo import Mapping, mutual_points
from C_score.rows import Maps, Rows
from C_score.sources import Features


def swaps(category: Category, dataset: str, mapping: Mapping) -> Groups:
    """The columns that change places when an image is mirrored."""
    if mapping == "right":
        return groups_of(right_columns(category.flip_groups, category.slots))
    return groups_of(flip_columns(dataset, category.name, category.slots, mapping))


def mirrored(category: Category, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [P, K, 2] source keypoints in the mirrored image, bool [P, K] which may be used).

    As in the reference: inside a group whose members are all scored, each takes the next one's
    place; a point's mirrored match may be used where the next one is scored too.
    """
    mutual_PK = mutual_points(category)
    xy_PK2 = category.source_kps[..., :2].copy()
    xy_PK2[..., 0] = np.float32(ANNO) - xy_PK2[..., 0]
    moved_PK2, usable_PK = xy_PK2.copy(), mutual_PK.copy()
    for group in groups:
        columns, following = list(group), [*group[1:], group[0]]
        whole = np.flatnonzero(mutual_PK[:, columns].all(1))[:, None]
        moved_PK2[whole, columns] = xy_PK2[whole, following]
        usable_PK[:, columns] &= mutual_PK[:, following]
    return moved_PK2, usable_PK


def mutual_distance(similarity_NN: torch.Tensor) -> float:
    """Mean distance of the cells of two images that are each other's nearest, from their cosines.

    Features have length 1, so the distance of two cells is sqrt(2 - 2 cosine).
    """
    best_N, target_N = similarity_NN.max(1)
    back_N = similarity_NN.argmax(0)
    mutual_N = back_N[target_N] == torch.arange(len(target_N))
    return float((2 - 2 * best_N[mutual_N].double()).clamp_(min=0).sqrt().mean())


class FlippedSources:
    """The mirrored sources of one category, and which of them lie nearer to a target."""

    def __init__(
        self,
        category: Category,
        pairs: PairSet,
        towers: Sequence[Features],
        members_ST: torch.Tensor,
        n: int,
        mapping: Mapping,
    ):
        self.category, self.pictures, self.n = category, pairs.pictures, n
        self.towers, self.members_ST = towers, members_ST
        self.flipped = [tower.flipped() for tower in towers]
        moved_PK2, self.usable_PK = mirrored(category, swaps(category, pairs.name, mapping))
        self.patch_PK = patch_index(moved_PK2, n)

    def start(self, wanted_PK: np.ndarray, used_P: np.ndarray) -> None:
        """Reads a chunk's rows, and keeps the sources' maps, which distances need whole."""
        sources = self.category.source[used_P]
        self.plain_maps = Maps(self.towers, self.pictures, self.n, sources)
        self.maps = Maps(self.flipped, self.pictures, self.n, sources)
        self.rows = Rows(self.maps, self.category, self.patch_PK, wanted_PK, used_P)

    def nearer(self, group_P: np.ndarray, target_TCM: Sequence[torch.Tensor]) -> np.ndarray:
        """bool [S, P of the group]: the mirrored source is nearer to the target that they share."""
        found = []
        for picture in self.category.source[group_P].tolist():
            mirrored_S = self._distances(self.maps, picture, target_TCM)
            found.append(mirrored_S < self._distances(self.plain_maps, picture, target_TCM))
        return np.stack(found, 1)

    def _distances(self, maps, picture, target_TCM) -> np.ndarray:
        """float [S]."""
        sources = maps.all(picture)
        cosine_TNN = torch.stack(
            [s[:, :-1].T @ t[:, :-1] for s, t in zip(sources, target_TCM, strict=True)]
        )
        means = (torch.tensordot(weight_T, cosine_TNN, 1) for weight_T in self.members_ST)
        return np.array([mutual_distance(cosine_NN) for cosine_NN in means])
