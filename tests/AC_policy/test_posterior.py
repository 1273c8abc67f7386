"""The Bayesian posterior against conditioning one joint Gaussian, scale after scale."""

import functools
import math

import numpy as np
import plain
import pytest

from AC_policy.left_out import left_out
from AC_policy.noise import result_noise
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions, Setting, bayes_states, replay_bayes
from AC_policy.posterior import SCALE_POINTS, SCALE_RANGE, posterior
from AC_policy.prior import JITTER, RIDGE, Prior, learn_prior

SIZES = [0, 1, 2, 3, 4, 5, 7, 10, 12, 13]


def names():
    return list(paper_study().tasks)


def others_of(task):
    return [other for other in paper_study().tasks.values() if other is not task]


@functools.cache
def plain_prior_without(name):
    task = paper_study().tasks[name]
    return plain.plain_prior([(o.scores, o.performance) for o in others_of(task)], RIDGE, JITTER)


def both(task, rows, noise=0.0):
    """(fast, plain) posterior of a task when only `rows` were finetuned."""
    y = np.array([task.performance[i] if i in rows else math.nan for i in range(13)])
    points = plain.unit_square(task.scores)
    fast = posterior(task.points(), y, learn_prior(others_of(task)), noise)
    return fast, plain.PlainPosterior(
        points, y, plain_prior_without(task.benchmark), SCALE_RANGE, SCALE_POINTS
    )


def subsets(task, k):
    rng = np.random.default_rng([k, *task.benchmark.encode()])
    return [rng.permutation(13)[:k].tolist() for _ in range(2)]


@pytest.mark.parametrize("name", names())
def test_prior_is_ridge_mean_and_covariance(name):
    task = paper_study().tasks[name]
    found, (mean, cov, noise) = learn_prior(others_of(task)), plain_prior_without(task.benchmark)
    # Both solve the same 6 x 6 systems, of condition below 1e4.
    np.testing.assert_allclose(found.mean, mean, atol=1e-10)
    np.testing.assert_allclose(found.cov, cov, atol=1e-10)
    assert found.noise == pytest.approx(noise, rel=1e-10)
    assert name not in found.benchmarks
    np.testing.assert_allclose(
        found.score(task.points()),
        plain.design(plain.unit_square(task.scores)) @ mean,
        atol=1e-10,
    )


def test_prior_passes_over_what_is_hardly_finetuned():
    """Seven rows teach nothing; eight do, with performance scaled over those eight."""
    tasks = list(paper_study().tasks.values())
    seven = learn_prior([*tasks[:4], tasks[4].hide(range(7))])
    assert seven.benchmarks == tuple(task.benchmark for task in tasks[:4])
    rows = [0, 2, 3, 5, 7, 8, 10, 12]
    eight = learn_prior([*tasks[:4], tasks[4].hide(rows)])
    fits = [plain.plain_coefficients(t.scores, t.performance, range(13), RIDGE) for t in tasks[:4]]
    fits.append(plain.plain_coefficients(tasks[4].scores, tasks[4].performance, rows, RIDGE))
    np.testing.assert_allclose(eight.mean, np.mean([w for w, _ in fits], axis=0), atol=1e-10)
    assert eight.noise == pytest.approx(np.mean([v for _, v in fits]), rel=1e-10)


@pytest.mark.parametrize("k", SIZES)
def test_mean_std_covariance_and_weights(k):
    for task in paper_study().tasks.values():
        for rows in subsets(task, k):
            fast, slow = both(task, rows)
            mean, std = slow.mean_std()
            # One inverts 7 x 7, the other k x k; f is of order 1, variances of order .01.
            np.testing.assert_allclose(fast.mean, mean, atol=1e-9)
            np.testing.assert_allclose(fast.cov_nn, slow.cov, atol=1e-10)
            np.testing.assert_allclose(fast.mean_Gn, slow.means, atol=1e-8)
            np.testing.assert_allclose(fast.weight_G, slow.weights, atol=1e-10)
            np.testing.assert_allclose(fast.scale_G, slow.scales, rtol=1e-12)
            np.testing.assert_allclose(fast.std, std, atol=1e-8)
            assert fast.scaled == (k >= 2)
            assert fast.finetuned.tolist() == [i in rows for i in range(13)]


@pytest.mark.parametrize("k", [k for k in SIZES if k])
def test_expected_gain_of_those_open(k):
    for task in paper_study().tasks.values():
        rows = subsets(task, k)[0]
        fast, slow = both(task, rows)
        assert fast.incumbent() == slow.incumbent()
        # A sum over a grid of .001 standard deviations: its error is below its square.
        still = ~fast.finetuned
        expected = np.array(slow.expected_gain())
        np.testing.assert_allclose(fast.expected_gain()[still], expected[still], atol=2e-7)
        if k >= 2:
            # Measured ones differ by what was measured; the square root of a floor is 3e-8.
            np.testing.assert_allclose(fast.expected_gain()[~still], 0, atol=2e-8)


def test_one_run_gains_nothing_over_itself():
    fast, slow = both(paper_study().task("mme"), [4])
    assert slow.expected_gain()[4] == 0
    assert fast.expected_gain()[4] == pytest.approx(0, abs=2e-8)


def test_before_any_run_the_gain_is_the_mean():
    fast, slow = both(paper_study().task("mme"), [])
    np.testing.assert_allclose(fast.expected_gain(), slow.mean_std()[0], atol=1e-10)
    assert fast.incumbent() is None


@pytest.mark.parametrize("k", [k for k in SIZES if k >= 2])
def test_performance_in_its_unit(k):
    """Mean and spread of performance; of one that was finetuned, the result and its noise."""
    for task in paper_study().tasks.values():
        for rows in subsets(task, k):
            fast, slow = both(task, rows, noise=0.25)
            mean, std = fast.performance()
            expected, spread = slow.performance()
            unit = np.ptp(task.performance[rows])
            # The scale reaches 20 times the spread, and rounding with it.
            np.testing.assert_allclose(mean, expected, atol=1e-8 * unit)
            still = ~fast.finetuned
            np.testing.assert_allclose(std[still], spread[still], rtol=1e-7)
            np.testing.assert_allclose(mean[rows], task.performance[rows], atol=1e-8 * unit)
            assert (std[rows] == 0.25).all()


def test_means_of_performance_stand_in_the_order_of_the_ranking():
    for task in paper_study().tasks.values():
        for rows in subsets(task, 4):
            fast, slow = both(task, rows)
            ranking = plain.ranked(slow.mean_std()[0])
            assert plain.ranked(fast.performance()[0]) == ranking


@pytest.mark.parametrize("k", [6, 8, 13])
def test_left_out_is_a_posterior_without_the_row(k):
    """Every finetuned row predicted from the others by the plain posterior, one after another."""
    for task in list(paper_study().tasks.values())[::3]:
        rows = subsets(task, k)[0]
        points = plain.unit_square(task.scores)[rows]
        y = task.performance[rows]
        shuffled = np.random.default_rng(k).permutation(y)
        found = left_out(points, np.stack([y, shuffled]), learn_prior(others_of(task)))
        for values, predicted in zip((y, shuffled), found, strict=True):
            for row in range(k):
                seen = values.copy()
                seen[row] = math.nan
                slow = plain.PlainPosterior(
                    points, seen, plain_prior_without(task.benchmark), SCALE_RANGE, SCALE_POINTS
                )
                expected = slow.performance()[0][row]
                # Same numbers through other inverses, scales up to 20 times the spread.
                assert predicted[row] == pytest.approx(expected, abs=1e-7 * np.ptp(y))


@pytest.mark.parametrize(("name", "k"), [("mme", 2), ("mmmu_val", 4), ("textvqa_val", 1)])
def test_chances_against_drawing_one_by_one(name, k):
    """P(best), P(in the top 3) and the regret, the latter in units of f."""
    task = paper_study().tasks[name]
    rows = subsets(task, k)[0]
    noise = result_noise(task)
    fast, slow = both(task, rows, noise)
    odds = fast.simulate(40_000, np.random.default_rng(0))
    best, among, regret = slow.odds(noise, 8000, np.random.default_rng(1))
    # Standard errors of .0056 and .0025 on a chance of one half; 4.5 of their sum of squares.
    np.testing.assert_allclose(odds.best, best, atol=0.028)
    np.testing.assert_allclose(odds.among_top, among, atol=0.028)
    # Regrets are below .6 with a standard deviation below .3, so 4.5 standard errors are .016.
    assert odds.regret == pytest.approx(regret, abs=0.016)
    assert odds.best.sum() == pytest.approx(1)
    assert odds.among_top.sum() == pytest.approx(3)


def test_noise_of_results_enters_the_chances_only():
    task = paper_study().task("mmbench")
    rows = [0, 1, 11, 12, 4]
    quiet, _ = both(task, rows)
    noisy, slow = both(task, rows, noise=3.0)
    still = quiet.simulate(40_000, np.random.default_rng(2))
    moved = noisy.simulate(40_000, np.random.default_rng(2))
    best, _, regret = slow.odds(np.full(13, 3.0), 8000, np.random.default_rng(3))
    # As above: 4.5 standard errors.
    np.testing.assert_allclose(moved.best, best, atol=0.028)
    assert np.abs(moved.best - still.best).max() > 0.1
    assert moved.regret == pytest.approx(still.regret, abs=1e-3)
    assert moved.regret == pytest.approx(regret, abs=0.016)


def test_two_equal_results_fix_no_scale():
    task = paper_study().task("mmmu")
    y = np.full(13, math.nan)
    y[[3, 12]] = task.performance[[3, 12]]  # both 34.6
    fast = posterior(task.points(), y, learn_prior(others_of(task)))
    slow = plain.PlainPosterior(
        task.points(), y, plain_prior_without(task.benchmark), SCALE_RANGE, SCALE_POINTS
    )
    assert not fast.scaled
    np.testing.assert_allclose(fast.mean, slow.mean_std()[0], atol=1e-10)
    assert np.isnan(fast.simulate(100, np.random.default_rng(0)).regret) == (
        not fast.finetuned.any()
    )


def test_other_scale_grids_and_a_prior_by_hand():
    """The grid's limits are respected, and nothing hangs on the paper's own prior."""
    rng = np.random.default_rng(6)
    points, y = rng.random((9, 2)), 50 + 10 * rng.random(9)
    y[[2, 5, 6]] = math.nan
    root = rng.normal(size=(6, 6)) / 3
    prior = Prior(rng.normal(size=6), root @ root.T + 0.02 * np.eye(6), 0.03, ())
    fast = posterior(points, y, prior, 0.0, (0.5, 3.0))
    slow = plain.PlainPosterior(
        points, y, (prior.mean, prior.cov, prior.noise), (0.5, 3.0), SCALE_POINTS
    )
    assert fast.scale_G[0] == pytest.approx(0.5 * np.nanmax(y) - 0.5 * np.nanmin(y))
    # `points` are not scaled again here, so both see the same columns.
    np.testing.assert_allclose(fast.mean, slow.mean_std()[0], atol=1e-9)
    np.testing.assert_allclose(fast.std, slow.mean_std()[1], atol=1e-8)
    np.testing.assert_allclose(fast.performance()[0], slow.performance()[0], atol=1e-7)


@pytest.mark.parametrize("name", names())
def test_bayes_finetunes_in_the_order_of_the_plain_policy(name):
    """Whole replays: order and ranking before every run, with everything learned plainly."""
    task = paper_study().tasks[name]
    order, rankings = plain.bayes_order(
        plain.unit_square(task.scores),
        task.performance,
        plain_prior_without(task.benchmark),
        SCALE_RANGE,
        SCALE_POINTS,
    )
    replay = replay_bayes(task, others_of(task), Setting(bayes=BayesOptions(draws=100)))
    assert replay.orders[0].tolist() == order
    for step, ranking in zip(replay.steps, rankings, strict=False):
        # Equal results (MMMU) are in either order; what they are worth is not.
        ours = task.performance[plain.ranked(step.scores[0])]
        np.testing.assert_array_equal(ours, task.performance[ranking])


def test_the_stop_is_where_the_expected_regret_falls_to_its_tolerance():
    """From the second run on, and with the regret that drawing one by one gives."""
    task = paper_study().task("vizwiz")
    options = BayesOptions(draws=20_000)
    replay = replay_bayes(task, others_of(task), Setting(bayes=options))
    below = [k for k in range(2, 14) if replay.regret[k] <= options.tolerance]
    assert replay.stopped == below[0]
    for order, state in bayes_states(task, others_of(task), options, 4):
        if len(order) in (2, 4):
            _, slow = both(task, order)
            _, _, regret = slow.odds(np.zeros(13), 8000, np.random.default_rng(7))
            # As above: 4.5 standard errors of draws that spread by less than .1 from two runs on.
            assert replay.regret[len(order)] == pytest.approx(regret, abs=0.006)
            assert state.incumbent() == slow.incumbent()
