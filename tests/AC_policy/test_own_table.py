"""The law on a small table of one's own: nine representations, one benchmark, no other finished.

A is the negative log-likelihood of captions, one for all benchmarks, in a row named by its file.
"""

import json

import numpy as np
import pytest

from AC_policy.backtest import backtest
from AC_policy.paper import paper_study
from AC_policy.policies import Setting
from AC_policy.recommend import recommend
from AC_policy.study import load_study
from llava.errors import TableError

NAMES = ["t/a", "t/b", "t/c", "t/d", "t/e", "t/a.t/b", "t/a.t/c", "t/b.t/d", "t/a.t/b.t/c"]
SEED = 3  # of scores and noise; nothing depends on it but the figures below
HEAD = "representation,quantity,benchmark,value,unit,higher_is_better,stderr,n,protocol\n"


def write(path, benchmarks=("own_vqa",), finetuned=9, images=("photos",), rows=9):
    """A table; `images` are what the cosine was measured on."""
    drawn = np.random.default_rng(SEED)
    a, c = drawn.uniform(2, 5, 9), drawn.uniform(10, 60, 9)
    y = 80 - 10 * a + 0.5 * c + drawn.normal(0, 2, 9)
    text = HEAD
    for i, name in list(enumerate(NAMES))[:rows]:
        text += f"{name},A_nll,captions.json,{a[i]:.4f},nats,false,,100,nll\n"
        for image in images:
            text += f"{name},A_cosine,{image},{1 - a[i] / 6:.4f},fraction,true,,100,cos\n"
        text += f"{name},C_pck,warps,{c[i]:.3f},percent,true,,100,pck\n"
        for benchmark in benchmarks if i < finetuned else ():
            text += f"{name},performance,{benchmark},{y[i]:.3f},percent,true,1.2,200,eval\n"
    path.write_text(text)
    return path


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "own.csv")


@pytest.mark.parametrize("a", ["nll", "cosine"])
def test_every_command_runs_on_it(law, table, tmp_path, a):
    """One benchmark alone: the prior is the paper's, and what is said stands beside a null."""
    out = tmp_path / "out.json"
    flags = ["--table", table, "--a", a]
    code, text, _ = law("policy", "fit", *flags, "--draws", 50, "--json", out)
    fit = json.loads(out.read_text())["benchmarks"]["own_vqa"]["AC_degree2"]
    assert code == 0
    assert "left out" in text and "null 95" in text
    assert {"r2", "r2_loo", "null_p95"} <= set(fit)
    code, text, _ = law(
        "policy", "recommend", *flags, "--benchmark", "own_vqa", "--replay", "--json", out
    )
    answer = json.loads(out.read_text())
    assert code == 0
    assert "The law holds: left-out R²" in text
    assert "null's 95th percentile" in text
    assert len(answer["prior_from"]) == 8
    assert answer["replay"][-1]["stop"]
    code, text, _ = law("policy", "backtest", *flags, "--policy", "bayes", "--json", out)
    assert code == 0
    assert "transferred law" in text
    assert "80 % intervals" in text
    assert json.loads(out.read_text())["benchmarks"]["own_vqa"]["stopped"]
    code, text, _ = law("policy", "propose", *flags, "--benchmark", "own_vqa")
    assert code == 0
    assert "every candidate is finetuned" in text


def test_the_report_of_it(law, table, tmp_path):
    out = tmp_path / "report.html"
    code, _, err = law("report", "--table", table, "--a", "nll", "--out", out, "--trials", 20)
    assert code == 0, err
    page = out.read_text()
    assert "own_vqa" in page
    assert "left-out" in page


def test_the_paper_teaches_the_prior_of_a_backtest(table, law):
    study = load_study([table], "nll")
    lent = list(paper_study().tasks.values())
    with pytest.raises(TableError, match="--paper prior"):
        backtest(study, "bayes", Setting())
    found = backtest(study, "bayes", Setting(), lent=lent)
    replayed = recommend(study, "own_vqa", replay=True).replay
    held = next(step for step in replayed if step.stop)
    assert found.benchmarks["own_vqa"].stopped[0] == held.k
    assert found.benchmarks["own_vqa"].stopped[1] == pytest.approx(held.true_regret)
    assert found.baselines["transferred law"].keys() == {"own_vqa"}
    assert list(found.benchmarks) == ["own_vqa"]
    code, _, err = law(
        "policy", "backtest", "--table", table, "--a", "nll", "--policy", "bayes", "--paper", "off"
    )
    assert code == 1
    assert "--paper prior" in err


def test_half_of_it_says_what_is_missing(law, tmp_path):
    table = write(tmp_path / "half.csv", finetuned=4)
    code, text, _ = law(
        "policy", "recommend", "--table", table, "--a", "nll", "--benchmark", "own_vqa"
    )
    assert code == 0
    assert "not testable yet: 4 of 6 rows needed are finetuned" in text
    assert "finetune next" in text
    code, _, err = law("policy", "backtest", "--table", table, "--a", "nll", "--policy", "bayes")
    assert code == 1
    assert "4 of 9 candidates finetuned" in err


def test_a_sweep_begins_with_no_performance_at_all(law, tmp_path):
    """Neither a row nor the catalog knows the benchmark; `propose` says so and goes on."""
    table = write(tmp_path / "none.csv", finetuned=0)
    code, text, err = law(
        "policy", "propose", "--table", table, "--a", "nll", "--benchmark", "own_vqa", "own_count"
    )
    assert code == 0
    assert "own_vqa: no table holds a row of it" in err
    assert "0 of 9" in text
    assert "finetune" in text
    code, _, err = law(
        "policy", "recommend", "--table", table, "--a", "nll", "--benchmark", "own_vqa"
    )
    assert code == 2
    assert "unknown benchmark 'own_vqa'" in err


def test_a_of_several_image_sets_that_have_no_performance(tmp_path):
    """Which one a benchmark should take is the user's to say."""
    table = write(tmp_path / "own.csv", images=("photos", "drawings"))
    with pytest.raises(TableError, match="photos and drawings, none of which has performance"):
        load_study([table], "cosine")
    named = write(tmp_path / "named.csv", images=("own_vqa", "drawings"))
    assert load_study([named], "cosine").tasks["own_vqa"].finetuned.all()


def test_a_benchmark_that_nobody_asked_for_does_not_stand_in_the_way(tmp_path, caplog):
    """Performance on two benchmarks, A on the images of one."""
    table = write(tmp_path / "own.csv", ("own_vqa", "other_vqa"), images=("own_vqa",))
    with pytest.raises(TableError, match="other_vqa: no row of quantity 'A_cosine'"):
        load_study([table], "cosine")
    assert list(load_study([table], "cosine", also=["own_vqa"]).tasks) == ["own_vqa"]
    assert "other_vqa does not take part" in caplog.text
    with pytest.raises(TableError, match="other_vqa"):
        load_study([table], "cosine", also=["other_vqa"])


def test_what_has_no_a_is_kept_apart_only_where_asked_for(tmp_path, caplog):
    """Its C is known; left out aloud otherwise."""
    table = write(tmp_path / "own.csv", finetuned=4)
    lines = table.read_text().splitlines()
    fewer = [line for line in lines if not line.startswith("t/a.t/b.t/c,A_")]
    table.write_text("\n".join(fewer) + "\n")
    with caplog.at_level("WARNING"):
        plain = load_study([table], "nll")
        assert "have no A_nll: t/a.t/b.t/c" in caplog.text
        caplog.clear()
        apart = load_study([table], "nll", unaligned=True)
        assert caplog.text == ""
    assert plain.tasks["own_vqa"].unaligned == {}
    assert plain.left_out == {"have no A_nll": ["t/a.t/b.t/c"]}
    assert list(apart.tasks["own_vqa"].unaligned) == ["t/a.t/b.t/c"]
    assert apart.left_out == {}
    np.testing.assert_array_equal(plain.tasks["own_vqa"].scores, apart.tasks["own_vqa"].scores)
