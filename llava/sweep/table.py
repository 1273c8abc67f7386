"""One results table of many: the rows of every step that is done, in the order of the graph."""

from collections.abc import Iterable
from pathlib import Path

from llava.errors import TableError
from llava.files import write_text
from llava.results import COLUMNS

HEAD = ",".join(COLUMNS)


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
