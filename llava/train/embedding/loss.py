"""InfoNCE over a batch that does not fit into memory at once.

Letters in shapes: B pairs, H width.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from llava.model.contrastive.gather import gather

Chunk = Callable[[], torch.Tensor]
"""Computes some rows [b, H] of the batch; called twice, it must give the same ones."""


def info_nce(
    queries_BH: torch.Tensor, targets_BH: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over queries of the cross entropy of their own target among all targets, nats.

    One direction only, as VLM2Vec trains; rows are of length one.
    """
    logits_BB = queries_BH @ targets_BH.T / temperature
    return functional.cross_entropy(
        logits_BB, torch.arange(len(logits_BB), device=logits_BB.device)
    )


def cached_backward(
    queries: Sequence[Chunk], targets: Sequence[Chunk], temperature: float
) -> float:
    """Adds the gradients of the loss of a whole batch to the parameters; returns the loss.

    First all rows are computed and not what leads back from them; the loss gives every row its
    gradient, and then chunk after chunk is computed once more and led back from those (GradCache,
    arXiv 2101.06983). Under several processes the batch is that of all of them, and the mean of
    their gradients is that of its loss (llava/model/contrastive/gather.py).
    """
    chunks = [*queries, *targets]
    with torch.no_grad():
        found = [chunk() for chunk in chunks]
    rows = [row.detach().requires_grad_() for row in found]
    loss = info_nce(
        gather(torch.cat(rows[: len(queries)])),
        gather(torch.cat(rows[len(queries) :])),
        temperature,
    )
    loss.backward()
    for chunk, row in zip(chunks, rows, strict=True):
        (chunk() * row.grad).sum().backward()
    return loss.item()
