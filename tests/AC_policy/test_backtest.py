"""Backtests: curves that mean what they say, and `bayes` that never looks ahead."""

import dataclasses
import json

import numpy as np
import pytest

from AC_policy import backtest as backtests
from AC_policy.backtest import backtest, to_json
from AC_policy.noise import result_noise, tie_band
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions, Setting, bayes_states, replay_bayes
from AC_policy.study import Study
from llava.errors import TableError, UsageError


@pytest.fixture(scope="module")
def study():
    return paper_study()


@pytest.fixture(scope="module")
def bayes(study):
    return backtest(study, "bayes")


def test_bayes_reaches_its_figures(bayes):
    recall, regret = bayes.mean("recall_at_3"), bayes.mean("regret_top3")
    assert recall[3] >= 0.62
    assert recall[4] >= 0.87
    assert recall[5] == 1.0
    assert regret[4] <= 0.009


def test_bayes_stops_early_with_little_lost(bayes):
    stops = np.array([entry.stopped for entry in bayes.benchmarks.values()])
    assert stops[:, 0].mean() < 6.5
    assert stops[:, 1].max() < 0.01
    for entry in bayes.benchmarks.values():
        k = entry.stopped[0]
        assert entry.expected_regret[k] <= 0.01
        assert (entry.expected_regret[2:k] > 0.01).all()


def test_bayes_never_sees_what_it_has_not_finetuned(study):
    """Scrambling the performance of what is not yet finetuned changes nothing before it is."""
    task, *others = study.tasks.values()
    original = list(bayes_states(task, others, BayesOptions(), 5))
    order = original[-1][0]
    scrambled = task.performance.copy()
    hidden = [i for i in range(13) if i not in order]
    scrambled[hidden] = task.performance.min() - np.arange(len(hidden)) * 50.0
    changed = dataclasses.replace(task, performance=scrambled)
    for (order_a, a), (order_b, b) in zip(
        original, bayes_states(changed, others, BayesOptions(), 5), strict=True
    ):
        assert order_a == order_b
        np.testing.assert_array_equal(a.mean, b.mean)


def test_the_prior_never_sees_the_benchmark_itself(study):
    """Replaying one benchmark gives the same whatever its own entry among the others would say."""
    tasks = list(study.tasks.values())
    alone = replay_bayes(tasks[2], [t for t in tasks if t is not tasks[2]], Setting())
    whole = backtest(study, "bayes").benchmarks["ok_vqa_val2014"]
    assert [tasks[2].representations[i] for i in alone.orders[0]] == whole.order


def test_a_benchmark_of_other_unit_and_offset_is_replayed_alike(study):
    task, *others = study.tasks.values()
    moved = dataclasses.replace(task, performance=3.5 * task.performance - 7, benchmark="own")
    first = replay_bayes(dataclasses.replace(task, benchmark="own"), others, Setting())
    second = replay_bayes(moved, others, Setting())
    np.testing.assert_array_equal(first.orders, second.orders)


def test_curves_end_where_everything_is_known(study, bayes):
    for entry in bayes.benchmarks.values():
        assert entry.curves["recall_at_1"][13] == 1
        assert entry.curves["regret_held"][13] == 0
        assert entry.expected_regret[13] == 0
    random = backtest(study, "random", Setting(trials=50))
    assert random.mean("first_hit")[13] == 1


def test_tables_random_row(study):
    """Table 1's Random row counts a run when the best setting was trained: k / 13 at k runs."""
    answer = to_json(backtest(study, "random", Setting(trials=4000)), study)
    row = answer["random_row"]
    assert row["published_first_hit"] == pytest.approx(0.9204)
    assert row["first_hit"] == pytest.approx(12 / 13, abs=0.01)  # 32,000 draws: s.e. 0.0015
    assert answer["mean"]["first_hit"][5] == pytest.approx(5 / 13, abs=0.012)


def test_first_hit_never_falls_and_bounds_recall(study):
    result = backtest(study, "paper", Setting(trials=300))
    for entry in result.benchmarks.values():
        hit = entry.curves["first_hit"]
        assert (np.diff(hit) >= 0).all()
        assert (hit[2:] >= entry.curves["recall_at_3"][2:]).all()


def test_same_seed_same_curves_and_benchmarks_do_not_disturb_each_other(study):
    one = backtest(study, "paper", Setting(trials=100, seed=4))
    again = backtest(study, "paper", Setting(trials=100, seed=4))
    other = backtest(study, "paper", Setting(trials=100, seed=5))
    fewer = Study({"mme": study.tasks["mme"]}, study.a, study.protocols, study.sources)
    alone = backtest(fewer, "paper", Setting(trials=100, seed=4))
    np.testing.assert_array_equal(one.mean("first_hit"), again.mean("first_hit"))
    assert (one.mean("first_hit") != other.mean("first_hit")).any()
    np.testing.assert_array_equal(
        one.benchmarks["mme"].curves["recall_at_3"], alone.benchmarks["mme"].curves["recall_at_3"]
    )


def test_ties_inside_the_noise_band(study):
    wide = backtest(study, "paper", Setting(trials=50), noise_band=0.999)
    none = backtest(study, "paper", Setting(trials=50), noise_band=0.0)
    assert wide.mean("regret_top3_ties")[4] == 0
    np.testing.assert_array_equal(none.mean("regret_top3_ties")[2:], none.mean("regret_top3")[2:])


def test_noise_of_a_result(study):
    """Documented for MME; elsewhere the standard error of an accuracy over its questions."""
    mme, mmbench = study.task("mme"), study.task("mmbench")
    np.testing.assert_array_equal(result_noise(mme), np.full(13, 20.0))
    assert tie_band(mme) == pytest.approx(20 / (1502.7 - 843.43))
    p = 65.72 / 100
    row = int(mmbench.performance.argmax())
    assert result_noise(mmbench)[row] == pytest.approx(100 * np.sqrt(p * (1 - p) / 4329))
    given = dataclasses.replace(mmbench, stderr=np.full(13, 1.5))
    np.testing.assert_array_equal(result_noise(given), np.full(13, 1.5))
    own = dataclasses.replace(mmbench, benchmark="my_benchmark")
    assert tie_band(own) == pytest.approx(0.03)
    assert np.isnan(result_noise(mmbench.hide([0, 1]))[2])


def test_intervals_are_nearly_calibrated_on_benchmarks_they_never_saw(bayes):
    """Nominal 80 %; the model's own Gaussian intervals are far too narrow after a few runs."""
    calibrated = np.array([pair[0] for k, pair in bayes.coverage.items() if k <= 7])
    gaussian = np.array([pair[1] for k, pair in bayes.coverage.items() if k <= 7])
    assert calibrated.min() > 0.65
    assert 0.7 < calibrated.mean() < 0.9
    assert gaussian.mean() < calibrated.mean() - 0.15


def test_json_is_whole_and_finite(bayes, study, tmp_path):
    from llava.files import write_json

    write_json(tmp_path / "b.json", to_json(bayes, study))
    answer = json.loads((tmp_path / "b.json").read_text())
    assert answer["benchmarks"]["mme"]["k"] == list(range(14))
    assert answer["benchmarks"]["mme"]["regret_held"][0] is None
    assert answer["baselines"]["A+C"]["mean"]["recall_at_3"] == 0.75
    assert answer["baselines"]["chance"]["mean"]["recall_at_3"] == pytest.approx(3 / 13)
    assert answer["constants"]["tolerance"] == 0.01


def test_what_cannot_be_backtested_says_why(study):
    with pytest.raises(UsageError, match="did you mean 'bayes'"):
        backtest(study, "bays")
    with pytest.raises(UsageError, match="--trials"):
        backtest(study, "paper", Setting(trials=0))
    with pytest.raises(UsageError, match="--scale finetuned"):
        backtest(study, "bayes", Setting(scale="finetuned"))
    hidden = {name: task.hide([0, 1, 2]) for name, task in study.tasks.items()}
    with pytest.raises(TableError, match="none of mmbench_en_dev"):
        backtest(Study(hidden, study.a, study.protocols, study.sources), "paper")
    two = {name: study.tasks[name] for name in ("mme", "mmmu_val")}
    with pytest.raises(TableError, match="--paper prior"):
        backtest(Study(two, study.a, study.protocols, study.sources), "bayes")


def test_a_study_without_prior_has_no_transferred_baseline(study):
    two = Study(
        {name: study.tasks[name] for name in ("mme", "mmmu_val")},
        study.a,
        study.protocols,
        study.sources,
    )
    found = backtest(two, "paper", Setting(trials=5)).baselines
    assert set(found) == {"A+C", "A", "C", "chance"}
    assert backtests.baselines(study.tasks.values()).keys() > found.keys()
