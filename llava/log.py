"""Log lines on stderr from rank zero, and progress that also reads well in a file.

stdout belongs to results. Levels come from `LAW_LOG` (DEBUG, INFO, WARNING); default INFO.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_SECONDS = 30.0
"""Between progress lines where stderr is no terminal: a day-long log stays short."""


def rank() -> int:
    """Rank of this process as torchrun, accelerate and Slurm name it; 0 outside of a launcher."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def get_logger(name: str) -> logging.Logger:
    """Logger `law.<name>`, on stderr; below a warning only rank zero prints."""
    root = logging.getLogger("law")
    if not root.handlers:
        handler = _Stderr()
        handler.setFormatter(_Formatter())
        handler.addFilter(lambda record: rank() == 0 or record.levelno >= logging.WARNING)
        root.addHandler(handler)
        level = (os.environ.get("LAW_LOG") or "INFO").upper()
        known = level in logging.getLevelNamesMapping()
        root.setLevel(level if known else "INFO")
        root.propagate = False
        if not known:
            root.warning("LAW_LOG=%s is no level; expected DEBUG, INFO or WARNING", level)
    return root.getChild(name)


class _Stderr(logging.StreamHandler):
    """Writes to what `sys.stderr` is at each line, not to what it was at the first import."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


class _Formatter(logging.Formatter):
    """`law: text`, and `law [3]: warning: text` from rank 3."""

    def format(self, record: logging.LogRecord) -> str:
        where = f" [{rank()}]" if rank() else ""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        line = f"law{where}: {level}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields `items`; shows a bar with an estimate on a terminal, plain lines elsewhere.

    Only rank zero shows anything. `total` is taken from `len(items)` where it has one.
    """
    if total is None:
        with contextlib.suppress(TypeError):  # a loader of a stream has a `__len__` that raises
            total = len(items)
    if rank() != 0:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, file=sys.stderr, dynamic_ncols=True)
    else:
        yield from _progress_lines(items, what, total)


def _progress_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    logger = get_logger("progress")
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LINE_SECONDS and done:
            last = now
            left = f", about {(now - start) / done * (total - done):.0f} s left" if total else ""
            logger.info("%s: %d of %s, %.0f s%s", what, done, total or "?", now - start, left)
        yield item
