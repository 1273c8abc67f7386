"""Reading a results table column by column, so that a million rows take seconds.

Texts become integers as they come; whatever is wrong with a file, a line or a cell becomes a
TableError that names it.
"""

import contextlib
import csv
import gc
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava import catalog
from llava.errors import TableError, nearest, unknown_name
from llava.log import get_logger
from llava.results_schema import (
    CHECKS,
    COLUMNS,
    DATE_EXPECTED,
    QUANTITIES,
    REQUIRED,
    timestamp,
)

logger = get_logger("results")

CODED = ("representation", "quantity", "benchmark", "unit", "protocol")
CHUNK_ROWS = 1_024  # rows turned into columns at a time: few enough to stay in cache
_ID = {"representation": catalog.representation_id, "benchmark": catalog.benchmark_id}


@dataclass(frozen=True)
class Columns:
    """Every row read: codes [R] into `names` for CODED, value, stderr, date (s) and direction."""

    codes: dict[str, np.ndarray]
    names: dict[str, list[str]]
    value: np.ndarray
    stderr: np.ndarray
    date: np.ndarray
    higher_is_better: np.ndarray


def read_columns(paths: Sequence[Path]) -> Columns:
    """All rows of all files, in order."""
    builder = _Builder()
    with _no_collection():
        for path in paths:
            with opened(path) as reader:
                header = read_header(path, reader)
                for chunk, before in chunks(path, reader, len(header)):
                    columns = dict(zip(header, zip(*chunk, strict=True), strict=True))
                    builder.add(columns, len(chunk), _Where(path, before))
    return builder.columns()


@contextlib.contextmanager
def _no_collection():
    """Rows of text hold no cycles, yet the collector would walk all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Builder:
    """Columns under construction; strings become integers as they come."""

    def __init__(self):
        self.codes = {name: [] for name in CODED}
        self.lookup: dict[str, dict[str, int]] = {name: {} for name in CODED}
        self.floats = {"value": [], "stderr": [], "date": []}
        self.higher: list[np.ndarray] = []

    def add(self, columns: dict[str, Sequence[str]], size: int, where: "_Where") -> None:
        for name in CODED:
            self.codes[name].append(self._encode(name, columns.get(name), size, where))
        self.floats["value"].append(_numbers(columns["value"], where.column("value")))
        for name, parse in (("stderr", _numbers), ("date", _dates)):
            column = columns.get(name)
            filled = column is not None and any(column)
            parsed = parse(column, where.column(name)) if filled else np.full(size, np.nan)
            self.floats[name].append(parsed)
        self.higher.append(self._directions(columns, size, where))

    def _encode(self, name, column, size, where) -> np.ndarray:
        lookup = self.lookup[name]
        if column is None:
            return np.full(size, lookup.setdefault("", len(lookup)), np.int64)
        known = {}
        for text in dict.fromkeys(column):
            clean = _ID.get(name, str)(text.strip())
            if problem := name in CHECKS and CHECKS[name](clean):
                line = where.line(list(column).index(text))
                raise TableError(f"{where.path}: line {line}, column {name}: {problem}")
            known[text] = lookup.setdefault(clean, len(lookup))
        return np.fromiter(map(known.__getitem__, column), np.int64, size)

    def _directions(self, columns, size, where) -> np.ndarray:
        """bool [size]; an empty cell takes its quantity's usual direction."""
        quantity = self.codes["quantity"][-1]
        names = list(self.lookup["quantity"])
        usual = np.array([QUANTITIES.get(name, ("", True))[1] for name in names])[quantity]
        column = columns.get("higher_is_better")
        if column is None:
            return usual
        meaning = {"true": 1, "1": 1, "false": 0, "0": 0, "": -1}
        parsed = {}
        for text in dict.fromkeys(column):
            if text.strip().lower() not in meaning:
                line = where.line(list(column).index(text))
                raise TableError(
                    f"{where.path}: line {line}, column higher_is_better: expected true or false, "
                    f"got '{text}'"
                )
            parsed[text] = meaning[text.strip().lower()]
        given = np.fromiter(map(parsed.__getitem__, column), np.int64, size)
        return np.where(given < 0, usual, given == 1)

    def columns(self) -> Columns:
        """Everything added, each column in one piece."""
        empty = np.zeros(0)
        floats = {
            name: np.concatenate(parts) if parts else empty for name, parts in self.floats.items()
        }
        return Columns(
            codes={
                name: np.concatenate(parts) if parts else empty.astype(np.int64)
                for name, parts in self.codes.items()
            },
            names={name: list(lookup) for name, lookup in self.lookup.items()},
            value=floats["value"],
            stderr=floats["stderr"],
            date=floats["date"],
            higher_is_better=np.concatenate(self.higher) if self.higher else empty.astype(bool),
        )


@dataclass(frozen=True)
class _Where:
    """Place of a chunk in its file, for error messages."""

    path: Path
    rows_before: int
    name: str = ""

    def column(self, name: str) -> "_Where":
        return _Where(self.path, self.rows_before, name)

    def line(self, index: int) -> int | str:
        """Line in the file of the chunk's row `index`, counted again: only errors ask for it.

        A pipe cannot be read again; its lines are unknown.
        """
        with open(self.path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle)
            rows = (reader.line_num for row in reader if row)
            return next(itertools.islice(rows, 1 + self.rows_before + index, None), "unknown")


def _numbers(column: Sequence[str], where: _Where) -> np.ndarray:
    """float64 [rows]; an empty cell is NaN."""
    try:
        return np.fromiter(map(float, column), np.float64, len(column))
    except ValueError:
        return np.array([_number(text, index, where) for index, text in enumerate(column)])


def _number(text: str, index: int, where: _Where) -> float:
    try:
        return float(text) if text.strip() else math.nan
    except ValueError:
        raise TableError(
            f"{where.path}: line {where.line(index)}, column {where.name}: expected a number with "
            f"a decimal point, got '{text}'"
        ) from None


def _dates(column: Sequence[str], where: _Where) -> np.ndarray:
    """Seconds since 1970 as float64 [rows]; an empty cell is NaN; a date without zone is UTC."""
    known: dict[str, float] = {}
    for index, text in enumerate(column):
        if text not in known:
            seconds = timestamp(text) if text.strip() else math.nan
            if seconds is None:
                raise TableError(
                    f"{where.path}: line {where.line(index)}, column date: {DATE_EXPECTED}, "
                    f"got '{text}'"
                )
            known[text] = seconds
    return np.fromiter(map(known.__getitem__, column), np.float64, len(column))


@contextlib.contextmanager
def opened(path: Path) -> Iterator:
    """A CSV reader of the file; whatever is wrong with file or text becomes a TableError."""
    if "\0" in str(path):
        raise TableError(f"{str(path)!r}: no file can have this name")
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            yield reader
    except FileNotFoundError:
        raise TableError(f"{path}: no such table (seen from {Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path}: not UTF-8 text ({_undecodable(path)}); save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise TableError(f"{path}: line {reader.line_num}: not valid CSV: {error}") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error


def _undecodable(path: Path) -> str:
    """What the decoder says of the whole file: of a stream it counts from its last buffer."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        return f"{error.reason} at byte {error.start}"
    return "read from a pipe"


def read_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    """The column names on the first line that is not blank, checked."""
    header = [name.strip() for name in next(filter(None, reader), [])]
    if not any(header):
        raise TableError(f"{path}: the file is empty; expected a header {','.join(COLUMNS)}")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        hint = "; separate columns with commas" if len(header) == 1 else ""
        raise TableError(
            f"{path}: column(s) {', '.join(missing)} missing; found {', '.join(header)}{hint}"
        )
    for name in header:
        if header.count(name) > 1:
            raise TableError(f"{path}: column '{name}' stands there twice")
        if name not in COLUMNS:
            near = nearest(name, COLUMNS)
            if near and near not in header:
                raise TableError(f"{path}: {unknown_name('column', name, COLUMNS)}")
            logger.warning("%s: column '%s' is not one of ours and is not read", path, name)
    return header


def chunks(
    path: Path, reader: Iterator[list[str]], width: int
) -> Iterator[tuple[list[list[str]], int]]:
    """(rows, number of data rows before them) a chunk at a time; blank lines are passed over."""
    before = 0
    while chunk := list(itertools.islice(reader, CHUNK_ROWS)):
        if set(map(len, chunk)) != {width}:
            chunk = [row for row in chunk if row]
            for index, row in enumerate(chunk):
                if len(row) != width:
                    line = _Where(path, before).line(index)
                    raise TableError(
                        f"{path}: line {line}: {len(row)} fields where the header has {width}"
                    )
        if chunk:
            yield chunk, before
        before += len(chunk)
