"""Tables and numbers as text."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from AC_policy.study import Study


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; those that hold numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *rows]) for i in range(len(head))]
    right = [all(_numeric(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [list(head), *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _numeric(cell: str) -> bool:
    return cell.strip() in ("", "-") or cell.strip()[0] in "-.0123456789"


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many digits after the point; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def percent(*values: float) -> list[str]:
    """Fractions as percents; a dash for NaN."""
    return ["-" if value != value else f"{100 * value:.1f}" for value in values]


def extent(values: Iterable[int]) -> str:
    """The smallest to the largest of whole numbers."""
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def footer(study: "Study", extra: str) -> str:
    """What every printed number rests on."""
    protocols = ", ".join(f"{name} {' '.join(found)}" for name, found in study.protocols.items())
    return f"A is {study.a}; protocols: {protocols}" + (f"; {extra}" if extra else "")
