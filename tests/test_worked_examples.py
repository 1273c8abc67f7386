"""The docs' worked examples, recomputed: numbers that a reader follows by hand are the code's."""

import itertools
import re
from math import log

import numpy as np
import pytest
from repository import ROOT

from AC_policy.features import polynomial
from AC_policy.law import fit_law, r_squared
from AC_policy.paper import paper_study
from AC_policy.report import example

LAW, A_SCORE, C_SCORE = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("law", "a_score", "c_score")
)


def cells(text: str, first: str) -> list[float]:
    """The numbers of the table row whose first cell is `first`; fractions as such."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    found = [cell.strip() for cell in line.strip("|").split("|")]
    return [_number(cell) for cell in found if re.fullmatch(r"-?[\d./]+", cell)]


def _number(text: str) -> float:
    top, _, bottom = text.strip().partition("/")
    return float(top) / float(bottom or 1)


def test_the_law_term_by_term():
    """Of C+D@336 on MMBench."""
    task = paper_study().task("MMBench")
    row = task.representations.index(
        "openai/clip-vit-large-patch14-336.facebook/dinov2-large",
    )
    law = example.law(task, row)
    a, c = law.a_scaled, law.c_scaled
    shown = [cells(LAW, term) for term in ("A", "C", "A²", "A C", "C²")]
    shown.insert(0, cells(LAW, "1")[1:])  # the term itself is a number there
    for (coefficient, value, product), at, term in zip(
        shown, (1, a, c, a * a, a * c, c * c), law.terms, strict=True
    ):
        assert value == pytest.approx(at, abs=6e-5)
        assert product == pytest.approx(term, abs=6e-4)
        assert coefficient == pytest.approx(term / at, abs=6e-4)
    assert cells(LAW, "sum") == [pytest.approx(law.predicted, abs=6e-4)]
    assert "(.512 - .348) / (.815 - .348) = .3512" in LAW
    assert [task.scores[:, 0].min(), task.scores[:, 0].max()] == pytest.approx([0.348, 0.815])
    assert [task.scores[:, 1].min(), task.scores[:, 1].max()] == pytest.approx([0.0191, 0.2608])
    assert "Measured were 65.12 points" in LAW
    assert law.measured == 65.12
    assert "between 28.87 and 65.72" in LAW
    assert (task.performance.min(), task.performance.max()) == (28.87, 65.72)
    fit = fit_law(paper_study()).benchmarks["mmbench_en_dev"]["AC_degree2"]
    assert "R² .964 in sample, .895 left out" in LAW
    assert (fit.r2, fit.r2_loo) == pytest.approx((0.964, 0.895), abs=6e-4)
    assert fit.null_p95 == pytest.approx(0.77, abs=0.015)  # 1,000 shuffles


def test_in_sample_left_out_shuffled():
    """Four rows and a line, from the table's own columns."""
    lines = [line for line in LAW.splitlines() if re.match(r"\| (0|1/3|2/3|1) \| \d\d \|", line)]
    rows = np.array([[_number(cell) for cell in line.strip("|").split("|")] for line in lines])
    assert len(rows) == 4
    x, y, line, error, share, left_out = rows.T
    slope, start = np.polyfit(x, y, 1)
    assert (start, slope) == pytest.approx((50.8, 8.4))
    np.testing.assert_allclose(line, start + slope * x, atol=1e-9)
    np.testing.assert_allclose(error, y - line, atol=1e-9)
    np.testing.assert_allclose(share, 0.25 + (x - 0.5) ** 2 / ((x - 0.5) ** 2).sum(), atol=1e-9)
    np.testing.assert_allclose(left_out, error / (1 - share), atol=6e-3)
    shown = {degree: [r_squared(polynomial(x[:, None], degree), y)] for degree in (1, 2)} | {
        3: [r_squared(np.stack([x, x**2, x**3], 1), y)]
    }
    for degree, printed in ((1, (0.754, 0.274)), (2, (0.754, -9.94)), (3, (1.0, -11.0))):
        assert shown[degree][0] == pytest.approx(printed, abs=6e-3 if degree > 1 else 6e-4)
    text = " ".join(LAW.split())
    for said in ("in sample R² = .754", "left-out R² = .274", "R² .754 in sample and -9.94 left"):
        assert said in text
    assert "with a cube 1.000 and -11.00" in text
    orders = np.array(list(itertools.permutations(y)))
    reached = r_squared(x[:, None], orders)[0] >= shown[1][0][0] - 1e-9
    assert (len(orders), reached.sum()) == (24, 4)
    assert "in 24 orders. In 4 of them" in text
    assert "in 17 % of the cases" in text


def test_cosine():
    """docs/a_score.md: .4 of three tokens and two."""
    import torch

    from A_score.cosine import mean_max_cosine, unit_rows

    target = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    reference = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    largest = [cells(A_SCORE, row)[-1] for row in ("(2, 0)", "(0, 5)", "(-1, 0)")]
    assert sum(largest) / 3 == pytest.approx(0.4)
    assert mean_max_cosine(unit_rows(target), unit_rows(reference)) == pytest.approx(0.4)
    assert "a = (1 + .8 - .6) / 3 = .4" in A_SCORE


def test_likelihood():
    """docs/a_score.md: two captions of two tokens and one."""
    from llava.train.a_score import summarize

    found = summarize([0, 1], [log(2) + log(4), log(2)], [2, 1])
    assert cells(A_SCORE, "first")[-2:] == [pytest.approx(found.nll_sums[0], abs=6e-4), 2]
    assert cells(A_SCORE, "second")[-2:] == [pytest.approx(found.nll_sums[1], abs=6e-4), 1]
    text = " ".join(A_SCORE.split())
    for value, said in (
        (found.a_nll_token_mean, "= .924 nats a token"),
        (found.a_nll_sample_mean, "= .866, and of their sums"),
        (found.a_nll_sum_mean, "their sums, 1.386"),
        (found.stderr, "at random, is .154"),
    ):
        assert said in text
        assert float(re.search(r"[\d.]*\d", said)[0]) == pytest.approx(value, abs=6e-4)
    assert "e^.924 = 2.52" in text
    assert found.perplexity == pytest.approx(2.52, abs=6e-3)


def test_pck():
    """docs/c_score.md: 62.5 % per image and 40 % per keypoint of one and of four keypoints."""
    from C_score.pck import Sums

    sums = Sums.of(np.array([[[1], [1]]]), np.array([1, 4]))
    assert sums.mean("image") == pytest.approx(0.625)
    assert sums.mean("keypoint") == pytest.approx(0.4)
    assert "(1 + 1/4) / 2 = 62.5 %, per keypoint 2/5 = 40 %" in C_SCORE


def test_estimated_alignment():
    """docs/law.md: .43 between .60 and .40; a measured combination moves the share."""
    from AC_policy.estimate_a import estimate_a

    assert ".40 + .15 x .20 = .43" in LAW
    names = ("clip", "dinov2", "siglip", "clip.dinov2", "clip.siglip")
    a = np.array([0.6, 0.4, 0.5, np.nan, np.nan])
    found = estimate_a(names, a, "cosine")
    assert (found.a_n[3], found.share) == pytest.approx((0.43, 0.15))
    assert estimate_a(names, a, "nll").share == pytest.approx(0.5)
    a[3] = 0.46
    assert 0.15 < estimate_a(names, a, "cosine").share < 0.3
