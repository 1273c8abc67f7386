"""Metrics against scipy and against enumeration."""

import itertools

import numpy as np
import plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from AC_policy import metrics
from AC_policy.paper import paper_study


@pytest.mark.parametrize("levels", [None, 2, 4])
@pytest.mark.parametrize("n", [2, 3, 5, 13])
def test_weighted_tau_is_scipys(n, levels):
    """`levels` distinct values make ties, in the truth, in the prediction and in both at once."""
    rng = np.random.default_rng(n)
    for _ in range(40):
        draw = rng.random if levels is None else lambda size: rng.integers(0, levels, size) * 1.0
        truth, predictions = draw(n), draw((3, n))
        if np.ptp(truth) == 0:
            continue
        found = metrics.weighted_tau(truth, predictions)
        expected = [plain.plain_tau(truth, row) for row in predictions]
        # The same sums of at most 156 terms below 2 in another order.
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_prediction_that_orders_nothing_has_tau_zero_where_scipy_has_no_number():
    truth = np.arange(6.0)
    assert np.isnan(stats.weightedtau(truth, np.ones(6)).statistic)
    assert metrics.weighted_tau(truth, np.ones((1, 6))).tolist() == [0.0]


def test_weighted_tau_in_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    truth, predictions = rng.random(7), rng.random((11, 7))
    whole = metrics.weighted_tau(truth, predictions)
    monkeypatch.setattr(metrics, "PAIRS_AT_ONCE", 2 * 49)
    np.testing.assert_array_equal(metrics.weighted_tau(truth, predictions), whole)


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=9), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_top_and_regret(values, m, data):
    """Best of the top m, ties in the table's order, over truths and predictions with ties."""
    truth = np.array(values, float)
    if np.ptp(truth) == 0:
        truth[0] += 1
    prediction = np.array(data.draw(st.lists(st.integers(0, 4), min_size=9, max_size=9)), float)
    prediction = prediction[: len(truth)]
    regret = plain.plain_regret(truth)
    places = plain.ranked(prediction)
    assert metrics.top(prediction[None], m)[0].tolist() == places[:m]
    assert metrics.normalised_regret(truth) == pytest.approx(regret)
    expected = min(regret[i] for i in places[:m])
    assert metrics.top_regret(truth, prediction[None], m)[0] == pytest.approx(expected)


def test_regret_by_hand():
    truth = np.array([10.0, 30.0, 20.0, 25.0])
    assert metrics.normalised_regret(truth).tolist() == [1.0, 0.0, 0.5, 0.25]
    prediction = np.array([[4.0, 1.0, 3.0, 2.0]])
    assert metrics.top_regret(truth, prediction, 2).tolist() == [0.5]
    assert metrics.top_regret(truth, prediction, 3).tolist() == [0.25]


def test_ties_within_the_band_count_as_the_best_its_edge_included():
    regret = np.array([0.0, 0.03, 0.031, 1.0])
    assert metrics.with_ties(regret, 0.03).tolist() == [0.0, 0.0, 0.031, 1.0]


@pytest.mark.parametrize("m", [1, 3, 5])
def test_a_random_top_against_all_sets(m):
    for task in paper_study().tasks.values():
        expected = plain.random_top(task.performance, m)
        assert metrics.random_top_regret(task.performance, m) == pytest.approx(expected)


def test_a_random_top_of_a_long_table():
    """Too many sets to list: the chance that the best taken is the i-th best, all the same."""
    truth = np.random.default_rng(4).random(90)  # 117,480 sets of 3
    regret = np.sort(plain.plain_regret(truth))
    expected = np.mean([regret[first] for first, *_ in itertools.combinations(range(90), 3)])
    recall, mean = metrics.random_top_regret(truth, 3)
    assert recall == pytest.approx(3 / 90)
    assert mean == pytest.approx(expected)


def test_two_best_are_both_the_best():
    truth = np.array([1.0, 3.0, 3.0, 2.0, 0.0])
    recall, _ = metrics.random_top_regret(truth, 2)
    assert recall == pytest.approx(1 - 3 / 10)  # of 10 pairs 3 hold neither
    assert plain.random_top(truth, 2)[0] == pytest.approx(recall)
