"""Log-likelihoods: the golden sums, and independence of what else is in a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llavas import batch, family_llava, golden_llava, golden_pixels

from llava.errors import LawError
from llava.model.likelihood import answer_log_likelihood, sum_by_row
from llava.model.loss import token_losses
from llava.model.segments import SEGMENTS

ASCORE = Path(__file__).parents[2] / "golden" / "ascore"
EXPECTED = json.loads((ASCORE / "nll_expected.json").read_text())
STORED = np.load(ASCORE / "nll_inputs.npz")


def test_golden_sums():
    """Logits of ten records, float64 sums of the reference."""
    logits, targets, rows = [], [], []
    for i in range(EXPECTED["n_samples"]):
        labels = torch.from_numpy(STORED[f"labels_{i}"])[1:]
        scored = labels != -100
        logits.append(torch.from_numpy(STORED[f"logits_{i}"])[:-1][scored])
        targets.append(labels[scored])
        rows += [i] * int(scored.sum())
    losses = token_losses(torch.cat(logits), torch.cat(targets))
    sums, counts = sum_by_row(losses, torch.tensor(rows), EXPECTED["n_samples"])
    assert counts.tolist() == [one["tokens"] for one in EXPECTED["per_sample"]]
    wanted = [-one["nll_sum"] for one in EXPECTED["per_sample"]]
    assert sums.tolist() == pytest.approx(wanted, rel=1e-6)
    assert -sums.sum().item() / counts.sum().item() == pytest.approx(
        EXPECTED["token_mean"], rel=1e-6
    )


ROWS = [[1, -200, *range(3, 3 + n)] for n in (5, 9, 2, 12, 7, 3, 8, 11, 4, 6)]


@pytest.mark.parametrize("attention", ["sdpa", SEGMENTS])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_independent_of_the_batch(size, attention):
    """Alone or among others, padded or laid in a row: token means to 1e-6."""
    model = family_llava(attention=attention)
    whole = batch(ROWS, prompt=2)
    sums, counts = answer_log_likelihood(model, **whole)
    assert sums.dtype == torch.float64
    found, numbers = [], []
    for start in range(0, len(ROWS), size):
        part = batch(ROWS[start : start + size], prompt=2)
        part["images"] = whole["images"][start : start + size]
        some, number = answer_log_likelihood(model, **part)
        found += some.tolist()
        numbers += number.tolist()
    assert numbers == counts.tolist() == [len(row) - 2 for row in ROWS]
    assert np.divide(found, numbers) == pytest.approx((sums / counts).numpy(), abs=1e-6)


def test_equals_the_loss():
    """Of golden captions: minus the sum over the count is the mean loss."""
    stored = np.load(ASCORE.parent / "llava" / "stage1.npz")
    model = golden_llava().eval()
    given = {
        name: torch.from_numpy(stored[f"clip.{name}"])
        for name in ("input_ids", "labels", "attention_mask")
    } | {"images": golden_pixels(stored, "clip.")}
    sums, counts = answer_log_likelihood(model, **given)
    assert -sums.sum().item() / counts.sum().item() == pytest.approx(model(**given).loss.item())
    assert not model.training


def test_rows_without_a_scored_token():
    """Zero of zero; also where no row has any."""
    model = family_llava()
    given = batch(ROWS[:2], prompt=2)
    given["labels"][0] = -100
    sums, counts = answer_log_likelihood(model, **given)
    assert (sums[0].item(), counts[0].item()) == (0.0, 0)
    assert sums[1].item() < 0
    given["labels"][:] = -100
    sums, counts = answer_log_likelihood(model, **given)
    assert (sums.tolist(), counts.tolist()) == ([0.0, 0.0], [0, 0])


def test_labels_are_needed():
    """The error says what they are."""
    with pytest.raises(LawError, match="needs labels"):
        answer_log_likelihood(family_llava(), input_ids=torch.tensor([[1]]))
