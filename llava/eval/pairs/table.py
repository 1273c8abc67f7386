"""`law pairs table`: the accuracies of several runs beside each other, with chance above them.

A row is a run, a column an accuracy of a benchmark, in percent. Numbers of different data or of
different protocols (two-way and four-way, original and corrected labels) never share a column.
"""

import argparse
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import UsageError, unknown_name
from llava.eval.pairs.accuracies import ACCURACIES
from llava.eval.pairs.result import read_result

CHANCE = "chance"
FIRST = ("run", "scorer")


@dataclass(frozen=True)
class Column:
    """One accuracy of one benchmark."""

    benchmark: str
    axis: str
    """Empty for all of it."""
    metric: str
    protocol: str = ""
    """Named where the table holds several of the benchmark."""

    @property
    def title(self) -> str:
        """As the table's head has it."""
        said = (self.benchmark, self.protocol and f"({self.protocol})", self.axis, self.metric)
        return " ".join(filter(None, said)).replace("_", " ")


def main(argv: list[str], prog: str = "law pairs table") -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="results of law pairs run")
    parser.add_argument("--format", default="text", metavar="{text,md,csv}", help="default: text")
    parser.add_argument("--axes", action="store_true", help="also by axis, e.g. left/right alone")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["individual", "pair", "set", "same_choice"],
        metavar="NAME",
        help=f"columns, of {', '.join((*ACCURACIES, 'same_choice'))}",
    )
    parser.add_argument(
        "--by-protocol", action="store_true", help="a column for each protocol, where they differ"
    )
    arguments = parser.parse_args(argv)
    if arguments.format not in FORMATS:
        raise UsageError(f"--format: {unknown_name('format', arguments.format, FORMATS)}")
    for name in arguments.metrics:
        if name not in (*ACCURACIES, "same_choice"):
            raise UsageError(f"--metrics: {unknown_name('accuracy', name, ACCURACIES)}")
    found = {name: read_result(Path(name)) for name in arguments.files}
    lines = lines_of(found, arguments.metrics, arguments.axes, arguments.by_protocol)
    print(FORMATS[arguments.format](lines), end="")


def as_text(results: Mapping[str, dict[str, Any]]) -> str:
    """The table of results by file name, all that it has, turned: a line for each accuracy."""
    lines = lines_of(results, (*ACCURACIES, "same_choice"), axes=True)
    return _text([list(row) for row in zip(*lines, strict=True)])


def lines_of(
    results: Mapping[str, dict[str, Any]],
    metrics: Sequence[str],
    axes: bool = False,
    by_protocol: bool = False,
) -> list[list[str]]:
    """Head, chance, and a line for every run; UsageError where numbers do not compare."""
    _check_comparable(results, by_protocol)
    cells: list[tuple[str, str, dict[Column, dict]]] = []
    for result in results.values():
        cells.append(
            (_label(result), result["protocol"], _cells(result, metrics, axes, by_protocol))
        )
    columns = list(dict.fromkeys(column for _, _, found in cells for column in found))
    chance = {column: one["chance"] for _, _, found in cells for column, one in found.items()}
    lines = [[*FIRST, *(column.title for column in columns)]]
    lines.append([CHANCE, "", *(_percent(chance[column]) for column in columns)])
    for label, scorer, found in cells:
        shown = [
            _percent(found[column]["accuracy"]) if column in found else "" for column in columns
        ]
        lines.append([label, scorer, *shown])
    return lines


def _cells(
    result: dict[str, Any], metrics: Sequence[str], axes: bool, by_protocol: bool
) -> dict[Column, dict[str, Any]]:
    found = {}
    for one in result["results"]:
        protocol = one["protocol"] if by_protocol else ""
        parts = {"": one} | (one["by_axis"] if axes else {})
        for axis, measured in parts.items():
            for metric in metrics:
                if measured.get(metric):
                    found[Column(one["benchmark"], axis, metric, protocol)] = measured[metric]
    return found


def _label(result: dict[str, Any]) -> str:
    """Model and representation, as far as they differ."""
    model, representation = result["model"], result["representation"]
    return representation if model in (None, representation) else f"{model} ({representation})"


def _check_comparable(results: Mapping[str, dict[str, Any]], by_protocol: bool) -> None:
    """Refuses one column of different questions, saying what differs and in which files."""
    seen: dict[tuple[str, str], tuple[str, str, str]] = {}
    for file, result in results.items():
        for one in result["results"]:
            key = (one["benchmark"], one["protocol"] if by_protocol else "")
            mine = (one["protocol"], one["digest"], file)
            theirs = seen.setdefault(key, mine)
            if theirs[0] != mine[0]:
                raise UsageError(
                    f"{one['benchmark']}: protocol '{theirs[0]}' in {theirs[2]} and '{mine[0]}' in "
                    f"{file} do not compare; leave one out, or give each a column: --by-protocol"
                )
            if theirs[1] != mine[1]:
                raise UsageError(
                    f"{one['benchmark']}: {theirs[2]} and {file} are of different data (digests "
                    f"{theirs[1]} and {mine[1]}), so their numbers do not compare; run one of them "
                    "again on the other's data, or give the benchmark another name in its "
                    "configuration"
                )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(
            cell.ljust(width) if place < 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *others = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    rule = ["---", "---", *["---:"] * (len(head) - len(FIRST))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *others))


def _csv(lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Sequence[str]]], str]] = {
    "text": _text,
    "md": _markdown,
    "csv": _csv,
}
