"""Recommendations: trust first, a ranking with calibrated intervals, the next run, the price."""

import dataclasses

import numpy as np
import pytest

from AC_policy.calibration import GAUSSIAN, bounds_after, bounds_from
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions
from AC_policy.recommend import recommend
from AC_policy.study import Study
from AC_policy.trust import judge
from llava.errors import TableError, UsageError


@pytest.fixture(scope="module")
def study():
    return paper_study()


def shown(study, benchmark, keep, performance=None):
    """The study with only `keep` finetuned on one benchmark."""
    task = study.task(benchmark)
    if performance is not None:
        task = dataclasses.replace(task, performance=np.asarray(performance, float))
    tasks = {**study.tasks, task.benchmark: task.hide(keep)}
    return Study(tasks, study.a, study.protocols, study.sources)


def test_recommendation_in_the_middle_of_the_work(study):
    part = shown(study, "mmbench", [0, 11, 12])
    answer = recommend(part, "MMBench", paper="off")
    assert (answer.k, answer.n) == (3, 13)
    assert answer.take == "openai/clip-vit-large-patch14.facebook/dinov2-large"
    assert answer.next == "openai/clip-vit-large-patch14"
    assert not answer.stop
    assert answer.expected_regret > answer.tolerance
    assert [row.rank for row in answer.ranking] == list(range(1, 14))
    predicted = [row.predicted for row in answer.ranking]
    assert predicted == sorted(predicted, reverse=True)
    assert sum(row.p_best for row in answer.ranking) == pytest.approx(1)
    for row in answer.ranking:
        assert row.low <= row.predicted <= row.high
        assert (row.measured is None) != row.finetuned
        if row.finetuned:
            assert row.predicted == pytest.approx(row.measured)
    assert answer.interval_errors > 0
    assert "mmbench_en_dev" not in answer.prior_from


def test_the_replay_is_the_policy_run_by_run(study):
    answer = recommend(study, "MME", paper="off", replay=True)
    run = []
    for step in answer.replay:
        assert step.k == len(run)
        partial = recommend(shown(study, "mme", run), "mme", paper="off")
        assert partial.stop == step.stop
        assert partial.take == step.held
        if step.expected_regret is not None:
            assert partial.expected_regret == pytest.approx(step.expected_regret)
        if step.stop:
            assert partial.next is None
            break
        run.append(study.task("mme").representations.index(partial.next))
    assert answer.replay[-1].stop
    assert answer.replay[-1].true_regret < 0.01


def test_replay_needs_the_truth(study):
    with pytest.raises(UsageError, match=r"--replay.*3 of 13"):
        recommend(shown(study, "mme", [0, 1, 2]), "mme", paper="off", replay=True)


def test_nothing_finetuned_yet_ranks_by_the_prior(study):
    answer = recommend(shown(study, "mme", []), "mme", paper="off")
    assert answer.take is None
    assert answer.expected_regret is None
    assert answer.ranking[0].predicted is None
    assert answer.next == answer.ranking[0].representation
    assert not answer.stop


def test_the_paper_lends_its_benchmarks_to_an_own_table(study):
    own = Study(
        {"mine": dataclasses.replace(study.task("mme").hide([0, 3]), benchmark="mine")},
        "cosine",
        {},
        (),
    )
    answer = recommend(own, "mine", paper="prior")
    assert len(answer.prior_from) == 8
    assert answer.trust.verdict == "not testable yet"
    assert "2 of 6" in answer.trust.reason
    assert "8 of 8" in answer.trust.reason
    with pytest.raises(TableError, match="--paper prior"):
        recommend(own, "mine", paper="off")


def test_where_the_law_fails_that_is_said_and_nothing_is_ranked(study):
    """Performance shuffled against A and C: the test notices; on request it ranks all the same."""
    task = study.task("mme")
    shuffled = task.performance[np.random.default_rng(1).permutation(13)]
    part = shown(study, "mme", range(13), shuffled)
    answer = recommend(part, "mme", paper="off")
    assert answer.trust.verdict == "fails"
    assert answer.ranking is None
    assert answer.next is None
    assert recommend(part, "mme", paper="off", rank_anyway=True).ranking is not None


def test_the_test_of_the_law_keeps_its_level(study):
    """On shuffled performance it holds in about 5 % of the cases: at most 7 of 40 (p = 0.002)."""
    tasks = list(study.tasks.values())
    held = 0
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(13)
        task = dataclasses.replace(tasks[0], performance=tasks[0].performance[order])
        trust = judge(task, tasks[1:], [], BayesOptions())
        held += next(t for t in trust.tests if t.benchmark == task.benchmark).holds
    assert held <= 7


def test_the_law_holds_on_the_papers_benchmarks(study):
    task, *others = study.tasks.values()
    trust = judge(task, others, [], BayesOptions())
    assert trust.verdict == "holds"
    assert len(trust.tests) == 8
    assert all(test.holds and test.r2_loo > test.null_p95 for test in trust.tests)


def test_other_benchmarks_decide_where_this_one_is_not_testable(study):
    task, *others = study.tasks.values()
    trust = judge(task.hide([0, 1]), others, [], BayesOptions())
    assert trust.verdict == "holds"
    assert "2 of 6" in trust.reason
    assert "7 of 7" in trust.reason


def test_rows_near_the_top_cannot_test_the_law(study):
    """After six runs of the policy nothing poor is finetuned: no verdict, but a way to one."""
    task, *others = study.tasks.values()
    order = [0, 11, 12, 1, 2, 3]
    trust = judge(task.hide(order), [], others, BayesOptions())
    assert trust.verdict == "not testable yet"
    assert "ranks low would test it" in trust.reason
    assert judge(task.hide([*order, 9]), [], others, BayesOptions()).verdict == "holds"


def test_bounds_come_from_the_errors_of_other_benchmarks(study):
    _, *others = study.tasks.values()
    bounds = bounds_after(others, BayesOptions(), 4)
    assert bounds.low < GAUSSIAN.low  # the poor candidates end further down than the model expects
    assert bounds.high > 0
    assert bounds.errors == 7 * 9
    assert bounds_after(others[:2], BayesOptions(), 4) == GAUSSIAN
    assert bounds_from([np.array([-3.0, -2.0]), np.array([-1.0, -4.0])]).high == 0.0


def test_percentages_stay_percentages(study):
    answer = recommend(shown(study, "mmbench", [0, 3]), "mmbench", paper="off")
    assert min(row.low for row in answer.ranking) >= 0
    assert max(row.high for row in answer.ranking) <= 100


def test_lower_is_better_is_shown_as_measured(study):
    task = study.task("mme")
    own = dataclasses.replace(task, benchmark="err", performance=task.performance - 2000, sign=-1)
    part = Study({**study.tasks, "err": own.hide([0, 3, 5])}, "cosine", {}, ())
    answer = recommend(part, "err", paper="off")
    rows = {row.representation: row for row in answer.ranking}
    name = task.representations[0]
    assert rows[name].measured == pytest.approx(2000 - task.performance[0])
    assert all(row.low <= row.predicted <= row.high for row in answer.ranking)
    assert answer.take == name


def test_ties_are_what_a_rerun_might_favour(study):
    answer = recommend(study, "mmbench", paper="off")
    assert answer.take_ties == ["openai/clip-vit-large-patch14-336.facebook/dinov2-large"]
    assert answer.noise == pytest.approx(0.72, abs=0.01)


def test_scale_finetuned_needs_two_rows_and_is_recorded(study):
    with pytest.raises(UsageError, match="needs 2 finetuned rows"):
        recommend(shown(study, "mme", [4]), "mme", paper="off", scale="finetuned")
    answer = recommend(shown(study, "mme", [0, 3, 9]), "mme", paper="off", scale="finetuned")
    assert answer.scale == "finetuned"
