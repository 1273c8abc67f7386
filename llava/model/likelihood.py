"""Log-likelihood of answers: what the A score, VQAScore and multiple-choice evaluation share."""

from typing import Any

import torch
from torch import nn

from llava.errors import LawError


def answer_log_likelihood(model: nn.Module, **batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of log p of the supervised tokens, nats, float64 [B]; their number, int64 [B]).

    `batch` is what the model takes, with `labels`; -100 is not scored. Logits exist at scored
    positions alone; log-softmax is in float32, the sum in float64, so a row's number does not
    depend on the rows beside it. Call it on a model in evaluation mode.
    """
    if batch.get("labels") is None:
        raise LawError("a likelihood needs labels: -100 at what is given, ids at what is scored")
    with torch.no_grad():
        output = model(**batch, per_token=True)
    rows = len(batch["labels"])
    return sum_by_row(output.token_losses, output.token_rows, rows)


def sum_by_row(
    token_losses_S: torch.Tensor, token_rows_S: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums of -loss, float64 [rows]; counts, int64 [rows]) of tokens, each of which has a row."""
    sums = torch.zeros(rows, dtype=torch.float64, device=token_losses_S.device)
    sums.index_add_(0, token_rows_S, -token_losses_S.double())
    return sums, torch.bincount(token_rows_S, minlength=rows)
