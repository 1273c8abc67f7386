"""The geo-aware subset: who is in it, and by which mapping."""

import numpy as np
import pytest
from made_pairs import category

from C_score.geo import geo_points, mutual_points


def made(source_seen, target_seen, groups=((0, 1), (2, 3, 4)), slots=None, name="thing"):
    """One pair whose images show these columns."""
    kps = [
        np.array([[[10.0 * v, 10.0 * v, v] for v in seen]]) for seen in (source_seen, target_seen)
    ]
    found = category(*kps, [0], [0], [100], groups=groups, name=name)
    return found if slots is None else type(found)(**{**vars(found), "slots": slots})


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]),  # a singleton never is
        ([1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),  # its twin in the target
        ([1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),  # in the source only
        ([0, 0, 1, 0, 0, 1], [0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0]),
    ],
)
def test_who_is_in_it(source, target, expected):
    """Seen in both images, with two or more of its group in the target."""
    assert geo_points(made(source, target), "made", "right")[0].tolist() == [
        bool(e) for e in expected
    ]


def test_ids_are_not_columns():
    """With id 1 unused, ids 2, 3, 4 are columns 1, 2, 3, and 0 has no partner left."""
    found = made([1, 1, 1, 1], [1, 1, 1, 0], slots=(0, 2, 3, 4))
    assert geo_points(found, "made", "right")[0].tolist() == [False, True, True, False]


def test_the_reference_mixes_columns_up():
    """pottedplant's row lists 8 before 7: with all nine ids in use 7 takes the place of 8."""
    seen = [0, 0, 0, 0, 0, 0, 1, 0, 1]
    plant = made(seen, seen, ((0, 1, 2, 3), (4, 5), (6, 8)), name="pottedplant")
    assert np.flatnonzero(geo_points(plant, "spair71k", "right")[0]).tolist() == [6, 8]
    assert np.flatnonzero(geo_points(plant, "spair71k", "reference")[0]).tolist() == []


def test_mutual_points():
    assert mutual_points(made([1, 1, 0], [1, 0, 1], ())).tolist() == [[True, False, False]]
