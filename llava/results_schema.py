"""What a results table holds: its columns, quantities and units, and one row of it.

Names are resolved through the catalog when a table is read; here stand the rules that a cell must
keep, for rows about to be written as for rows being read.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

import numpy as np

from llava.errors import TableError, nearest, unknown_name

QUANTITIES = {
    "A_cosine": ("cross-modal alignment: cosine to CLIP after the projector", True),
    "A_nll": ("cross-modal alignment: negative log-likelihood after stage 1", False),
    "C_pck": ("correspondence: percentage of correct keypoints", True),
    "performance": ("benchmark result of the finetuned model", True),
}
"""What the policy reads: meaning, and whether higher is better. Others may stand beside it."""

UNITS = {
    "fraction": ("ratio", 1.0),
    "percent": ("ratio", 0.01),
    "points": ("points", 1.0),
    "nats": ("nats", 1.0),
    "seconds": ("seconds", 1.0),
    "pixels": ("pixels", 1.0),
    "count": ("count", 1.0),
}
"""Unit -> (dimension, size in its base unit); units convert inside one dimension only."""

REQUIRED = ("representation", "quantity", "benchmark", "value", "unit")
LONGEST_TEXT = 10_000  # characters; Python's CSV reader stops at 131,072


@dataclass(frozen=True)
class ResultRow:
    """One measured number. `benchmark` is the lmms-eval task, or the data set of a C score."""

    representation: str
    quantity: str
    benchmark: str
    value: float
    unit: str
    higher_is_better: bool = True
    stderr: float | None = None
    """Standard error of `value`, in `unit`."""
    n: int | None = None
    """How many items the value is the mean of."""
    protocol: str = ""
    seed: int | None = None
    spec_hash: str = ""
    run_dir: str = ""
    commit: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self):
        where = f"{self.representation}, {self.quantity}, {self.benchmark}"
        for problem in self._problems():
            raise TableError(f"{where}: {problem}")
        if not math.isfinite(self.value):
            raise TableError(
                f"{where}: the value is {self.value}; a failed measurement is not a result, do not "
                f"append it"
            )

    def _problems(self) -> Iterable[str]:
        """What would make the table unreadable, field by field."""
        for name in _TEXTS:
            if problem := text_problem(getattr(self, name)):
                yield f"{name}: {problem}"
        for name, check in CHECKS.items():
            if problem := check(getattr(self, name).strip()):
                yield f"{name}: {problem}"
        for name in ("value", "stderr"):
            number = getattr(self, name)
            real = isinstance(number, float | int | np.number) and not isinstance(number, bool)
            if not real and not (name == "stderr" and number is None):
                yield f"{name}: expected a number, got {number!r}"
        for name in ("n", "seed"):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, _WHOLE)):
                yield f"{name}: expected a whole number, got {number!r}"
        if not isinstance(self.higher_is_better, bool | np.bool_):
            yield f"higher_is_better: expected true or false, got {self.higher_is_better!r}"
        if self.date and timestamp(self.date) is None:
            yield f"date: {DATE_EXPECTED}, got '{self.date}'"


_TEXTS = (
    "representation",
    "quantity",
    "benchmark",
    "unit",
    "protocol",
    "spec_hash",
    "run_dir",
    "commit",
    "date",
)
_WHOLE = int | np.integer
COLUMNS = tuple(entry.name for entry in fields(ResultRow))
DATE_EXPECTED = "expected ISO 8601 such as 2026-01-31 or 2026-01-31T12:00:00+00:00"


def text_problem(text: object) -> str | None:
    """Why a cell cannot hold this text, or None."""
    if not isinstance(text, str):
        return f"expected text, got {text!r}"
    if len(text) > LONGEST_TEXT:
        return f"{len(text)} characters; at most {LONGEST_TEXT} fit"
    if "\r" in text or "\0" in text or (not text.isprintable() and not _encodes(text)):
        return f"a character that a CSV file cannot hold in {text!r}"
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def timestamp(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 date, UTC where it names no zone; None for another text."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _representation_problem(text: str) -> str | None:
    return None if text else "is empty; expected a representation's name"


def _quantity_problem(text: str) -> str | None:
    """Refuses misspellings of the quantities that the policy reads; others may stand beside."""
    if not text:
        return "is empty; expected one of " + ", ".join(QUANTITIES)
    if text in QUANTITIES or text.startswith(tuple(f"{known}_" for known in QUANTITIES)):
        return None
    near = nearest(text, QUANTITIES)
    if near and (text.lower() == near.lower() or len(text) > 4):
        return unknown_name("quantity", text, QUANTITIES)
    return None


def _unit_problem(text: str) -> str | None:
    return None if text in UNITS else unknown_name("unit", text, UNITS)


CHECKS = {
    "representation": _representation_problem,
    "quantity": _quantity_problem,
    "unit": _unit_problem,
}
"""Column -> why its cell, stripped of blanks, cannot be meant, or None."""
