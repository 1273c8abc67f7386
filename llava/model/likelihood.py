"""Log-likelihood of answers: what the A score, VQAScore and multiple-choice evaluation share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.errors import LawError


@dataclass(frozen=True)
class AnswerLikelihood:
    """How likely a batch's answers are. B rows."""

    sum_B: torch.Tensor
    """float64: sum of log p of the supervised tokens, nats."""
    count_B: torch.Tensor
    """int64: how many they are."""
    greedy_B: torch.Tensor
    """bool: whether each of them is the likeliest token at its place; true where there is none."""


def answer_likelihood(model: nn.Module, **batch: Any) -> AnswerLikelihood:
    """Of the supervised tokens of every row, in float32 logits summed in float64.

    `batch` is what the model takes, with `labels`; -100 is not scored. Logits exist at scored
    positions alone, and a row's number does not depend on the rows beside it. Call it on a model
    in evaluation mode.
    """
    if batch.get("labels") is None:
        raise LawError("a likelihood needs labels: -100 at what is given, ids at what is scored")
    with torch.no_grad():
        output = model(**batch, per_token=True)
    rows = len(batch["labels"])
    sums, counts = sum_by_row(output.token_losses, output.token_rows, rows)
    missed = torch.bincount(output.token_rows[~output.token_greedy], minlength=rows)
    return AnswerLikelihood(sums, counts, missed == 0)


def answer_log_likelihood(model: nn.Module, **batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of log p of the supervised tokens, nats, float64 [B]; their number, int64 [B])."""
    found = answer_likelihood(model, **batch)
    return found.sum_B, found.count_B


def sum_by_row(
    token_losses_S: torch.Tensor, token_rows_S: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums of -loss, float64 [rows]; counts, int64 [rows]) of tokens, each of which has a row."""
    sums = torch.zeros(rows, dtype=torch.float64, device=token_losses_S.device)
    sums.index_add_(0, token_rows_S, -token_losses_S.double())
    return sums, torch.bincount(token_rows_S, minlength=rows)
