"""Matches of rows of cosines: argmax and soft-argmax with its windows and fills."""

import numpy as np
import plain_pck as plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from C_score.matching import Match, match_rows
from llava.errors import UsageError

EVERY = [Match(None), Match(0)] + [Match(w, fill) for w in (1, 3, 9) for fill in ("zero", "inf")]


@pytest.mark.parametrize("match", EVERY, ids=str)
@given(n=st.integers(1, 9), seed=st.integers(0, 10_000), spread=st.sampled_from([0.02, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_equals_the_plain_softmax(match, n, seed, spread):
    """Cosines of any size and sign, windows wider than the grid, best cells on the border."""
    drawn = torch.Generator().manual_seed(seed)
    cosines = (torch.randn(6, n * n, generator=drawn) * spread).clamp(-1, 1)
    expected = plain.places(cosines, match.window, match.fill)
    assert np.abs(match_rows(cosines, match) - expected.numpy()).max() < 5e-5  # cells, float32


@pytest.mark.parametrize("match", EVERY, ids=str)
def test_the_first_of_equal_maxima_counts(match):
    """As NumPy's and torch's argmax on a CPU: ties are common where features are constant."""
    cosines = torch.zeros(1, 25)
    cosines[0, [7, 18]] = 0.9
    found = match_rows(cosines, match)
    if match.window == 0 or match.window == 9:
        assert found[0] == pytest.approx([2.5, 2], abs=1e-5)  # both are seen: half way
    elif match.window == 3:
        assert found[0].tolist() == pytest.approx([2.5, 2], abs=1e-5)
    else:
        assert found[0] == pytest.approx([2, 1], abs=1e-5)


def test_all_equal():
    """Nothing is known: argmax says the first cell, the whole grid its middle."""
    cosines = torch.full((1, 9), 0.4)
    assert match_rows(cosines, Match(None)).tolist() == [[0, 0]]
    assert match_rows(cosines, Match(0))[0] == pytest.approx([1, 1])
    assert match_rows(cosines, Match(1, "inf"))[0] == pytest.approx([0.5, 0.5])


def test_zero_fill_pulls_low_cosines_to_the_middle():
    """With the best cosine below zero, the zeros outside of the window outweigh it."""
    cosines = torch.full((1, 49), -0.9)
    cosines[0, 0] = -0.2
    zero = match_rows(cosines, Match(1, "zero"))[0]
    inf = match_rows(cosines, Match(1, "inf"))[0]
    assert inf == pytest.approx([0, 0], abs=1e-5)
    assert zero[0] == zero[1] == pytest.approx(147 / 45 - 2 / 45, abs=0.01)


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (Match(), "soft5-zero"),
        (Match(7, "inf"), "soft7-inf"),
        (Match(0), "soft0"),
        (Match(None), "hard"),
    ],
)
def test_name_in_the_protocol(match, text):
    assert str(match) == text


@pytest.mark.parametrize("arguments", [(-3,), (5, "nan")])
def test_what_cannot_be_meant(arguments):
    with pytest.raises(UsageError, match="expected"):
        Match(*arguments)


def test_the_worked_example():
    """docs/c_score.md: .27 of a cell to the right; zeros that weigh .91 of the best cell."""
    cosines = torch.full((1, 256), 0.3)
    cosines[0, [8 * 16 + 7, 8 * 16 + 8]] = torch.tensor([0.60, 0.58])
    assert match_rows(cosines, Match())[0] == pytest.approx([7.27, 8], abs=0.005)
    cosines = torch.full((1, 256), -1.0)
    cosines[0, 8 * 16 + 5] = 0.10
    weight = 135 * np.exp(-0.10 / 0.02)
    assert weight == pytest.approx(0.91, abs=0.001)
    outside = [x for y in range(16) for x in range(16) if not (x <= 10 and 3 <= y <= 13)]
    expected = (5 + weight * np.mean(outside)) / (1 + weight)
    assert match_rows(cosines, Match())[0][0] == pytest.approx(expected, abs=1e-3)
