"""The report: self-contained, whole, and every number on it the one that was computed."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from AC_policy.paper import paper_study
from AC_policy.report import example
from AC_policy.report.content import gather
from AC_policy.report.page import render
from AC_policy.study import Study
from llava.__main__ import main
from llava.errors import UsageError

SENSITIVITY = {
    "variants": [
        {
            "constant": "beta",
            "value": None,
            "default": True,
            "recall_at_3": [0.75, 0.875, 1.0],
            "regret_top3": [0.008, 0.008, 0.0],
            "runs": 5.375,
            "regret": 0.0005,
            "worst_regret": 0.0036,
        }
    ],
    "nested": [
        {
            "benchmark": "mme",
            "constants": {"ridge": 0.01, "noise": None, "beta": None},
            "recall_at_3": [1.0] * 6,
            "regret_top3": [0.0] * 6,
        }
    ],
    "held_out": {
        "splits": 60,
        "seen": 8,
        "unseen": 5,
        "regret": {"bayes": [0.07, 0.02, 0.01, 0.0], "A+C": [0.06, 0.01, 0.0, 0.0]},
        "stops": 2.5,
        "regret_then": 0.0034,
    },
}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "sensitivity.json"
    path.write_text(json.dumps(SENSITIVITY))
    return gather(paper_study(), trials=50, sensitivity=path)


@pytest.fixture(scope="module")
def page(content):
    return render(content)


class Balance(HTMLParser):
    """Checks that every element is closed where it was opened."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_self_contained(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "<script" not in page


def test_every_figure_is_a_picture_with_a_text(page):
    figures = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(figures) == 6
    for alt, data in figures:
        assert len(alt) > 10
        root = ElementTree.fromstring(base64.b64decode(data))
        assert root.tag.endswith("svg")
        assert len(list(root.iter())) > 100


def test_figures_are_the_same_from_run_to_run(content):
    from AC_policy.report import plots

    assert plots.ranking(content.at_stop, content.task) == plots.ranking(
        content.at_stop, content.task
    )
    assert plots.plane(content.task) == plots.plane(content.task)


def test_numbers_on_the_page_are_those_computed(page, content):
    text = html.unescape(page)
    fit = content.fit.groups["vision"]["AC_degree2"]
    assert f">{100 * fit.r2:.2f}<" in text
    assert f">{100 * fit.r2_loo:.1f}<" in text
    assert ">95.72<" in text
    stop = content.recommendations[0].replay[-1]
    assert f"{stop.k} of 13 runs" in text
    recall = content.backtests["bayes"].mean("recall_at_3")[4]
    assert f">{recall:.3f}<" in text
    for entry in content.recommendations:
        assert html.escape(entry.savings.note.split(";")[0]) in text


def test_worked_example_by_hand():
    """3-4-5 triangles, so that the cosines are exact."""
    a = example.alignment()
    np.testing.assert_allclose(a.cosine, [[0.96, 0.8], [0.8, 0.0], [0.6, 1.0]])
    assert a.score == pytest.approx((0.96 + 0.8 + 1.0) / 3)
    c = example.correspondence()
    assert c.patch == 1
    np.testing.assert_allclose(c.distance_px, [5.0, 13.0, np.sqrt(74)])
    assert c.threshold_px == 10
    assert c.correct.tolist() == [True, False, True]
    assert c.score == pytest.approx(2 / 3)


def test_law_of_the_worked_example_adds_up():
    task = paper_study().task("MMBench")
    law = example.law(task, 11)
    assert law.terms.sum() == pytest.approx(law.predicted)
    assert len(law.terms) == 6
    assert law.predicted == pytest.approx(law.measured, abs=4)  # R² .964 over a range of 37


def test_report_of_an_unfinished_study_says_what_is_missing():
    study = paper_study()
    tasks = {name: study.tasks[name].hide([0, 3]) for name in ("mme", "vizwiz_vqa_val")}
    small = Study(tasks, study.a, study.protocols, study.sources)
    page = render(gather(small, paper="prior", trials=5))
    assert "a backtest needs a benchmark on which" in page
    assert "a fit needs at least 3 finetuned" in page
    assert "trained once" not in page
    assert "2 of 13" in page
    Balance().feed(page)


def test_names_from_a_table_cannot_break_the_page(tmp_path, capsys):
    rows = ["representation,quantity,benchmark,value,unit"]
    for name, a, c in (
        ("<script>alert(1)</script>", 0.3, 9),
        ("a&b", 0.6, 20),
        ("$\\frac{$", 0.5, 4),
    ):
        rows += [f"{name},A_cosine,<b>,{a},fraction", f"{name},C_pck,spair71k,{c},percent"]
        rows += [f"{name},performance,<b>,{50 * a + c},percent"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    main(["report", "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in page
    assert "a&amp;b" in page
    Balance().feed(page)


def test_wrong_sensitivity_file_is_refused(tmp_path):
    path = tmp_path / "s.json"
    for text in ("[]", "{", '{"variants": 3, "nested": []}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="law policy sensitivity"):
            gather(paper_study(), trials=5, sensitivity=path)


def test_one_finished_benchmark_takes_the_papers_prior():
    """Its replay is shown, and whose prior it is."""
    study = paper_study()
    one = Study({"mme": study.tasks["mme"]}, study.a, study.protocols, ("own.csv",))
    page = html.unescape(render(gather(one, paper="prior", trials=5)))
    assert "1 benchmark; the paper's benchmarks teach the prior." in page
    assert "On 1 benchmark it stopped after" in page


def test_two_finished_benchmarks_say_why_bayes_is_not_replayed():
    """The reason shown is the one that was met, not a guess."""
    study = paper_study()
    tasks = {name: study.tasks[name] for name in ("mme", "vizwiz_vqa_val")}
    two = Study(tasks, study.a, study.protocols, ("own.csv",))
    page = render(gather(two, paper="off", trials=5))
    assert "needs 2 finished benchmarks" in page
    assert "MME is not ranked: the law" in html.unescape(page)
    assert ">95.72<" not in page
