"""The report's sections on one's own numbers: what they say, and what they leave out aloud."""

import re
from html import unescape

import numpy as np
import pytest
from made_table import rows, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from AC_policy.law import fit_law
from AC_policy.report import own, own_section
from AC_policy.report.labels import label_points
from AC_policy.report.own_plots import scatter
from AC_policy.study import load_study


def words(html: str) -> str:
    """The text of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve representations on two benchmarks, ten of them finetuned."""
    return write(tmp_path_factory.mktemp("own") / "t.csv", rows(12, finetuned=10))


@pytest.fixture(scope="module")
def found(table):
    return own.gather([table], {})


def test_figures_are_those_of_the_fit(table, found):
    """Of every benchmark and kind of A, as `fit_law` gives them on the whole table."""
    assert [(v.benchmark, v.a, v.n) for v in found.verdicts] == [
        (benchmark, a, 10) for benchmark in ("lawful", "random") for a in ("cosine", "nll")
    ]
    for verdict in found.verdicts:
        fit = fit_law(load_study([table], verdict.a)).benchmarks[verdict.benchmark]
        assert verdict.fits["AC_degree2"] == fit["AC_degree2"]
        assert verdict.fits["A_linear"] == fit["A_linear"]


def test_both_outcomes_are_said(found):
    """A benchmark made of A and C passes with that A, and fails with one that says nothing."""
    text = words(own_section.verdicts(found))
    assert "lawful, A as cosine: it holds here. With n = 10" in text
    assert "lawful, A as likelihood: it does not hold here." in text
    law = found.verdicts[0].fits["AC_degree2"]
    assert law.r2_loo > max(0, law.loo_null_p95)
    assert f"it explains {100 * law.r2_loo:.0f} % (R² {law.r2_loo:.2f}); shuffled" in text
    for figure in (law.r2, law.null_p95, law.r2_loo, law.loo_null_p95):
        assert f" {figure:.2f} " in text
    assert "Of 4 such tests 0.2 would be passed by chance" in text


def test_nothing_is_explained_where_the_mean_is_nearer(found):
    """A negative left-out R² is no share."""
    verdict = next(v for v in found.verdicts if v.fits["AC_degree2"].r2_loo < 0)
    text = " ".join(own_section.sentences([verdict])[0])
    assert "it does not hold here" in text
    assert f"explains nothing (R² {verdict.fits['AC_degree2'].r2_loo:.2f})" in text


@pytest.mark.parametrize(("count", "said"), [(6, False), (7, True)])
def test_too_few_rows(tmp_path, count, said):
    """Six coefficients fit six rows whatever they are."""
    verdicts = own.gather([write(tmp_path / "t.csv", rows(count, ("lawful",)))], {}).verdicts
    assert all(bool(verdict.fits) == said for verdict in verdicts)
    text = words(own_section.verdicts(own.Own([], verdicts, (), [], ())))
    assert ("Too few rows: 6 finetuned representations" in text) != said
    # one reason is said once, for both kinds of A
    assert text.count("not to be said") == (0 if said else 1)


def test_every_number_with_its_error(found):
    """Fractions as percent, the best first, what was not finetuned last."""
    lawful = found.measured[0]
    assert [column.name for column in lawful.scores] == ["A cosine", "A likelihood", "C"]
    order = lawful.representations()
    assert len(order) == 12
    performance = lawful.performance
    assert performance.unit == "percent"
    measured = [performance.values[name] for name in order[:10]]
    assert measured == sorted(measured, reverse=True)
    assert not any(name in performance.values for name in order[10:])
    text = words(own_section.measured(found))
    assert f"{measured[0]:.2f} ± 2.00" in text
    assert "A likelihood, nats" in text


def test_what_is_missing_is_said(tmp_path):
    """A kind of A on one benchmark only; the other one keeps its own."""
    lines = [
        row for row in rows(8) if row[1] != "A_nll" and (row[1], row[2]) != ("A_cosine", "random")
    ]
    found = own.gather([write(tmp_path / "t.csv", lines)], {})
    assert [(v.benchmark, v.a) for v in found.verdicts] == [("lawful", "cosine")]
    text = words(own_section.verdicts(found))
    assert "Left out: random: no A cosine was measured for it." in text
    assert "Left out: lawful: no A likelihood was measured for it." in text
    assert "No figure" not in own_section.measured(found)


def test_two_protocols_are_not_mixed(tmp_path):
    """The flag that takes one is named, and takes it."""
    lines = rows(8, ("lawful",))
    lines += [[*row[:5], "other", row[6]] for row in lines if row[1] == "C_pck"]
    table = write(tmp_path / "t.csv", lines)
    found = own.gather([table], {})
    assert "--protocol C_pck:pairs=p takes one" in " ".join(found.missing)
    assert all(not verdict.fits for verdict in found.verdicts)
    assert not own.gather([table], {"C_pck": "p"}).missing


def test_scores_alone(tmp_path):
    """Nothing is finetuned yet: scores are shown all the same."""
    lines = [row for row in rows(4, ("lawful",)) if row[1] != "performance"]
    found = own.gather([write(tmp_path / "t.csv", lines)], {})
    assert len(found.candidates) == 4
    assert found.measured[0].benchmark == "lawful"
    assert len(found.measured[0].representations()) == 4
    assert "with both 0, 2 are the least" in words(own_section.measured(found))


def test_c_alone(tmp_path):
    """Nothing has gone through stage 1 yet."""
    lines = [row for row in rows(4, ("lawful",)) if row[1] == "C_pck"]
    found = own.gather([write(tmp_path / "t.csv", lines)], {})
    assert found.verdicts == []
    assert [column.name for column in found.measured[0].scores] == ["C"]
    text = words(own_section.measured(found))
    assert "no benchmark yet" in text
    assert text.count("± 1.50") == 4


def test_partial_study_is_the_study(tmp_path, table):
    """The same as `load_study` where nothing is missing; without a benchmark that lacks A."""
    whole = load_study([table])
    study, missing = own.partial_study([table], "cosine", {})
    assert missing == []
    assert study.protocols == whole.protocols
    for name, task in whole.tasks.items():
        np.testing.assert_array_equal(study.tasks[name].scores, task.scores)
        np.testing.assert_array_equal(study.tasks[name].performance, task.performance)
    lines = [row for row in rows(8) if (row[1], row[2]) != ("A_cosine", "random")]
    broken = write(tmp_path / "t.csv", lines)
    study, missing = own.partial_study([broken], "cosine", {})
    assert list(study.tasks) == ["lawful"]
    assert "random" in missing[0]


@pytest.mark.parametrize("seed", range(4))
def test_names_do_not_cover_each_other(seed):
    """Twelve long names around points that stand close."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(12, 2))
    figure = Figure(figsize=(4.9, 3.9))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
    label_points(axes, points, [f"tower-{i}.tower-{i + 1}" for i in range(12)])
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    # of the words only: an annotation counts its line, too
    boxes = [Text.get_window_extent(text, renderer).padded(-1) for text in axes.texts]
    assert len(boxes) == 12
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*place) for place in axes.transData.transform(points))


def test_figure_has_every_name(found):
    """Of what has both numbers; a name that a formula would start in is text."""
    drawn, missing = scatter(found.measured[0])
    assert missing == []
    assert drawn == scatter(found.measured[0])[0]
    assert drawn.count("one.two") >= 5
