"""What `law evaluate` prints: results as a table, or what a call would do."""

from collections.abc import Sequence

from llava import catalog
from llava.results import ResultRow

HEAD = ("benchmark", "value", "s.e.", "unit", "n", "protocol")


def as_table(rows: Sequence[ResultRow]) -> str:
    """A line for every result, in their order; empty for none."""
    if not rows:
        return ""
    cells = [HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    numbers = {HEAD.index(name) for name in ("value", "s.e.", "n")}
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines) + "\n"


def _cells(row: ResultRow) -> tuple[str, ...]:
    return (
        catalog.display_benchmark(row.benchmark),
        f"{row.value:.5g}",
        "" if row.stderr is None else f"{row.stderr:.2g}",
        row.unit,
        str(row.n),
        row.protocol,
    )
