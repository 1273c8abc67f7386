"""`law pairs agree`: how alike towers find the images of pairs that differ in one respect.

docs/pairs.md says what the numbers mean.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import LawError, UsageError
from llava.files import ensure_writable, write_json
from llava.log import get_logger

if TYPE_CHECKING:  # what computes is imported when there is something to compute: --help is quick
    import numpy as np

    from llava.eval.pairs.agreement import Alike, Pair, Way
    from llava.eval.pairs.items import Benchmark
    from llava.model.multimodal_encoder.registry import Representation
    from llava.results import ResultRow

logger = get_logger("pairs")

ALIKE = 0.95
"""Cosine above which two images count as alike; with UNLIKE as MMVP was mined (arXiv 2401.06209,
section 2)."""
UNLIKE = 0.6
"""Cosine below which the tower of --beside finds them unlike."""
QUANTITY = "pairs_agree"
COLUMNS = ("representation", "benchmark", "axis", "n", "cosine", f"> {ALIKE}", "rank corr.")


def main(argv: Sequence[str], prog: str = "agree") -> None:
    """Measures, prints, and writes what --out and --results name."""
    arguments = _parser(prog).parse_args(argv)
    from llava.eval.pairs.agreement import measure, pairs_of, representation_for
    from llava.eval.pairs.config import read_benchmarks
    from llava.launch import launch
    from llava.model.multimodal_encoder.registry import parse_replacements

    if launch().world > 1:
        raise UsageError(
            f"{prog} runs in one process; fill a store in several by `torchrun ... law features "
            "--out STORE`, then pass --features STORE"
        )
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit}: expected 1 or more")
    for path in (arguments.out, arguments.results):
        if path:
            ensure_writable(path)
    way = _way(arguments)
    replace = parse_replacements(arguments.tower_alias)
    names = list(dict.fromkeys([*arguments.model, *filter(None, [arguments.beside])]))
    representations = [representation_for(name, way.pool, replace) for name in names]
    _check_used(replace, names)
    benchmarks = [
        benchmark
        for benchmark in read_benchmarks(arguments.config, arguments.only, arguments.limit)
        if _has_pairs(benchmark)
    ]
    if not benchmarks:
        raise LawError(f"{arguments.config}: no benchmark has pairs of images to compare")
    pairs = [pairs_of(benchmark) for benchmark in benchmarks]
    found = measure(representations, [pair for some in pairs for pair in some], way)
    reports = [
        _report(representation, alike, benchmarks, pairs)
        for representation, alike in zip(representations, found, strict=True)
    ]
    if arguments.beside:
        _compare(reports, reports[names.index(arguments.beside)])
    print(_text(reports))
    protocol = _protocol(way, arguments.limit)
    if arguments.out:
        write_json(arguments.out, _plain(reports, protocol))
    if arguments.results:
        from llava import results

        rows = [row for one in reports for row in _rows(one, benchmarks, protocol, arguments.out)]
        results.append(arguments.results, rows)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="How alike a tower, or a combination, finds the two images of a pair: cosine "
        "and rank correlation of their features. It needs no text, so any tower can be asked.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="benchmarks")
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="NAME", help="towers and combinations"
    )
    parser.add_argument(
        "--pool",
        default="mean",
        metavar="{mean,cls,flat,own}",
        help="what is compared: mean of patches (default), class token, all patches, or a CLIP's "
        "own embedding",
    )
    parser.add_argument(
        "--beside",
        metavar="NAME",
        help=f"count the pairs that a model finds alike (> {ALIKE}) and this one unlike "
        f"(< {UNLIKE}), as MMVP was mined",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="BENCHMARK", help="of the config")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each")
    parser.add_argument("--frame", default="own", help="how an image meets a tower's input")
    parser.add_argument("--features", type=Path, metavar="STORE", help="a feature store to use")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write everything here")
    parser.add_argument("--results", type=Path, metavar="CSV", help="append to this results table")
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    parser.add_argument("--device", default="", help="cpu, cuda:0, ...; default: a GPU if any")
    parser.add_argument("--dtype", default="float32", metavar="{float32,float16,bfloat16}")
    parser.add_argument(
        "--tower-alias",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="read a tower's weights from another folder or hub id",
    )
    return parser


def _way(arguments: argparse.Namespace) -> "Way":
    from llava.eval.pairs.agreement import Way
    from llava.extraction import usable_device
    from llava.model.multimodal_encoder.preprocess import check_frame

    return Way(
        pool=arguments.pool,
        frame=check_frame(arguments.frame),
        dtype=arguments.dtype,
        device=usable_device(arguments.device),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        store=arguments.features,
    )


def _check_used(replace: dict[str, str], names: Sequence[str]) -> None:
    """Raises UsageError for a --tower-alias that none of the names has."""
    from llava.model.multimodal_encoder.registry import replacements_in

    used = {old for name in names for old in replacements_in(name, replace)}
    if unused := sorted(set(replace) - used):
        raise UsageError(f"--tower-alias: none of {', '.join(names)} has {', '.join(unused)}")


def _has_pairs(benchmark: "Benchmark") -> bool:
    if any(item.pairs for item in benchmark.items):
        return True
    logger.warning("%s has no pairs of images, and is left out", benchmark.name)
    return False


def _report(
    representation: "Representation",
    alike: "Alike",
    benchmarks: "Sequence[Benchmark]",
    pairs: "Sequence[Sequence[Pair]]",
) -> dict[str, Any]:
    """What one representation finds, as plain values."""
    report: dict[str, Any] = {
        "representation": representation.name,
        "spec_hash": "+".join(part.hash() for part in representation.parts),
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


def _compare(reports: Sequence[dict[str, Any]], beside: dict[str, Any]) -> None:
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


def _text(reports: Sequence[dict[str, Any]]) -> str:
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


def _protocol(way: "Way", limit: int | None) -> str:
    """What a number depends on besides the tower and the benchmark."""
    parts = ["agree", way.pool, way.frame, way.dtype, f"limit-{limit}" if limit else ""]
    return "/".join(filter(None, parts))


def _plain(reports: Sequence[dict[str, Any]], protocol: str) -> dict[str, Any]:
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


def _rows(
    report: dict[str, Any], benchmarks: "Sequence[Benchmark]", protocol: str, out: Path | None
) -> "list[ResultRow]":
    """Mean cosine, share of pairs alike and mean rank correlation of every benchmark."""
    from llava.provenance import commit
    from llava.results import ResultRow

    told = {name: report["benchmarks"][name] for name in (one.name for one in benchmarks)}
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
            run_dir=str(out.parent) if out else "",
            commit=commit() or "",
        )
        for benchmark, summary in told.items()
        for what, key in (("cosine", "cosine"), ("alike", "alike"), ("rank", "rank_correlation"))
        if summary[key] is not None
    ]
