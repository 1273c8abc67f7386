"""What a sweep runs next: the policy's own choice, votes of benchmarks, limits, estimated A."""

import dataclasses
import json

import numpy as np
import pytest

from AC_policy.batch import batch
from AC_policy.candidates import in_order, view_of
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions
from AC_policy.posterior import posterior
from AC_policy.prior import learn_prior
from AC_policy.propose import Limits, propose
from AC_policy.recommend import recommend
from AC_policy.study import Study
from llava.__main__ import main
from llava.errors import UsageError

COMBINATIONS = (11, 12)
OPTIONS = BayesOptions(draws=4000)


@pytest.fixture(scope="module")
def names():
    return paper_study().task("mme").representations


def part(finetuned, benchmarks=None, unaligned=()):
    """The paper's study with only some rows finetuned, and some without A."""
    tasks = {}
    for name, task in paper_study().tasks.items():
        if benchmarks is None or name in benchmarks:
            shown = task.hide([i for i in finetuned if i not in unaligned])
            kept = shown.only([i for i in range(13) if i not in unaligned])
            apart = {task.representations[i]: float(task.scores[i, 1]) for i in unaligned}
            tasks[name] = dataclasses.replace(kept, unaligned=apart)
    return Study(tasks, "cosine", {}, ())


@pytest.mark.parametrize("finetuned", [[], [4], [0, 12], [0, 11, 12], [0, 1, 3, 9]])
@pytest.mark.parametrize("benchmark", ["mmbench_en_dev", "textvqa_val"])
def test_one_benchmark_and_one_at_once_is_what_recommend_says(finetuned, benchmark):
    study = part(finetuned, [benchmark])
    said = recommend(study, benchmark, options=OPTIONS)
    found = propose(study, [benchmark], options=OPTIONS)
    entry = found.benchmarks[benchmark]
    assert found.stage1 == []
    assert found.stage2 == ([said.next] if said.next else [])
    assert (found.stop, entry.stop, entry.take) == (said.stop, said.stop, said.take)
    assert (entry.k, entry.n, entry.trust) == (said.k, said.n, said.trust.verdict)
    if entry.expected_regret is not None:
        # Both are means of 4,000 draws, whose regret has a standard deviation below 0.2.
        assert entry.expected_regret == pytest.approx(said.expected_regret, abs=0.015)


def test_most_votes_first(names):
    """Every benchmark alone, then all together: who is asked for most often is run."""
    study = part([0, 5])
    alone = [propose(study, [name], options=OPTIONS).stage2[0] for name in study.tasks]
    together = propose(study, list(study.tasks), options=OPTIONS)
    most = max(alone.count(name) for name in alone)
    assert together.stage2[0] in {name for name in alone if alone.count(name) == most}
    assert [entry.next for entry in together.benchmarks.values()] == alone
    assert together.finetuned == sorted([names[0], names[5]])


def test_several_at_once_are_different_and_not_run_before():
    study = part([0, 5])
    found = propose(study, list(study.tasks), Limits(at_once=4), options=OPTIONS)
    assert len(found.stage2) == len(set(found.stage2)) == 4
    assert not set(found.stage2) & set(found.finetuned)


def test_a_batch_does_not_take_twins():
    """Two candidates at one point, and noise that leaves nothing open: the second tells nothing."""
    tasks = list(paper_study().tasks.values())
    prior = dataclasses.replace(learn_prior(tasks), noise=1e-6)
    points = np.array([[0.9, 0.9], [0.9, 0.9], [0.7, 0.6], [0.0, 0.0]])
    state = posterior(points, np.full(4, np.nan), prior)
    merit = np.array([1.0, 0.99, 0.5, 0.2])
    assert batch(state, merit, 1, np.random.default_rng(0)) == [0]
    assert batch(state, merit, 2, np.random.default_rng(0))[1] != 1
    barred = np.array([-np.inf, -np.inf, 0.5, -np.inf])
    assert batch(state, barred, 3, np.random.default_rng(0)) == [2]
    assert batch(state, np.full(4, -np.inf), 3, np.random.default_rng(0)) == []


def test_nothing_finetuned_yet():
    found = propose(part([]), ["MME", "TextVQA"], options=OPTIONS)
    assert list(found.benchmarks) == ["mme", "textvqa_val"]
    assert len(found.stage2) == 1
    assert not found.stop
    assert found.finetuned == []


def test_everything_finetuned_stops():
    found = propose(paper_study(), ["mme"], paper="off", options=OPTIONS)
    assert found.stop
    assert found.reason == "every candidate is finetuned"
    assert found.stage1 == found.stage2 == []


def test_little_to_gain_stops():
    found = propose(part([0, 11, 12]), ["mmbench_en_dev", "mme"], options=OPTIONS)
    assert not found.stop
    lax = propose(
        part([0, 11, 12]),
        ["mmbench_en_dev", "mme"],
        options=dataclasses.replace(OPTIONS, tolerance=0.5),
    )
    assert lax.stop
    assert "promise too little" in lax.reason
    assert "tolerance 50 %" in lax.reason


def shuffled(seed=1):
    """A study of one benchmark on which performance has nothing to do with A and C."""
    task = paper_study().task("mme")
    order = np.random.default_rng(seed).permutation(13)
    own = dataclasses.replace(task, benchmark="own", performance=task.performance[order])
    return Study({"own": own.hide([0, 1, 2, 3, 5, 7, 9, 11])}, "cosine", {}, ())


def test_where_the_law_fails_it_stops_and_says_so():
    study = shuffled()
    found = propose(study, ["own"], options=OPTIONS)
    assert found.benchmarks["own"].trust == "fails"
    assert found.stop
    assert "the law fails its test: left-out R²" in found.reason
    anyway = propose(study, ["own"], options=OPTIONS, rank_anyway=True)
    assert not anyway.stop
    assert len(anyway.stage2) == 1


def test_a_benchmark_on_which_the_law_fails_has_no_vote():
    study = part([0, 1, 2, 3, 5, 7, 9, 11], ["textvqa_val"])
    joined = Study({**study.tasks, **shuffled().tasks}, "cosine", {}, ())
    found = propose(joined, ["own", "textvqa_val"], options=OPTIONS)
    assert found.benchmarks["own"].stop
    assert found.stage2 == [found.benchmarks["textvqa_val"].next]


def test_limits():
    study, benchmarks = part([0, 5]), ["mme", "textvqa_val"]
    enough = propose(study, benchmarks, Limits(stage2=2), options=OPTIONS)
    assert enough.stop
    assert "2 representations are finetuned, and --most-stage2 is 2" in enough.reason
    one = propose(study, benchmarks, Limits(at_once=3, stage2=3), options=OPTIONS)
    assert len(one.stage2) == 1
    for wrong in ({"at_once": 0}, {"stage1": -1}, {"stage2": -1}):
        with pytest.raises(UsageError, match="expected"):
            Limits(**wrong)


def test_no_more_stage_1_than_allowed():
    study = part([0], ["mme"], COMBINATIONS)
    asked = propose(study, ["mme"], Limits(at_once=13, stage1=12), options=OPTIONS)
    assert len(asked.stage1) == 1
    none = propose(study, ["mme"], Limits(at_once=13, stage1=11), options=OPTIONS)
    assert none.stage1 == []
    assert len(none.stage2) == 10
    assert none.benchmarks["mme"].n == 11


@pytest.mark.parametrize("benchmark", list(paper_study().tasks))
def test_combinations_that_could_be_the_best_get_their_a(benchmark, names):
    """The paper's two combinations without A: stage 1 is asked for both of them, then stage 2.

    The prior comes from the other benchmarks; what is held when the policy stops is as good as
    where every A had been measured.
    """
    others = [task for name, task in paper_study().tasks.items() if name != benchmark]
    lent = {task.benchmark: task for task in others}
    finetuned, waiting, asked = [], set(COMBINATIONS), []
    for _ in range(20):
        study = part(finetuned, [benchmark], sorted(waiting))
        study = Study({**study.tasks, **lent}, "cosine", {}, ())
        found = propose(study, [benchmark], paper="off", options=OPTIONS)
        if found.stop:
            break
        assert not set(found.stage2) & {names[i] for i in waiting}
        assert set(found.stage1) <= {names[i] for i in waiting}
        asked += found.stage1
        waiting -= {names.index(name) for name in found.stage1}
        finetuned += [names.index(name) for name in found.stage2]
    assert found.stop
    assert sorted(asked) == sorted(names[i] for i in COMBINATIONS)
    y = paper_study().task(benchmark).performance
    assert (y.max() - y[finetuned].max()) / np.ptp(y) < 0.01


def test_an_estimate_is_never_in_the_fit():
    """The estimates of others move nothing that a measured candidate is ranked by."""
    task = in_order(part([0, 3, 5], ["mme"], COMBINATIONS).tasks["mme"])
    prior = learn_prior(paper_study().measured()[2:])
    without = view_of(task, "cosine", prior, OPTIONS, False)
    for known in (task.unaligned, dict.fromkeys(task.unaligned, 0.1)):
        # C stays inside of the others' range, which is what C is scaled over.
        own = {name: min(c, task.scores[:, 1].max()) for name, c in known.items()}
        view = view_of(dataclasses.replace(task, unaligned=own), "cosine", prior, OPTIONS, True)
        assert view.representations[:11] == task.representations
        assert view.measured.tolist() == [True] * 11 + [False] * 2
        np.testing.assert_allclose(view.state.mean[:11], without.state.mean, atol=1e-12)
        np.testing.assert_allclose(view.state.std[:11], without.state.std, atol=1e-12)


def test_a_run_is_made_once_whatever_it_was_evaluated_on(names):
    """What is finetuned and has no result on one benchmark is named, and not proposed again."""
    study = part([0, 5, 11])
    task = study.tasks["mme"]
    study.tasks["mme"] = task.hide([0, 5])
    found = propose(study, ["mme", "textvqa_val"], Limits(at_once=13), options=OPTIONS)
    assert found.benchmarks["mme"].not_evaluated == [names[11]]
    assert names[11] not in found.stage2
    assert len(found.stage2) == 10


def test_what_cannot_be_run_is_no_candidate(names, caplog):
    study = part([0, 5], ["mme"], COMBINATIONS)
    first = propose(study, ["mme"], Limits(at_once=2), options=OPTIONS)
    failed = [*first.stage1, *first.stage2]
    again = propose(study, ["mme"], Limits(at_once=2), options=OPTIONS, without=failed)
    assert len(failed) == len(again.stage1) + len(again.stage2) == 2
    assert not set(failed) & {*again.stage1, *again.stage2}
    assert again.benchmarks["mme"].n == 11
    assert propose(study, ["mme"], options=OPTIONS, without=["CLIP@336"]).finetuned == sorted(
        [names[0], names[5]]
    )
    with caplog.at_level("WARNING"):
        propose(study, ["mme"], options=OPTIONS, without=["CLIQ"])
    assert "CLIQ is to be left out, and is no candidate" in caplog.text
    rest = [name for i, name in enumerate(names) if i not in (0, 5)]
    found = propose(study, ["mme"], options=OPTIONS, without=rest)
    assert found.stop


def rows_of(study, finetuned, unaligned):
    lines = []
    for benchmark, task in study.tasks.items():
        for i, name in enumerate(task.representations):
            a, y = task.scores[i, 0], task.performance[i]
            if i not in unaligned:
                lines.append(f"{name},A_cosine,{benchmark},{a},fraction,mine")
            if i in finetuned:
                lines.append(f"{name},performance,{benchmark},{y},{task.unit},mine")
    task = study.tasks["mme"]
    for name, c in zip(task.representations, task.scores[:, 1], strict=True):
        lines.append(f"{name},C_pck,spair71k,{c},fraction,mine")
    return lines


def test_the_order_of_rows_does_not_matter(tmp_path, capsys):
    head = "representation,quantity,benchmark,value,unit,protocol"
    lines = rows_of(paper_study(), [0, 3, 5], [11])
    answers, texts = [], []
    for order in (range(len(lines)), np.random.default_rng(0).permutation(len(lines))):
        table, out = tmp_path / "table.csv", tmp_path / "next.json"
        table.write_text("\n".join([head, *(lines[i] for i in order)]) + "\n")
        flags = ["--table", str(table), "--json", str(out), "--estimate-a", "--at-once", "3"]
        main(["policy", "propose", *flags, "--benchmark", "MME", "MMBench", "TextVQA"])
        answers.append(json.loads(out.read_text()))
        texts.append(capsys.readouterr().out.split("\nA is cosine")[0])
    for answer in answers:
        assert len(answer["stage1"]) + len(answer["stage2"]) == 3
        assert set(answer["benchmarks"]) == {"mme", "mmbench_en_dev", "textvqa_val"}
    assert answers[0] == answers[1]
    assert texts[0] == texts[1]
    assert "finetune" in texts[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--benchmark"),
        (["--benchmark", "MME", "--at-once", "0"], "--at-once is 0; expected 1 or more"),
        (["--benchmark", "MME", "--most-stage2", "-1"], "--most-stage2 is -1"),
        (["--benchmark", "MME", "--tolerance", "2"], "tolerance is 2"),
    ],
)
def test_bad_usage(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["policy", "propose", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_papers_own_table_does_not_teach_its_own_prior(tmp_path):
    """Without --table the paper's benchmarks are the study, and are not lent to it again."""
    out = tmp_path / "p.json"
    main(["policy", "propose", "--benchmark", "MME", "--json", str(out)])
    assert json.loads(out.read_text())["stop"]
    tests = propose(paper_study(), ["mme"], paper="off", options=OPTIONS)
    assert (
        tests.benchmarks["mme"].trust_reason
        == json.loads(out.read_text())["benchmarks"]["mme"]["trust_reason"]
    )
