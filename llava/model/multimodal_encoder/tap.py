"""Reading a block's output without running what follows: a forward hook that ends the pass."""

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_guard = threading.Lock()


class _Reached(Exception):  # noqa: N818  it is no error: the pass ends here by intention
    """Carries the output of a tapped module up to its `tap`, which knows it by `token`."""

    def __init__(self, output: Any, token: object):
        super().__init__()
        self.output, self.token = output, token


def tap(module: nn.Module, run: Callable[[], Any], item: int = 0) -> torch.Tensor:
    """What `module` gives while `run()` is under way; nothing after it is computed.

    Where it gives a tuple, one `item` of it. Raises RuntimeError if `run()` never gets there.
    """

    token, thread = object(), threading.get_ident()

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            raise _Reached(output, token)

    with _lock(module):
        handle = module.register_forward_hook(stop)
        try:
            run()
        except _Reached as reached:
            if reached.token is not token:  # of a tap around this one
                raise
            output = reached.output
        else:
            raise RuntimeError(
                f"{type(module).__name__} was not reached by the pass it is tapped in"
            )
        finally:
            handle.remove()
    return output[item] if isinstance(output, tuple | list) else output


def _lock(module: nn.Module) -> Any:
    """A module's own lock: hooks are the module's, so threads take turns."""
    with _guard:
        return _locks.setdefault(module, threading.RLock())
