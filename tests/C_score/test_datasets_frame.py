"""The 840 frame: there and back, and the patch that a point falls into."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from C_score.datasets.frame import (
    ANNO,
    frame_offset,
    frame_scale,
    from_frame,
    patch_centre,
    patch_index,
    to_frame,
)

SIDES = st.integers(1, 4000)
UNIT = st.floats(0, 1)
GRIDS = st.integers(1, 96)


@pytest.mark.parametrize(
    ("width", "height", "scale", "offset"),
    [
        (840, 840, 1.0, (0, 0)),
        (420, 420, 2.0, (0, 0)),
        (500, 375, 1.68, (0, 105)),
        (375, 500, 1.68, (105, 0)),
        (160, 72, 5.25, (0, 231)),
        (1680, 1, 0.5, (0, 420)),  # 840 / 1680 is half a pixel, which rounds to 0
        (1680, 3, 0.5, (0, 419)),  # 1.5 rounds to 2
        (1680, 5, 0.5, (0, 419)),  # 2.5 rounds to 2, the even one
        (840, 3, 1.0, (0, 418)),  # (840 - 3) / 2 is cut to 418
    ],
)
def test_scale_and_offset(width, height, scale, offset):
    """By hand."""
    assert frame_scale(width, height) == scale
    assert frame_offset(width, height) == offset


def test_a_point_by_hand():
    """One on a wide image, one that is not visible."""
    kps = to_frame([[100, 50, 1], [100, 50, 0]], 500, 375)
    assert kps.dtype == np.float32
    assert kps.tolist() == [[168, 189, 1], [0, 0, 0]]


def test_an_invisible_point_may_be_anything():
    """NaN times zero would be NaN."""
    assert to_frame([[np.nan, np.inf, 0]], 500, 375).tolist() == [[0, 0, 0]]


@given(SIDES, SIDES, UNIT, UNIT)
def test_there_and_back(width, height, u, v):
    """Float32 has a step of 6e-5 at 840, and the way there rounds twice."""
    point = np.array([u * width, v * height])
    framed = to_frame(np.append(point, 1), width, height)[:2]
    back = from_frame(framed, width, height)
    assert np.abs(back - point).max() <= 2e-4 / frame_scale(width, height)


@given(SIDES, SIDES, UNIT, UNIT)
def test_the_image_lies_in_the_frame(width, height, u, v):
    """A side of half a pixel or less may be rounded up or down, hence the one."""
    x, y, visible = to_frame([u * width, v * height, 1], width, height)
    assert visible == 1
    assert -1 <= x <= ANNO + 1
    assert -1 <= y <= ANNO + 1


@given(GRIDS, st.floats(0, ANNO, exclude_max=True, width=32), st.floats(0, ANNO, width=32))
def test_patch_index_is_near_the_exact_one(n, x, y):
    """The float32 formula is off by one cell at most, and only on the edge of a cell."""
    index = int(patch_index(np.array([x, y], np.float32), n))
    for cell, value in ((index % n, x), (index // n, y)):
        assert 0 <= cell < n
        exact = value * n / ANNO
        assert cell - 1e-4 <= exact <= cell + 1 + 1e-4


@given(GRIDS, st.data())
def test_the_middle_of_a_patch_lies_in_it(n, data):
    """The reference's centre too, up to a grid of 420, where half a patch is 1 px."""
    cell = data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
    assert patch_index(patch_centre(np.array(cell), n), n) == cell[1] * n + cell[0]


def test_patch_index_at_the_borders():
    """840 belongs to the last patch, the outside to the nearest."""
    points = [[0, 0], [840, 0], [0, 840], [840, 840], [-60, 900], [52.5, 0], [52.4999, 0]]
    assert patch_index(np.float32(points), 16).tolist() == [0, 15, 240, 255, 240, 1, 0]


@pytest.mark.parametrize(
    ("n", "offset"), [(7, 60), (14, 30), (16, 26), (24, 17), (32, 13), (48, 8), (60, 7)]
)
def test_patch_centre(n, offset):
    """Half a patch, rounded down; fractions of a cell pass through."""
    centre = patch_centre(np.array([[0, 0], [1.5, 2]]), n)
    assert centre.dtype == np.float32
    stride = 840 / n
    assert centre[0].tolist() == [offset, offset]
    assert centre[1] == pytest.approx([1.5 * stride + offset, 2 * stride + offset], rel=1e-6)
