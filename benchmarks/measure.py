"""Seconds, FLOPs and bytes of what a benchmark runs."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Seconds:
    """How long something took; on a busy machine less of it is the process's own."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


NO_TIME = Seconds()


def quickest(ways: dict[str, Callable[[], Any]], times: int) -> dict[str, Seconds]:
    """The least seconds of each way's runs; they take turns, so that a busy minute hits all."""
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for _ in range(times):
        for name, run in ways.items():
            found[name].append(timed(run))
    return {
        name: Seconds(min(each.wall for each in runs), min(each.cpu for each in runs))
        for name, runs in found.items()
    }


def timed(run: Callable[[], Any]) -> Seconds:
    """Seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, attention and convolutions in a run.

    Attention counts all pairs of a sequence's tokens, also those that causality masks, for torch
    counts so where it counts by itself; it does not know the kernel that runs on a CPU.
    """
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        run()
    return counter.get_total_flops()


def _attention_forward(query: Any, key: Any, *rest: Any, **named: Any) -> int:
    """Two products: scores, and values weighed by them."""
    *rows, length, width = query
    return 4 * torch.Size(rows).numel() * length * key[-2] * width


def _attention_backward(grad: Any, query: Any, key: Any, *rest: Any, **named: Any) -> int:
    """Five products: the scores once more, and the gradients."""
    return _attention_forward(query, key) * 5 // 2


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes of tensors that `run` had made and not yet dropped, at any one time.

    What an operation allocates and frees inside of its kernel is not seen.
    """
    with _Live() as live:
        run()
    return live.peak


class _Live(TorchDispatchMode):
    """Counts a storage when an operation gives it, and until it is collected."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given:
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            weakref.finalize(storage, self._dropped, key, size)

    def _dropped(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
