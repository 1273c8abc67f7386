"""Several processes as one: what rank zero finds holds for all, and none is left waiting."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from accelerate import PartialState
from torch import distributed

from llava.errors import LawError

LONGEST_WAIT = timedelta(days=7)
"""Of ranks that are done for one that is not."""


def open_group(cpu: bool) -> None:
    """Connects the processes of a launch, as lmms-eval's models would when they are made."""
    PartialState(cpu=cpu, timeout=LONGEST_WAIT)


def close_group() -> None:
    """Ends what `open_group` began: its threads, alive when Python ends, may abort it."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def of_first(find: Callable[[], Any]) -> Any:
    """What `find` gives on rank zero, on all; where it raises LawError there, all end.

    The others do so without an error: a launcher ends all processes as soon as one has failed, and
    rank zero is to say why first.
    """
    if not distributed.is_initialized():
        return find()
    error: LawError | None = None
    told: list[Any] = [None, False]
    if distributed.get_rank() == 0:
        try:
            told[0] = find()
        except LawError as raised:
            error, told[1] = raised, True
    distributed.broadcast_object_list(told)
    found, failed = told
    if failed:
        close_group()
        if error:
            raise error
        sys.exit(0)
    return found


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The body on rank zero, then on the others, which find the caches that it filled."""
    if not distributed.is_initialized():
        yield
        return
    with PartialState().main_process_first():
        yield
