"""CSV files read with header and every row checked, each row with its line."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from C_score.datasets.parsing import finite
from llava.errors import LawError, nearest, unknown_name

Row = tuple[int, dict[str, str]]
"""Line in the file, and its cells by column, without blanks around them."""


def read_table(
    path: Path, required: Sequence[str], optional: Sequence[str] | None, remedy: str
) -> tuple[list[str], list[Row]]:
    """(columns, rows); blank lines are passed over.

    `optional` None lets any other column stand, unread. LawError names file and line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, required, optional, remedy)
            rows = []
            for cells in reader:
                if any(map(str.strip, cells)):
                    rows.append(
                        (reader.line_num, _row(header, cells, f"{path}, line {reader.line_num}"))
                    )
    except FileNotFoundError:
        raise LawError(f"{path}: no such file (seen from {Path.cwd()}); {remedy}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LawError(
            f"{path}: cannot be read as a CSV file in UTF-8: {error}; {remedy}"
        ) from error
    if not rows:
        raise LawError(f"{path}: has a header and no rows; {remedy}")
    return header, rows


def _check_header(
    path: Path,
    header: list[str],
    required: Sequence[str],
    optional: Sequence[str] | None,
    remedy: str,
) -> None:
    expected = ",".join(required) + (f"[,{','.join(optional)}]" if optional else "")
    if not any(header):
        raise LawError(f"{path}, line 1: no header; expected {expected}; {remedy}")
    for name in required:
        if name not in header:
            near = nearest(name, [c for c in header if c not in required])
            hint = f"; is '{near}' meant for it?" if near else ""
            raise LawError(
                f"{path}, line 1: no column '{name}'{hint}; expected {expected}; {remedy}"
            )
    for name in header:
        if optional is not None and name not in (*required, *optional):
            known = [*required, *optional]
            raise LawError(
                f"{path}, line 1: {unknown_name('column', name, known)}; expected {expected}"
            )
        if header.count(name) > 1:
            raise LawError(f"{path}, line 1: column '{name}' stands there twice")


def _row(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(header):
        raise LawError(f"{where}: {len(cells)} cells; expected {len(header)}: {','.join(header)}")
    return {name: cell.strip() for name, cell in zip(header, cells, strict=True)}


def number(text: str, where: str, what: str) -> float:
    """The finite number that `text` spells; LawError names `what` it should be."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not finite(value):
        raise LawError(f"{where}: {what} is {text!r}; expected a number of pixels")
    return value
