"""GPU hours: cost models, what a policy saves, and the published saving with its sums."""

import pytest

from llava.costs import cost_models, published_saving, savings
from llava.errors import UsageError


def test_savings():
    """13 candidates, 5 run: the paper's hours have no split, LLaVA's pay stage 1 for the others."""
    assert savings("paper", 13, 5).saved == 8 * 384
    llava = savings("llava", 13, 5)
    assert llava.all == 13 * 108
    assert llava.spent == 5 * 108 + 8 * 28
    assert llava.saved == 8 * 80
    assert llava.next == 80
    assert "not included" in savings("authors", 13, 5).note
    assert savings("authors", 13, 5).all == 13 * 8 * 15
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        savings("papers", 13, 5)
    assert all(model.source for model in cost_models().values())


def test_the_published_saving_stands_beside_every_sum_that_it_may_be():
    """Computed by hand; only 3 of 1,023 rounds to the 99.7 % that the paper states."""
    published = published_saving()
    shares = {(s.candidates, s.runs): s.saved for s in published.sums}
    assert shares[1023, 3] == pytest.approx(0.99707, abs=1e-5)
    assert shares[1023, 3.88] == pytest.approx(0.99621, abs=1e-5)
    assert shares[13, 3.88] == pytest.approx(0.70154, abs=1e-5)
    rounded = [key for key, share in shares.items() if round(share, 3) == published.saved]
    assert rounded == [(1023, 3)]
    assert published.hours(10) == 3840
    assert published.hours(1023) == 392_832
    assert published.hours_per_run == cost_models()["paper"].total
    assert 2**10 - 1 == 1023
    assert any("1,152 of 392,832 GPU hours, 99.71 % saved" in line for line in published.lines())
