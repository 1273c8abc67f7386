"""One results table of many: the rows of every step that is done, in the order of the graph."""

from collections.abc import Iterable
from pathlib import Path

from llava.errors import TableError
from llava.files import write_text
from llava.results import COLUMNS
from llava.results_csv import opened

HEAD = ",".join(COLUMNS)


def check_rows(path: Path, names: Iterable[str]) -> None:
    """Raises TableError where the rows are not of these representations, all of them and no other.

    A number under another name would be lost to the law without a word.
    """
    wanted = set(names)
    with opened(path) as reader:
        head = next(reader, [])
        place = head.index("representation") if "representation" in head else None
        found = {row[place] for row in reader if row} if place is not None else set()
    for lacking in sorted(wanted - found):
        others = ", ".join(sorted(found - wanted)) or "none"
        raise TableError(f"{path}: no row of {lacking}; rows of others: {others}")
    for other in sorted(found - wanted):
        raise TableError(f"{path}: rows of {other}, which this step does not measure")


def compose(path: Path, tables: Iterable[Path]) -> None:
    """Writes the rows of `tables` to `path`, whole or not at all.

    Raises TableError for a file that no step of ours can have written.
    """
    rows = [HEAD]
    for table in tables:
        try:
            head, *more = table.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise TableError(f"{table}: cannot be read: {error}") from error
        if head != HEAD:
            raise TableError(f"{table}: expected the columns {HEAD}, got {head}")
        rows += more
    write_text(path, "\n".join([*rows, ""]))


def count_rows(tables: Iterable[Path]) -> int:
    """Rows of these tables in all, their heads left out; of one that is not there none."""
    found = 0
    for path in tables:
        if path.is_file():
            with open(path, "rb") as handle:
                found += max(0, sum(1 for _ in handle) - 1)
    return found
