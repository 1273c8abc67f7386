"""`law pairs agree`: how alike towers find the images of pairs that differ in one respect.

docs/pairs.md says what the numbers mean.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import LawError, UsageError
from llava.eval.pairs.agree_report import ALIKE, UNLIKE, as_text, compare, plain, report_of, rows
from llava.files import ensure_writable, write_json
from llava.log import get_logger

if TYPE_CHECKING:  # what computes is imported when there is something to compute: --help is quick
    from llava.eval.pairs.agreement import Way
    from llava.eval.pairs.items import Benchmark

logger = get_logger("pairs")


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
        report_of(representation, alike, benchmarks, pairs)
        for representation, alike in zip(representations, found, strict=True)
    ]
    if arguments.beside:
        compare(reports, reports[names.index(arguments.beside)])
    print(as_text(reports))
    protocol = _protocol(way, arguments.limit)
    if arguments.out:
        write_json(arguments.out, plain(reports, protocol))
    if arguments.results:
        from llava import results

        run_dir = str(arguments.out.parent) if arguments.out else ""
        found_rows = [row for one in reports for row in rows(one, protocol, run_dir)]
        results.append(arguments.results, found_rows, skip_known=True)


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


def _protocol(way: "Way", limit: int | None) -> str:
    """What a number depends on besides the tower and the benchmark."""
    parts = ["agree", way.pool, way.frame, way.dtype, f"limit-{limit}" if limit else ""]
    return "/".join(filter(None, parts))
