"""The geo-aware subset: points that could be taken for their left, right or other-paw twin."""

from typing import Literal

import numpy as np

from C_score.datasets.groups import Groups, geo_columns, groups_of, right_columns
from C_score.datasets.pairs import Category

Mapping = Literal["right", "reference"]


def geo_points(category: Category, dataset: str, mapping: Mapping) -> np.ndarray:
    """bool [P, K]: seen in both images, and the target shows two or more of the point's group.

    `reference` repeats the reference's mapping from ids to columns, which is wrong for bus, car,
    pottedplant and tvmonitor (C_score/datasets/groups.py).
    """
    target_PK = category.target_kps[..., 2] > 0
    found_PK = np.zeros_like(target_PK)
    for group in _columns(category, dataset, mapping):
        columns = list(group)
        found_PK[:, columns] = target_PK[:, columns].sum(1, keepdims=True) > 1
    return found_PK & mutual_points(category)


def mutual_points(category: Category) -> np.ndarray:
    """bool [P, K]: the points that are scored, those seen in both images."""
    return category.source_kps[..., 2] * category.target_kps[..., 2] > 0


def _columns(category: Category, dataset: str, mapping: Mapping) -> Groups:
    if mapping == "right":  # by the category itself, so that any reader may bring groups
        return groups_of(right_columns(category.groups, category.slots))
    return geo_columns(dataset, category.name, category.slots, mapping)
