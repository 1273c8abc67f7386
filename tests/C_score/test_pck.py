"""Averages and their errors, by hand and against NumPy."""

import numpy as np
import pytest
from made_pairs import category

from C_score.pck import Sums, hits, limits


def test_both_averages_by_hand():
    """Pairs with 1 of 1, 1 of 4 and no points: a pair counts as much as another, or a point."""
    sums = Sums.of(np.array([[[1], [1], [0]]]), np.array([1, 4, 0]))
    assert (sums.pairs, sums.points) == (2, 5)
    assert sums.mean("image").item() == pytest.approx((1 + 1 / 4) / 2)
    assert sums.mean("keypoint").item() == pytest.approx(2 / 5)


def test_standard_errors():
    """Of a mean over pairs; of a ratio, by its linear form over pairs."""
    drawn = np.random.default_rng(0)
    points = drawn.integers(1, 12, 50)
    right = drawn.binomial(points, 0.6)
    sums = Sums.of(right[None, :, None], points)
    own = right / points
    assert sums.stderr("image").item() == pytest.approx(own.std(ddof=1) / 50**0.5)
    ratio = right.sum() / points.sum()
    residual = (right - ratio * points) / points.mean()
    assert sums.stderr("keypoint").item() == pytest.approx(residual.std(ddof=1) / 50**0.5, rel=1e-9)


def test_sums_add_up():
    """Over categories: the whole is that of all pairs together."""
    drawn = np.random.default_rng(1)
    points = drawn.integers(0, 9, 40)
    right = drawn.binomial(points, 0.5)[None, :, None]
    parts = Sums.of(right[:, :13], points[:13]) + Sums.of(right[:, 13:], points[13:])
    whole = Sums.of(right, points)
    for average in ("image", "keypoint"):
        assert parts.mean(average) == pytest.approx(whole.mean(average))
        assert parts.stderr(average) == pytest.approx(whole.stderr(average))


def test_nothing_to_average_is_no_nan():
    sums = Sums.of(np.zeros((1, 2, 3)), np.array([0, 0]))
    assert sums.mean("image") is sums.mean("keypoint") is sums.stderr("image") is None
    one = Sums.of(np.ones((1, 1, 1)), np.array([2]))
    assert one.mean("image").item() == 0.5
    assert one.stderr("image") is None


def test_limits():
    """alpha in float32 times the side: of the box, or of the frame."""
    made = category(np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), [0], [0], [300.5])
    alpha = float(np.float32(0.05))
    assert limits(made, (0.05,), "bbox").tolist() == [[alpha * 300.5]]
    assert limits(made, (0.05,), "image").tolist() == [[alpha * 840]]


def test_hits_are_nearer_than_the_limit():
    """3, 4 off is 5 off; a point that does not count is no hit."""
    predicted = np.array([[[3, 4], [3, 4], [0, 0]]], np.float32)
    limit = np.array([[5.0, 5.1]] * 3)
    found = hits(predicted, np.zeros((3, 2), np.float32), limit, np.array([True, True, False]))
    assert found[:, 0].tolist() == [[False, False, False], [True, True, False]]
