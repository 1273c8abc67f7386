"""What readers share: rows of files with errors that say where, and images that are there."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.data.images import ImageError, path_inside
from llava.errors import LawError

WHERE = "`law pairs where` says where to get it and how to lay it out"
SHOWN = 3
"""Missing images that an error names."""


@dataclass(frozen=True)
class Row:
    """One record of a file."""

    where: str
    """File and row, for messages."""
    value: Any


def json_rows(path: Path) -> list[Row]:
    """The records of a JSON list; LawError for another file."""
    try:
        found = json.loads(text_of(path))
    except ValueError as error:
        raise LawError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else type(found).__name__
        raise LawError(f"{path}: expected a JSON list of records, got {what}; {WHERE}")
    return [Row(f"{path}: record {number}", value) for number, value in enumerate(found)]


def json_lines(path: Path) -> Iterator[Row]:
    """The JSON objects of a JSONL file, blank lines passed over; LawError for another line."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise LawError(
                f"{path}: line {number}: cannot be read as JSON: {error}; expected one object a "
                "line"
            ) from None
        if not isinstance(value, dict):
            raise LawError(f"{path}: line {number}: expected a JSON object")
        yield Row(f"{path}: line {number}", value)


def csv_rows(
    path: Path, columns: Sequence[str], other_names: Mapping[str, str] | None = None
) -> list[Row]:
    """The rows of a CSV file as mappings of at least `columns`, texts without outer blanks.

    `other_names`: what else a column may be called -> its name. LawError for a column that is
    missing, a row of another width, and no rows.
    """
    other_names = other_names or {}
    try:
        lines = list(csv.reader(io.StringIO(text_of(path))))
    except csv.Error as error:
        raise LawError(f"{path}: cannot be read as CSV: {error}; {WHERE}") from None
    head = [other_names.get(name.strip(), name.strip()) for name in lines[0]] if lines else []
    missing = [name for name in columns if name not in head]
    if missing:
        raise LawError(
            f"{path}: column(s) {', '.join(missing)} missing; found {', '.join(head) or 'none'}; "
            f"{WHERE}"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(head):
            raise LawError(f"{path}: row {number}: {len(line)} cells, expected {len(head)}")
        cells = dict(zip(head, map(_text, line), strict=True))
        rows.append(Row(f"{path}: row {number}", cells))
    if not rows:
        raise LawError(f"{path}: no rows below its header; {WHERE}")
    return rows


def _text(cell: str) -> str:
    """A cell as it was meant; published ones double quotes also where none stand around them."""
    return cell.strip().replace('""', '"')


def whole_number(row: Row, column: str) -> int:
    """A cell as a whole number; LawError for another text."""
    try:
        return int(row.value[column])
    except ValueError:
        raise LawError(
            f"{row.where}: {column} is '{row.value[column]}'; expected a whole number"
        ) from None


def text_of(path: Path) -> str:
    """A file's text; LawError where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise LawError(f"{path}: no such file (seen from {Path.cwd()}); {WHERE}") from None
    except UnicodeDecodeError as error:
        raise LawError(f"{path}: not UTF-8 text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error


def image_inside(folder: Path, name: str, where: str) -> Path:
    """Where an image that a row names is; LawError for a name that leads out of the folder."""
    try:
        return path_inside(folder, name)
    except ImageError as error:
        raise LawError(f"{where}: {error}") from None


def check_images(name: str, images: Sequence[Path]) -> None:
    """Raises LawError where files are missing: how many, and the first of them."""
    missing = [path for path in dict.fromkeys(images) if not path.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise LawError(
            f"{name}: {len(missing)} of {len(set(images))} images are not there: {shown} (seen "
            f"from {Path.cwd()}); check `images` in the configuration; {WHERE}"
        )
