"""A estimated from the parts: what was measured on Table 5, and how unsure an estimate is."""

import numpy as np
import pytest

from AC_policy.estimate_a import SCATTER, SHARE, estimate_a, parts, with_uncertain_a
from AC_policy.features import min_max
from AC_policy.paper import paper_study
from AC_policy.posterior import posterior
from AC_policy.prior import learn_prior

CLIP, CLIP336, DINO = (
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
    "facebook/dinov2-large",
)


def paper_shares():
    """[8, 2] where A of C+D@224 and of C+D@336 lies between the A of their parts."""
    found = []
    for task in paper_study().tasks.values():
        a = dict(zip(task.representations, task.scores[:, 0], strict=True))
        found.append(
            [(a[f"{clip}.{DINO}"] - a[DINO]) / (a[clip] - a[DINO]) for clip in (CLIP, CLIP336)]
        )
    return np.array(found)


def test_the_share_of_the_papers_combinations():
    """Neither the mean of the parts (0.5) nor the best one (1) comes near."""
    shares = paper_shares()
    assert shares.mean(0) == pytest.approx([0.183, 0.126], abs=0.001)
    assert SHARE["cosine"][0] == pytest.approx(shares.mean(), abs=0.01)
    assert shares.max() < 0.22


@pytest.mark.parametrize(
    ("rule", "error"), [("mean", 0.116), ("best", 0.285), ("worst", 0.054), ("share", 0.019)]
)
def test_rules_on_table_5(rule, error):
    """Root mean square error of A over both combinations and eight benchmarks.

    `share` is that of the other combination; all others need no data.
    """
    shares, misses = paper_shares(), []
    for row, task in enumerate(paper_study().tasks.values()):
        a = dict(zip(task.representations, task.scores[:, 0], strict=True))
        for column, clip in enumerate((CLIP, CLIP336)):
            share = {"mean": 0.5, "best": 1, "worst": 0, "share": shares[row, 1 - column]}[rule]
            misses.append(a[DINO] + share * (a[clip] - a[DINO]) - a[f"{clip}.{DINO}"])
    assert np.sqrt(np.mean(np.square(misses))) == pytest.approx(error, abs=0.001)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b", ["a", "b"]),
        ("a.b.c", ["a", "b", "c"]),
        ("x/sd-1.0.a", ["x/sd-1.0", "a"]),
        ("x/sd-1.0", []),
        ("a", []),
        ("a.unknown", []),
        ("a@336.b", ["a", "b"]),
        ("c@336.b", ["c@336", "b"]),
    ],
)
def test_parts(name, expected):
    """Dots inside of a name are no joiners; another size of a known part is that part."""
    assert parts(name, {"a", "b", "c", "c@336", "a.b", "x/sd-1.0", name}) == expected


def test_a_combination_lies_above_its_worst_part_by_the_share():
    names = ["a", "b", "c", "a.b", "a.b.c"]
    found = estimate_a(names, np.array([0.8, 0.4, 0.6, np.nan, np.nan]), "cosine")
    assert found.a_n.tolist() == pytest.approx([0.8, 0.4, 0.6, 0.46, 0.46])
    assert found.measured.tolist() == [True] * 3 + [False] * 2
    assert found.std[:3].tolist() == [0, 0, 0]
    by_hand = np.sqrt((SCATTER * 0.4) ** 2 + (0.3 * 0.4) ** 2)
    assert found.std[3:] == pytest.approx([by_hand, by_hand])


def test_measured_combinations_teach_the_share():
    """Three that lie halfway move the share there and make the others surer."""
    names = ["a", "b", "c", "d", "a.b", "b.c", "a.c", "a.d"]
    a = np.array([0.8, 0.4, 0.6, 0.3, 0.6, 0.5, 0.7, np.nan])
    taught = estimate_a(names, a, "cosine")
    blank = estimate_a(names, np.where(np.arange(8) < 4, a, np.nan), "cosine")
    assert taught.share == pytest.approx(0.5, abs=0.03)
    assert taught.a_n[-1] == pytest.approx(0.55, abs=0.02)
    assert taught.std[-1] < blank.std[-1] / 2


def test_what_is_no_combination_is_one_more_of_the_others():
    found = estimate_a(["a", "b", "new", "a.new"], np.array([0.4, 0.8, np.nan, np.nan]), "nll")
    assert found.a_n[2] == pytest.approx(0.6)
    assert found.std[2] == pytest.approx(np.std([0.4, 0.8], ddof=1))
    assert 0.4 < found.a_n[3] < 0.6
    assert found.std[3] > 0.05


def test_the_posterior_with_an_uncertain_a_is_that_of_sampled_a():
    """Mean and spread of f over drawn A, each with the law's own posterior at that A.

    First order against the whole law, whose bend is small at this width: 2 % of the range.
    """
    task = next(iter(paper_study().tasks.values()))
    others = list(paper_study().tasks.values())[1:]
    a, c = task.scores.T
    a = a.copy()
    a[11] = np.nan  # C+D@224
    estimate = estimate_a(task.representations, a, "cosine")
    measured = np.isfinite(a)
    shown = task.hide([0, 3, 7])
    prior = learn_prior(others)

    def at(a_n):
        return np.column_stack([min_max(a_n, a[measured]), min_max(c)])

    def state_at(a_n):
        return posterior(at(a_n), shown.performance, prior)

    found = with_uncertain_a(
        state_at(estimate.a_n), at(estimate.a_n), estimate, np.ptp(a[measured])
    )
    rng = np.random.default_rng(0)
    means, variances = [], []
    for _ in range(400):
        drawn = estimate.a_n.copy()
        drawn[11] += estimate.std[11] * rng.standard_normal()
        state = state_at(drawn)
        means.append(state.mean[11])
        variances.append(state.std[11] ** 2)
    spread = np.sqrt(np.mean(variances) + np.var(means))
    assert found.mean[11] == pytest.approx(np.mean(means), abs=0.02)
    assert found.std[11] == pytest.approx(spread, rel=0.05)
    rest = np.arange(13) != 11
    np.testing.assert_array_equal(found.mean[rest], state_at(estimate.a_n).mean[rest])
    np.testing.assert_allclose(found.std[rest], state_at(estimate.a_n).std[rest], atol=1e-12)
