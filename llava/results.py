"""The results table: one long CSV that every measurement is appended to and the policy reads.

A row is one number with its whole protocol. Appending takes a file lock, so processes and nodes can
write to one file. Where several rows share representation, quantity, benchmark and protocol, the
newest (by date, then by place) replaces the older ones, and how many were replaced is counted.
"""

import csv
import io
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava.errors import TableError
from llava.files import write_text
from llava.log import get_logger
from llava.results_csv import Columns, chunks, opened, read_columns, read_header
from llava.results_schema import COLUMNS, QUANTITIES, UNITS, ResultRow, timestamp

__all__ = ["COLUMNS", "QUANTITIES", "UNITS", "ResultRow", "ResultsTable", "append", "read"]

logger = get_logger("results")

KEY = ("representation", "quantity", "benchmark", "protocol")
SAID = tuple(name for name in COLUMNS if name not in ("run_dir", "commit", "date"))
"""Columns that do not depend on the run that measured: two tables are the same in these."""
LOCK_SECONDS = 20.0


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


def append(path: str | os.PathLike, rows: Sequence[ResultRow], skip_known: bool = False) -> None:
    """Adds `rows` to the table at `path` (made where missing) in one locked, synced write.

    `skip_known` leaves out a row that is there already, or that says what the newest row of the
    same representation, quantity, benchmark and protocol says in all but run_dir, commit and date.
    A table that somebody wrote by hand with fewer columns first gets the others, empty.
    Raises TableError when the file holds other columns or another process keeps the lock.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Lock(path):
            _complete_columns(path)
            lines = [[_cell(getattr(row, name)) for name in COLUMNS] for row in rows]
            if skip_known:
                lines = _unknown(path, lines)
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
                writer.writerows(lines)
                _write_whole(handle.fileno(), text.getvalue().encode())
    except OSError as error:
        raise TableError(f"{path}: cannot be written: {error.strerror or error}") from error


def _unknown(path: Path, lines: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Those of `lines` (cells by COLUMNS) that the table, which has all columns, does not hold."""
    keys = {_cells(line, KEY) for line in lines}  # others need no memory
    held: set[tuple[str, ...]] = set()
    newest: dict[tuple[str, ...], tuple[float, tuple[str, ...]]] = {}

    def add(line: Sequence[str]) -> None:
        key = _cells(line, KEY)
        if key not in keys:
            return
        held.add(tuple(line))
        when = timestamp(line[COLUMNS.index("date")])
        when = -math.inf if when is None else when
        if key not in newest or when >= newest[key][0]:
            newest[key] = (when, _cells(line, SAID))

    if path.exists() and path.stat().st_size:
        with opened(path) as reader:
            header = read_header(path, reader)
            for chunk, _ in chunks(path, reader, len(header)):
                for line in chunk:
                    add(line)
    fresh = []
    for line in lines:
        known = newest.get(_cells(line, KEY))
        if tuple(line) in held or (known and known[1] == _cells(line, SAID)):
            continue
        fresh.append(line)
        add(line)
    return fresh


def _cells(line: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(line[COLUMNS.index(name)] for name in names)


def _complete_columns(path: Path) -> None:
    """Rewrites a table that has only some of the columns with all of them, in their order."""
    if not path.exists():
        return
    if path.stat().st_size < 64 and path.is_file() and not path.read_bytes().strip():
        write_text(path, "")  # blank lines only: as good as new
        return
    with opened(path) as reader:
        header = read_header(path, reader)
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
        for chunk, _ in chunks(path, reader, len(header)):
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


def _write_whole(descriptor: int, data: bytes) -> None:
    """Appends all of `data` or, where the disk is full, nothing."""
    size = os.fstat(descriptor).st_size
    rest = memoryview(data)
    try:
        while rest:  # not through a buffer, whose rest would be written when the file closes
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def read(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> ResultsTable:
    """One table from one or several CSV files; names are resolved through the catalog.

    Raises TableError (file, line, what was expected) for anything that is not such a table.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    columns = read_columns([Path(path) for path in paths])
    finite = np.isfinite(columns.value)
    newest = _newest(columns, finite)
    table = ResultsTable(
        codes={name: column[newest] for name, column in columns.codes.items()},
        names=columns.names,
        value=columns.value[newest],
        stderr=columns.stderr[newest],
        higher_is_better=columns.higher_is_better[newest],
        replaced=int(finite.sum() - len(newest)),
        skipped=int((~finite).sum()),
        sources=tuple(map(str, paths)),
    )
    for count, why in (
        (table.skipped, "have no finite value"),
        (table.replaced, "are replaced by newer rows"),
    ):
        if count:
            logger.warning("%s: %d rows %s and are left out", ", ".join(table.sources), count, why)
    return table


def _newest(columns: Columns, finite: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the last row (by date, then by place) of every key."""
    rows = np.flatnonzero(finite)
    if not len(rows):
        return rows
    key = np.zeros(len(rows), np.int64)
    for name in KEY:
        column = columns.codes[name][rows]
        key = key * (int(column.max()) + 1) + column
    when = np.where(np.isnan(columns.date[rows]), -np.inf, columns.date[rows])
    order = np.lexsort((np.arange(len(rows)), when))[::-1]
    _, first = np.unique(key[order], return_index=True)
    return np.sort(rows[order[first]])
