"""Whole tensors of parameters, wherever their shards are."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def gathered(parameters: Iterable[tuple[str, nn.Parameter]], keep: bool) -> dict[str, torch.Tensor]:
    """Name -> the whole tensor on the CPU, where `keep`; empty elsewhere.

    Every rank must call it, with the same parameters: under ZeRO-3 and FSDP each is collected from
    all of them, one at a time, so that no rank needs room for more than the largest.
    """
    found = {}
    for name, parameter in parameters:
        whole = _whole(parameter, keep)
        if keep:
            found[name] = whole
    return found


def _whole(parameter: nn.Parameter, keep: bool) -> torch.Tensor | None:
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone() if keep else None
    tensor = parameter.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().clone() if keep else None
