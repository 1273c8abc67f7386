"""What `law pairs agree` says: means over pairs, by axis, comparisons, a table, rows of results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command's --help is quick
    import numpy as np

    from llava.eval.pairs.agreement import Alike, Pair
    from llava.eval.pairs.items import Benchmark
    from llava.model.multimodal_encoder.registry import Representation
    from llava.results import ResultRow

ALIKE = 0.95
"""Cosine above which two images count as alike; with UNLIKE as MMVP was mined (arXiv 2401.06209,
section 2)."""
UNLIKE = 0.6
"""Cosine below which the tower of --beside finds them unlike."""
QUANTITY = "pairs_agree"
COLUMNS = ("representation", "benchmark", "axis", "n", "cosine", f"> {ALIKE}", "rank corr.")


def report_of(
    representation: "Representation",
    alike: "Alike",
    benchmarks: "Sequence[Benchmark]",
    pairs: "Sequence[Sequence[Pair]]",
) -> dict[str, Any]:
    """What one representation finds, as plain values."""
    from llava.model.representation import spec_hash

    report: dict[str, Any] = {
        "representation": representation.name,
        "spec_hash": spec_hash(representation),
        "benchmarks": {},
    }
    cosines_P, ranks_P = alike.cosines(), alike.ranks_P
    start = 0
    for benchmark, some in zip(benchmarks, pairs, strict=True):
        own = slice(start, start + len(some))
        start += len(some)
        ranks = None if ranks_P is None else ranks_P[own]
        report["benchmarks"][benchmark.name] = _summary(some, cosines_P[own], ranks)
    return report


def _summary(
    pairs: "Sequence[Pair]", cosines_P: "np.ndarray", ranks_P: "np.ndarray | None"
) -> dict[str, Any]:
    """Means of all pairs, then of those of each axis, then every pair."""
    import numpy as np

    def numbers(chosen: np.ndarray) -> dict[str, Any]:
        """Means of the chosen pairs, bool [P]."""
        cosines = cosines_P[chosen]
        spread = cosines.std(ddof=1) / np.sqrt(len(cosines)) if len(cosines) > 1 else None
        return {
            "n": len(cosines),
            "cosine": float(cosines.mean()),
            "stderr": None if spread is None else float(spread),
            "alike": float((cosines > ALIKE).mean()),
            "rank_correlation": None if ranks_P is None else float(ranks_P[chosen].mean()),
        }

    axes = np.array([pair.axis for pair in pairs])
    return {
        **numbers(np.full(len(pairs), True)),
        "by_axis": {axis: numbers(axes == axis) for axis in dict.fromkeys(axes.tolist()) if axis},
        "per_pair": [
            {
                "item": pair.item,
                "axis": pair.axis,
                "images": [path.name for path in pair.images],
                "cosine": float(cosines_P[place]),
                "rank_correlation": None if ranks_P is None else float(ranks_P[place]),
            }
            for place, pair in enumerate(pairs)
        ],
    }


def compare(reports: Sequence[dict[str, Any]], beside: dict[str, Any]) -> None:
    """Adds to each report, but that of `beside`, how many pairs only the other tells apart."""
    for report in reports:
        if report is beside:
            continue
        for name, summary in report["benchmarks"].items():
            others = beside["benchmarks"][name]["per_pair"]
            told = [
                mine["item"]
                for mine, other in zip(summary["per_pair"], others, strict=True)
                if mine["cosine"] > ALIKE and other["cosine"] < UNLIKE
            ]
            summary["beside"] = {
                "representation": beside["representation"],
                "pairs": len(told),
                "items": told,
            }


def as_text(reports: Sequence[dict[str, Any]]) -> str:
    """A table, and a line for each comparison."""
    cells, lines = [COLUMNS], []
    for report in reports:
        for name, summary in report["benchmarks"].items():
            for axis, numbers in [("all", summary), *summary["by_axis"].items()]:
                ranks = numbers["rank_correlation"]
                cells.append(
                    (
                        report["representation"],
                        name,
                        axis,
                        str(numbers["n"]),
                        f"{numbers['cosine']:.4f}",
                        f"{100 * numbers['alike']:.1f} %",
                        "" if ranks is None else f"{ranks:.4f}",
                    )
                )
            if told := summary.get("beside"):
                lines.append(
                    f"{name}: {told['pairs']} of {summary['n']} pairs are alike to "
                    f"{report['representation']} (> {ALIKE}) and not to "
                    f"{told['representation']} (< {UNLIKE})"
                )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = [
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([*table, *lines])


def plain(reports: Sequence[dict[str, Any]], protocol: str) -> dict[str, Any]:
    """As JSON has it."""
    from llava import __version__
    from llava.provenance import commit

    return {
        "protocol": protocol,
        "thresholds": {"alike": ALIKE, "unlike": UNLIKE},
        "reports": list(reports),
        "version": __version__,
        "commit": commit() or "",
    }


def rows(report: dict[str, Any], protocol: str, run_dir: str) -> "list[ResultRow]":
    """Mean cosine, share of pairs alike and mean rank correlation of every benchmark."""
    from llava.provenance import commit
    from llava.results import ResultRow

    return [
        ResultRow(
            representation=report["representation"],
            quantity=QUANTITY,
            benchmark=f"{benchmark}_{what}",
            value=summary[key],
            unit="fraction",
            higher_is_better=False,
            stderr=summary["stderr"] if key == "cosine" else None,
            n=summary["n"],
            protocol=protocol,
            spec_hash=report["spec_hash"],
            run_dir=run_dir,
            commit=commit() or "",
        )
        for benchmark, summary in report["benchmarks"].items()
        for what, key in (("cosine", "cosine"), ("alike", "alike"), ("rank", "rank_correlation"))
        if summary[key] is not None
    ]
