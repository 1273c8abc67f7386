"""A hash of what an object holds, the same in every process and on every machine."""

import hashlib
import pickle
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np


def digest(value: Any) -> str:
    """64 hex digits over a value's contents; objects count as their class and their state.

    Sets and dictionaries are taken in the order of their members' own digests, which pickles are
    not. An object that cannot be pickled is a TypeError.
    """
    found = hashlib.sha256()
    for piece in _pieces(value, []):
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any, above: list[int]) -> Iterator[bytes]:
    """What a value is made of; `above` are the objects that hold it, where one may hold itself."""
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if value is None or isinstance(value, bool | int | float | str | PurePath):
        yield str(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, re.Pattern):
        yield f"{value.flags} {value.pattern}".encode()
    elif isinstance(value, Enum):
        yield value.name.encode()
    elif isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif id(value) in above:
        yield b"itself"
    else:
        yield from _inside(value, [*above, id(value)])


def _inside(value: Any, above: list[int]) -> Iterator[bytes]:
    if isinstance(value, dict):
        entries = [b"".join(_pieces(entry, above)) for entry in value.items()]
        yield from sorted(entries)
    elif isinstance(value, set | frozenset):
        yield from sorted(b"".join(_pieces(entry, above)) for entry in value)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for entry in value:
            yield from _pieces(entry, above)
    else:
        yield from _pieces(_state(value), above)


def _state(value: Any) -> Any:
    """What pickle would keep of an object."""
    state = value.__getstate__()
    if state is None:  # no attributes: whatever it is made from
        state = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return state if isinstance(state, str) else state[1:3]
    return state
