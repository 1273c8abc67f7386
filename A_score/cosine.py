"""The cosine A score of one image: how near the target's tokens come to the reference's.

T target tokens, R reference tokens, N tokens of either, C channels. `prepare` is called once per
tower and image, `compare` once per pair of towers; ARITHMETICS names the two ways to count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 256
"""Rows that are worked on at once: 2304 reference tokens make 2.4 MB of cosines."""


@dataclass(frozen=True)
class Arithmetic:
    """One way to compute the score; both functions leave their inputs as they are."""

    prepare: Callable[[Tensor], Tensor]
    """[N, C] of any floating dtype -> [N, C], each row divided by its length; zero rows stay 0."""
    compare: Callable[[Tensor, Tensor], float]
    """Prepared target [T, C] and reference [R, C] -> mean over T of the largest cosine over R."""


def unit_rows(tokens_NC: Tensor) -> Tensor:
    """float32 [N, C]: every row divided by its length, which is summed in float64; zero rows are 0.

    The published code adds 1e-10 to the length and then normalises again, which undoes it; dividing
    once by the length itself gives the same, and any scale of a row gives the same.
    """
    unit_NC = torch.empty(tokens_NC.shape, dtype=torch.float32)
    for start in range(0, len(tokens_NC), ROWS // 4):
        rows = tokens_NC[start : start + ROWS // 4].double()
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit_NC[start : start + ROWS // 4] = rows / length.masked_fill(length == 0, 1)
    return unit_NC


def mean_max_cosine(target_TC: Tensor, reference_RC: Tensor) -> float:
    """Mean over T of max over R of the cosine; both hold rows of `unit_rows`."""
    total = 0.0
    for start in range(0, len(target_TC), ROWS):
        cosines_TR = target_TC[start : start + ROWS] @ reference_RC.T
        total += cosines_TR.amax(1).sum(dtype=torch.float64).item()
    return total / len(target_TC)


def unit_rows_bf16(tokens_NC: Tensor) -> Tensor:
    """bfloat16 [N, C]: rows normalised twice, every step rounded, as the published code does."""
    rows = tokens_NC.bfloat16()
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-10)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-8)


def mean_max_cosine_bf16(target_TC: Tensor, reference_RC: Tensor) -> float:
    """`mean_max_cosine` as bfloat16 gives it: products, cosines and their mean are all rounded.

    A matrix product would not round the products, so rows are taken one by one, which fits the
    cache; the numbers are those of `torch.nn.functional.cosine_similarity` on broadcast tensors.
    """
    products_RC = torch.empty_like(reference_RC)
    largest = [
        torch.mul(reference_RC, token_C, out=products_RC).sum(1).amax() for token_C in target_TC
    ]
    return torch.stack(largest).mean().item()


ARITHMETICS = {
    "float32": Arithmetic(unit_rows, mean_max_cosine),
    "bfloat16": Arithmetic(unit_rows_bf16, mean_max_cosine_bf16),
}
