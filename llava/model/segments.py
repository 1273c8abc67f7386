"""Attention within segments of one row, without a mask of all pairs.

`segments` is an attention implementation like `sdpa`, and equal to it on ordinary batches. A packed
row comes with the segments' boundaries in place of a mask, and every segment attends causally to
itself alone, by the kernel that needs no mask.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SEGMENTS = "segments"


def boundaries_as_mask(boundaries: Sequence[int]) -> torch.Tensor:
    """Boundaries as int64 [1, 1, 1, n + 1] on the CPU: models hand on what has four dimensions."""
    return torch.tensor(boundaries)[None, None, None]


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [B, T, heads, dim], of query [B, heads, T, dim], as sdpa gives it."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    edges = attention_mask.flatten().tolist()
    shared = query.shape[1] != key.shape[1]
    parts = []
    for start, end in itertools.pairwise(edges):
        window = _window_mask(end - start, sliding_window, query.device)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=window,
                is_causal=window is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=shared,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """bool [T, T] where a sliding window is shorter than the segment, else None."""
    if not window or window >= length:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
