"""The results table: one long CSV that every measurement is appended to and the policy reads.

A row is one number with its whole protocol. Reading is columnar, so a million rows take seconds;
appending takes a file lock, so processes and nodes can write to one file. Where several rows share
representation, quantity, benchmark and protocol, the newest (by date, then by place) replaces the
older ones, and how many were replaced is counted.
"""

import contextlib
import csv
import gc
import io
import itertools
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from llava import catalog
from llava.errors import TableError, nearest, unknown_name
from llava.files import write_text
from llava.log import get_logger

logger = get_logger("results")

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

CODED = ("representation", "quantity", "benchmark", "unit", "protocol")
KEY = ("representation", "quantity", "benchmark", "protocol")
REQUIRED = ("representation", "quantity", "benchmark", "value", "unit")
LOCK_SECONDS = 20.0
CHUNK_ROWS = 1_024  # rows turned into columns at a time: few enough to stay in cache


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
        if not self.representation or not self.quantity:
            raise TableError("a result needs a representation and a quantity; one is empty")
        if self.unit not in UNITS:
            raise TableError(unknown_name("unit", self.unit, UNITS))
        if not math.isfinite(self.value):
            raise TableError(
                f"{self.representation}, {self.quantity}, {self.benchmark}: the value is "
                f"{self.value}; a failed measurement is not a result, do not append it"
            )


COLUMNS = tuple(f.name for f in fields(ResultRow))


@dataclass(frozen=True)
class ResultsTable:
    """Rows as columns; the columns in CODED are integers into `names[column]`.

    Attributes:
        codes: column -> int array [R].
        names: column -> the texts that the codes stand for.
        value: float64 [R], in each row's own unit.
        stderr: float64 [R], NaN where none is given.
        higher_is_better: bool [R].
        replaced: rows left out since a newer row has the same key.
        skipped: rows left out since their value is empty, NaN or infinite.
        sources: the files read.
    """

    codes: dict[str, np.ndarray]
    names: dict[str, list[str]]
    value: np.ndarray
    stderr: np.ndarray
    higher_is_better: np.ndarray
    replaced: int
    skipped: int
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.value)

    def rows_of(self, column: str, name: str) -> np.ndarray:
        """bool [R]: the rows whose `column` is `name`."""
        if name not in self.names[column]:
            return np.zeros(len(self), bool)
        return self.codes[column] == self.names[column].index(name)

    def present(self, column: str, rows: np.ndarray) -> list[str]:
        """The names that occur in `column` among `rows` (bool [R]), in the table's order."""
        codes, first = np.unique(self.codes[column][rows], return_index=True)
        return [self.names[column][code] for code in codes[np.argsort(first)]]


def append(path: str | os.PathLike, rows: Sequence[ResultRow]) -> None:
    """Adds `rows` to the table at `path` (made where missing) in one locked, synced write.

    A table that somebody wrote by hand with fewer columns first gets the others, empty.
    Raises TableError when the file holds other columns or another process keeps the lock.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Lock(path):
            _complete_columns(path)
            with open(path, "ab+") as handle:
                handle.seek(0, os.SEEK_END)
                text = io.StringIO()
                writer = csv.writer(text, lineterminator="\n")
                if handle.tell() == 0:
                    writer.writerow(COLUMNS)
                else:
                    handle.seek(-1, os.SEEK_END)
                    if handle.read(1) != b"\n":  # an editor's last line; ours always end with one
                        text.write("\n")
                writer.writerows([_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
                handle.write(text.getvalue().encode())
                handle.flush()
                os.fsync(handle.fileno())
    except OSError as error:
        raise TableError(f"{path}: cannot be written: {error.strerror or error}") from error


def _complete_columns(path: Path) -> None:
    """Rewrites a table that has only some of the columns with all of them, in their order."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with _opened(path) as reader:
        header = _header(path, reader)
        if tuple(header) == COLUMNS:
            return
        foreign = [name for name in header if name not in COLUMNS]
        if foreign:
            raise TableError(
                f"{path}: column(s) {', '.join(foreign)} are not of a results table, whose columns "
                f"are {', '.join(COLUMNS)}; append to another file"
            )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for chunk, _ in _chunks(path, reader, len(header)):
            for row in chunk:
                cells = dict(zip(header, row, strict=True))
                writer.writerow([cells.get(name, "") for name in COLUMNS])
    write_text(path, text.getvalue())


def _cell(value) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Lock:
    """Advisory lock on `<path>.lock`, waited for at most LOCK_SECONDS."""

    def __init__(self, path: Path):
        self.path = path.with_name(path.name + ".lock")

    def __enter__(self):
        import fcntl

        self.handle = open(self.path, "w")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self.handle.close()
                    raise TableError(
                        f"{self.path}: another process has held this lock for {LOCK_SECONDS:.0f} s;"
                        f" `fuser {self.path}` shows which"
                    ) from None
                time.sleep(0.05)

    def __exit__(self, *_):
        self.handle.close()


def read(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> ResultsTable:
    """One table from one or several CSV files; names are resolved through the catalog.

    Raises TableError (file, line, what was expected) for anything that is not such a table.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    builder = _Builder()
    sources = []
    with _no_collection():
        for path in paths:
            _read_file(Path(path), builder)
            sources.append(str(path))
    table = builder.table(tuple(sources))
    for count, why in (
        (table.skipped, "have no finite value"),
        (table.replaced, "are replaced by newer rows"),
    ):
        if count:
            logger.warning("%s: %d rows %s and are left out", ", ".join(sources), count, why)
    return table


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
            clean = _CLEAN[name](text.strip())
            problem = _CHECK[name](clean)
            if problem:
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

    def table(self, sources: tuple[str, ...]) -> ResultsTable:
        empty = np.zeros(0)
        codes = {
            name: np.concatenate(parts) if parts else empty.astype(np.int64)
            for name, parts in self.codes.items()
        }
        floats = {
            name: np.concatenate(parts) if parts else empty for name, parts in self.floats.items()
        }
        higher = np.concatenate(self.higher) if self.higher else empty.astype(bool)
        finite = np.isfinite(floats["value"])
        newest = _newest(codes, floats["date"], finite)
        return ResultsTable(
            codes={name: column[newest] for name, column in codes.items()},
            names={name: list(lookup) for name, lookup in self.lookup.items()},
            value=floats["value"][newest],
            stderr=floats["stderr"][newest],
            higher_is_better=higher[newest],
            replaced=int(finite.sum() - len(newest)),
            skipped=int((~finite).sum()),
            sources=sources,
        )


def _newest(codes: dict[str, np.ndarray], date: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the last row (by date, then by place) of every key."""
    rows = np.flatnonzero(finite)
    if not len(rows):
        return rows
    key = np.zeros(len(rows), np.int64)
    for name in KEY:
        column = codes[name][rows]
        key = key * (int(column.max()) + 1) + column
    when = np.where(np.isnan(date[rows]), -np.inf, date[rows])
    order = np.lexsort((np.arange(len(rows)), when))[::-1]
    _, first = np.unique(key[order], return_index=True)
    return np.sort(rows[order[first]])


def _one_of_units(text: str) -> str | None:
    return None if text in UNITS else unknown_name("unit", text, UNITS)


def _quantity_problem(text: str) -> str | None:
    if not text:
        return "is empty; expected one of " + ", ".join(QUANTITIES)
    near = nearest(text, QUANTITIES)
    if text not in QUANTITIES and near and (text.lower() == near.lower() or len(text) > 4):
        return unknown_name("quantity", text, QUANTITIES)
    return None


_CLEAN = {
    "representation": catalog.representation_id,
    "quantity": str,
    "benchmark": catalog.benchmark_id,
    "unit": str,
    "protocol": str,
}
_CHECK = {
    "representation": lambda text: None if text else "is empty; expected a representation's name",
    "quantity": _quantity_problem,
    "benchmark": lambda text: None,
    "unit": _one_of_units,
    "protocol": lambda text: None,
}


@dataclass(frozen=True)
class _Where:
    """Place of a chunk in its file, for error messages."""

    path: Path
    rows_before: int
    name: str = ""

    def column(self, name: str) -> "_Where":
        return _Where(self.path, self.rows_before, name)

    def line(self, index: int) -> int:
        """Line in the file of the chunk's row `index`, counted again: only errors ask for it."""
        with open(self.path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle)
            rows = (reader.line_num for row in reader if row)
            return next(itertools.islice(rows, 1 + self.rows_before + index, None))


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
    known = {"": math.nan}
    for index, text in enumerate(column):
        if text not in known:
            try:
                moment = datetime.fromisoformat(text.strip())
                zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                known[text] = zoned.timestamp()
            except (ValueError, OverflowError):
                raise TableError(
                    f"{where.path}: line {where.line(index)}, column date: expected ISO 8601 "
                    f"such as 2026-01-31 or 2026-01-31T12:00:00+00:00, got '{text}'"
                ) from None
    return np.fromiter(map(known.__getitem__, column), np.float64, len(column))


def _read_file(path: Path, builder: _Builder) -> None:
    with _opened(path) as reader:
        header = _header(path, reader)
        for chunk, before in _chunks(path, reader, len(header)):
            columns = dict(zip(header, zip(*chunk, strict=True), strict=True))
            builder.add(columns, len(chunk), _Where(path, before))


@contextlib.contextmanager
def _opened(path: Path):
    """A CSV reader of the file; whatever is wrong with file or text becomes a TableError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            yield reader
    except FileNotFoundError:
        raise TableError(f"{path}: no such table (seen from {Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise TableError(f"{path}: line {reader.line_num}: not valid CSV: {error}") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error


def _header(path: Path, reader) -> list[str]:
    header = [name.strip() for name in next(reader, [])]
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
            if near:
                raise TableError(f"{path}: {unknown_name('column', name, COLUMNS)}")
            logger.warning("%s: column '%s' is not one of ours and is not read", path, name)
    return header


def _chunks(path: Path, reader, width: int):
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
