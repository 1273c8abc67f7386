"""Region sampling against a plain generator and against exact chances."""

from collections import Counter

import numpy as np
import plain
import pytest

from AC_policy.paper import paper_study
from AC_policy.regions import cells, sample_orders

SMALL = np.array([[0.1, 0.2], [0.3, 0.1], [1.0, 1.0], [0.55, 0.9], [0.3, 0.1], [0.95, 0.2]])
"""Six points: one is exactly 1, which belongs to the last cell, and two are the same."""
TRIALS = 100_000


def compare(counts, chances, trials, deviations=5.0):
    """Every observed frequency within some binomial standard deviations of its exact chance.

    Five: with a few hundred outcomes the largest of them exceeds that once in 10,000 seeds."""
    assert set(counts) <= set(chances)
    for outcome, chance in chances.items():
        error = np.sqrt(chance * (1 - chance) / trials)
        assert abs(counts[outcome] / trials - chance) <= deviations * error + 1e-12, outcome


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_chances_of_the_first_samples_are_exact(length):
    chances = plain.prefix_chances(SMALL, length)
    assert sum(chances.values()) == pytest.approx(1)
    orders = sample_orders(SMALL, TRIALS, np.random.default_rng(length))
    compare(Counter(map(tuple, orders[:, :length].tolist())), chances, TRIALS)


def test_the_first_level_is_two_by_two():
    """From its definition by hand: three cells hold points, the lower left three of them."""
    chances = plain.prefix_chances(SMALL, 1)
    expected = [1 / 9, 1 / 9, 1 / 6, 1 / 6, 1 / 9, 1 / 3]
    assert [chances[(i,)] for i in range(6)] == pytest.approx(expected)
    first = sample_orders(SMALL, TRIALS, np.random.default_rng(8))[:, 0]
    # 5 standard deviations of a frequency of 1/3 over 100,000 trials: .0075.
    np.testing.assert_allclose(np.bincount(first) / TRIALS, expected, atol=0.0075)


def test_all_free_cells_of_a_level_come_before_the_next():
    """The first three samples stand in the three cells that hold points, in any order."""
    orders = sample_orders(SMALL, 2000, np.random.default_rng(9))
    for order in orders:
        assert len({plain.cell_of(SMALL[i], 1) for i in order[:3]}) == 3


def test_copies_of_a_sampled_point_come_last():
    """No level tells them apart; two pairs of copies leave one of each, drawn evenly."""
    points = np.array([[0.2, 0.2], [0.2, 0.2], [0.8, 0.7], [0.8, 0.7], [1.0, 0.0]])
    chances = plain.prefix_chances(points, 5)
    orders = sample_orders(points, TRIALS, np.random.default_rng(10))
    compare(Counter(map(tuple, orders.tolist())), chances, TRIALS)
    for order in orders[:200]:
        assert {tuple(points[i]) for i in order[:3]} == {(0.2, 0.2), (0.8, 0.7), (1.0, 0.0)}


@pytest.mark.parametrize("level", [1, 2, 3, 5, 10])
def test_cells(level):
    """Two points share a number exactly where they share a cell; 1 is in the last one."""
    points = paper_study().task("mme").points()
    numbers = cells(points, level)
    for i in range(13):
        for j in range(13):
            alike = plain.cell_of(points[i], level) == plain.cell_of(points[j], level)
            assert (numbers[i] == numbers[j]) == alike
    assert cells(np.array([[1.0, 1.0]]), level) == cells(np.array([[1 - 1e-9] * 2]), level)


@pytest.mark.parametrize("benchmark", ["mme", "scienceqa_img"])
def test_second_sample_on_the_papers_points(benchmark):
    """Chances of the first two samples, exactly, on thirteen real settings."""
    points = paper_study().task(benchmark).points()
    orders = sample_orders(points, TRIALS, np.random.default_rng(11))
    pairs = Counter(map(tuple, orders[:, :2].tolist()))
    compare(pairs, plain.prefix_chances(points, 2), TRIALS)


def test_places_of_late_samples_against_the_plain_generator():
    """Mean place of every setting in the order, over the deep levels too."""
    points = paper_study().task("textvqa").points()
    rng = np.random.default_rng(12)
    slow = np.array([np.argsort(plain.sample_order(points, rng)) for _ in range(1500)])
    fast = np.argsort(sample_orders(points, 20_000, np.random.default_rng(13)), axis=1)
    # Standard deviation of a place is at most 4, so of a mean over 1500 trials .10; 4.5 of them.
    assert np.abs(slow.mean(0) - fast.mean(0)).max() < 0.46
    # Of their spread, about 4 / sqrt(2 * 1500) = .07.
    assert np.abs(slow.std(0) - fast.std(0)).max() < 0.33


def test_orders_are_permutations():
    orders = sample_orders(SMALL, 500, np.random.default_rng(14))
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
