"""Reading a block's output without running what follows: a forward hook that ends the pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _Reached(Exception):  # noqa: N818  it is no error: the pass ends here by intention
    """Carries the output of a tapped module up to its `tap`, which knows it by `token`."""

    def __init__(self, output: Any, token: object):
        super().__init__()
        self.output, self.token = output, token


def tap(module: nn.Module, run: Callable[[], Any], item: int = 0) -> torch.Tensor:
    """What `module` gives while `run()` is under way; nothing after it is computed.

    Where it gives a tuple, one `item` of it. Raises RuntimeError if `run()` never gets there.
    """

    token = object()

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output, token)

    handle = module.register_forward_hook(stop)
    try:
        run()
    except _Reached as reached:
        if reached.token is not token:  # of a tap around this one
            raise
        output = reached.output
    else:
        raise RuntimeError(f"{type(module).__name__} was not reached by the pass it is tapped in")
    finally:
        handle.remove()
    return output[item] if isinstance(output, tuple | list) else output
