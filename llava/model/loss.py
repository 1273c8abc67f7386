"""Cross entropy that keeps no float32 copy of the logits."""

from typing import Any

import torch

ROWS = 1024
"""Rows that are in float32 at a time: 0.6 GB with a vocabulary of 152 000."""


class _TokenLosses(torch.autograd.Function):
    """Softmax cross entropy per row, in float32 a few rows at a time, forward and backward."""

    @staticmethod
    def forward(ctx: Any, logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
        normaliser_S = torch.empty(len(logits_SV), dtype=torch.float32, device=logits_SV.device)
        for rows in _row_blocks(len(logits_SV)):
            normaliser_S[rows] = logits_SV[rows].float().logsumexp(-1)
        ctx.save_for_backward(logits_SV, targets_S, normaliser_S)
        return normaliser_S - logits_SV.gather(1, targets_S[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx: Any, grad_S: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits_SV, targets_S, normaliser_S = ctx.saved_tensors
        grad_SV = torch.empty_like(logits_SV)
        for rows in _row_blocks(len(logits_SV)):
            part = (logits_SV[rows].float() - normaliser_S[rows, None]).exp_()
            part.scatter_add_(1, targets_S[rows, None], part.new_full((len(part), 1), -1.0))
            grad_SV[rows] = part.mul_(grad_S[rows, None]).to(grad_SV.dtype)
        return grad_SV, None


def _row_blocks(rows: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, rows, ROWS)]


def token_losses(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """-log p of every target, nats, float32 [S]; the softmax is in float32 whatever the logits."""
    return _TokenLosses.apply(logits_SV, targets_S)
