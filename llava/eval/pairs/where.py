"""`law pairs where`: where to get each set, how to lay it out; and whether it is all there."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llava.errors import LawError, UsageError, unknown_name
from llava.eval.pairs.items import Benchmark
from llava.eval.pairs.sources import Source, sources
from llava.log import progress

SHOWN = 5
"""Damaged images that an error names."""
THREADS = 8


def main(argv: list[str], prog: str = "law pairs where") -> None:
    """Prints the sets' sources; with --check reads a configuration's data, every image of it."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help="default: all")
    parser.add_argument(
        "--check", action="store_true", help="read all data of --config: files, images, counts"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="what --check reads")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="benchmarks of the configuration"
    )
    arguments = parser.parse_args(argv)
    if arguments.check != bool(arguments.config):
        raise UsageError("give both or none: --check --config configs/pairs/whatsup.yaml")
    if arguments.check:
        if arguments.sets:
            raise UsageError(f"--check reads --config; drop {' '.join(arguments.sets)}")
        print(check(arguments.config, arguments.only), end="")
        return
    known = sources()
    for name in arguments.sets:
        if name not in known:
            raise UsageError(unknown_name("set", name, known))
    chosen = [one for name, one in known.items() if name in (arguments.sets or known)]
    print("\n".join(map(told, chosen)), end="")


def told(source: Source) -> str:
    """A set's facts as text."""
    counts = [
        f"    {name}: {', '.join(f'{count} {what}' for what, count in found.items())}"
        for name, found in source.counts.items()
    ]
    return "".join(
        f"{line}\n"
        for line in [
            f"{source.set}: {source.title}",
            "  get",
            *(f"    {line}" for line in source.get),
            "  lay out",
            *(f"    {line}" for line in source.layout),
            f"  licence: {source.licence}",
            *(["  expected", *counts] if counts else []),
            f"  check: law pairs where --check --config {source.config}",
        ]
    )


def check(config: Path, only: Sequence[str] = ()) -> str:
    """A line for every benchmark of a file, all of whose images decode and whose counts are right.

    Raises LawError for data that is missing, damaged or of another size than the published.
    """
    from llava.eval.pairs.config import read_benchmarks, size_difference

    lines = []
    for benchmark in read_benchmarks(config, only):
        if difference := size_difference(benchmark):
            raise LawError(f"{difference}; get the published data again")
        count = _decode(benchmark)
        lines.append(
            f"{benchmark.name}: {len(benchmark.items)} items, {count} images, all there and "
            f"readable; protocol {benchmark.protocol or 'none'}\n"
        )
    return "".join(lines)


def _decode(benchmark: Benchmark) -> int:
    """How many images it has; LawError where some do not decode."""
    paths = list(dict.fromkeys(path for item in benchmark.items for path in item.images))
    with ThreadPoolExecutor(THREADS) as threads:
        problems = list(progress(threads.map(_problem, paths), benchmark.name, len(paths)))
    bad = [f"{path}: {why}" for path, why in zip(paths, problems, strict=True) if why]
    if bad:
        shown = "; ".join(bad[:SHOWN]) + ("; ..." if len(bad) > SHOWN else "")
        raise LawError(f"{benchmark.name}: {len(bad)} of {len(paths)} images are damaged: {shown}")
    return len(paths)


def _problem(path: Path) -> str:
    """Why an image does not decode; '' where it does."""
    from llava.extraction import decode

    try:
        decode(path.read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except LawError as error:
        return str(error)
    return ""
