"""The published policy's predictions and replays against scikit-learn's own pipeline."""

import itertools

import numpy as np
import plain
import pytest

from AC_policy.backtest import CURVES, backtest
from AC_policy.features import min_max, polynomial
from AC_policy.paper import paper_study
from AC_policy.policies import Setting, predict, replay_paper, replay_random

SCALES = ("candidates", "finetuned")


@pytest.fixture(scope="module")
def study():
    return paper_study()


@pytest.fixture(scope="module", params=SCALES)
def replayed(request):
    """(setting, backtest) of 200 trials, scaled over all candidates or over those finetuned."""
    setting = Setting(trials=200, seed=1, scale=request.param)
    return setting, backtest(paper_study(), "paper", setting)


def features(task, sets, scale):
    if scale == "candidates":
        return polynomial(task.points())[None]
    return np.stack([polynomial(min_max(task.scores, task.scores[rows])) for rows in sets])


@pytest.mark.parametrize("k", range(2, 14))
@pytest.mark.parametrize("scale", SCALES)
def test_predictions_are_those_of_the_pipeline(study, scale, k):
    """MinMaxScaler, PolynomialFeatures and LinearRegression, over random subsets of k."""
    rng = np.random.default_rng([k, 1])
    for task in study.tasks.values():
        sets = np.array([np.sort(rng.permutation(13)[:k]) for _ in range(6)])
        found = predict(features(task, sets, scale), sets, task.performance)
        for rows, prediction in zip(sets, found, strict=True):
            expected = plain.published_prediction(task.scores, task.performance, rows, scale)
            # Condition numbers reach 1e6 at six rows, which leaves 1e-10 of predictions that then
            # lie up to hundreds of ranges outside of what was measured.
            size = max(np.ptp(task.performance), np.ptp(expected))
            np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-8 * size)


def test_every_pair_follows_the_line_through_it(study):
    """Minimum norm on two rows: predictions change only along the difference of the two."""
    sets = np.array(list(itertools.combinations(range(13), 2)))
    for task in study.tasks.values():
        X, y = polynomial(task.points()), task.performance
        found = predict(X[None], sets, y)
        for (i, j), prediction in zip(sets, found, strict=True):
            along = (X - (X[i] + X[j]) / 2) @ (X[j] - X[i]) / np.sum((X[j] - X[i]) ** 2)
            expected = (y[i] + y[j]) / 2 + along * (y[j] - y[i])
            # The nearest two settings are .02 apart, so rounding grows at most 1e4 times.
            np.testing.assert_allclose(prediction, expected, rtol=0, atol=1e-8 * np.ptp(y))


@pytest.mark.slow
def test_curves_are_those_of_plain_loops(study, replayed):
    """First hit, recall, regret and tau, trial after trial over the same orders."""
    setting, result = replayed
    tasks = list(study.tasks.items())
    for name, task in tasks[::2] if setting.scale == "candidates" else tasks[1::3]:
        entry = result.benchmarks[name]
        orders = replay_paper(task, [], setting).orders
        expected = plain.published_curves(
            task.scores, task.performance, orders, setting.scale, entry.noise_band
        )
        assert set(CURVES) <= set(expected)
        for curve in CURVES:
            # Means of the same numbers. Where the law passes through two results that are equal
            # (MMMU has two pairs) rounding decides the order of the two, which moves tau by up
            # to .0025 in one trial of twenty.
            tied = curve == "weighted_tau" and len(set(task.performance)) < 13
            np.testing.assert_allclose(
                entry.curves[curve], expected[curve], atol=5e-4 if tied else 1e-9, err_msg=curve
            )
        np.testing.assert_allclose(entry.largest_regret, expected["largest_regret"], atol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_a_replay_ranks_by_the_pipelines_predictions(study, scale):
    """Every step of a few trials: nothing before the second run, then the fit to those run."""
    task = study.task("scienceqa_img")
    replay = replay_paper(task, [], Setting(trials=5, seed=3, scale=scale))
    assert [step.scores is None for step in replay.steps] == [True] * 2 + [False] * 12
    for k, step in enumerate(replay.steps[2:], 2):
        for trial, order in enumerate(replay.orders):
            expected = plain.published_prediction(
                task.scores, task.performance, sorted(order[:k]), scale
            )
            size = max(np.ptp(task.performance), np.ptp(expected))
            # As above.
            np.testing.assert_allclose(step.scores[step.which[trial]], expected, atol=1e-8 * size)


def test_before_the_second_sample_only_the_best_itself_is_a_hit(study, replayed):
    setting, result = replayed
    for name, task in study.tasks.items():
        orders = replay_paper(task, [], setting).orders
        first = np.mean([order[0] == task.performance.argmax() for order in orders])
        hit = result.benchmarks[name].curves["first_hit"]
        assert hit[0] == 0
        assert hit[1] == pytest.approx(first)
        assert np.isnan(result.benchmarks[name].curves["recall_at_3"][:2]).all()


def test_mean_is_over_benchmarks(replayed):
    _, result = replayed
    for curve in ("first_hit", "recall_at_3", "regret_held"):
        rows = [entry.curves[curve] for entry in result.benchmarks.values()]
        expected = [sum(row[k] for row in rows) / 8 for k in range(14)]
        np.testing.assert_allclose(result.mean(curve), expected, atol=1e-12)


def test_the_scales_differ_only_below_full_rank(study):
    """From six rows on least squares does not notice an affine change of its inputs."""
    task = study.task("okvqa")
    rng = np.random.default_rng(5)
    differs = False
    for k in (3, 4, 7, 9, 13):
        sets = np.array([np.sort(rng.permutation(13)[:k]) for _ in range(10)])
        over, own = (predict(features(task, sets, s), sets, task.performance) for s in SCALES)
        # Well above rounding at condition numbers near 1e3, far below any real difference.
        same = np.allclose(over, own, rtol=0, atol=1e-6 * np.ptp(task.performance))
        differs |= not same
        assert same or k < 6
    assert differs


def test_random_order_ranks_by_what_was_measured(study):
    """Replays of the random policy, step after step, against sorting by hand."""
    task = study.task("seed")
    replay = replay_random(task, [], Setting(trials=20, seed=2))
    best = int(task.performance.argmax())
    result = backtest(study, "random", Setting(trials=20, seed=2)).benchmarks[task.benchmark]
    for k, step in enumerate(replay.steps):
        hits = []
        for trial, order in enumerate(replay.orders):
            places = plain.ranked(step.scores[step.which[trial]])
            measured = sorted(order[:k], key=lambda i: -task.performance[i])
            assert places[:k] == measured
            hits.append(best in places[:3])
        assert result.curves["recall_at_3"][k] == pytest.approx(np.mean(hits))
        trained = [best in order[:k] for order in replay.orders]
        assert result.curves["first_hit"][k] == pytest.approx(np.mean(trained))
