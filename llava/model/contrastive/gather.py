"""Rows of all processes as one tensor, with gradients: contrastive losses compare whole batches.

    rows_ND = gather(rows_BD)  # B may differ between processes, N is the sum

Every process gets the same rows, in order of rank. The backward pass adds what all processes'
losses say of a row, so the gradient is that of the sum of their losses. Where all of them compute
one loss of the whole batch, each process's gradients of its parameters come out times the number of
processes, shared out over them: their mean over processes (`average_gradients`, or DDP) is the
gradient of that one loss.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Processes that talk to each other; 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(rows: Tensor) -> Tensor:
    """[N, ...]: the rows [B, ...] of every process, in order of rank; B may differ, 0 included.

    All that follows the first dimension must be the same everywhere, as must the dtype. Every
    process must call it, and must call the backward pass of what it gave.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over processes; one that a process lacks counts as 0.

    Parameters must come in the same order in every process.
    """
    world = world_size()
    if world == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world


class _Gather(torch.autograd.Function):
    """Pads to the longest, gathers, cuts what was padded; backward: sums, and cuts out our own."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        counts = _counts(rows)
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        context.counts = counts
        return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        rank, counts = dist.get_rank(), context.counts
        start = sum(counts[:rank])
        return gradient[start : start + counts[rank]]


def _counts(rows: Tensor) -> list[int]:
    """Rows of every process."""
    own = torch.tensor([len(rows)], device=rows.device)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return [int(count) for count in found]
