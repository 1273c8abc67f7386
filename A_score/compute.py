"""The cosine A score of dumped tokens: `python A_score/compute.py --base_folder DIR`.

`law a-score cosine` is the same. docs/a_score.md says what the number means.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llava.catalog import benchmark_id
from llava.errors import UsageError, unknown_name
from llava.exits import run_command
from llava.files import ensure_writable, write_json

if TYPE_CHECKING:  # what computes is imported when there is something to compute: --help is quick
    from A_score.folders import Benchmark
    from A_score.score import AScore

REFERENCES = ["clip336", "clip224"]
"""The CLIP towers that the published A is the mean over, 336 and 224 px."""


def main(argv: list[str], prog: str = "compute.py") -> None:
    """Scores, prints, and writes what --json and --results name."""
    arguments = _parser(prog).parse_args(argv)
    if arguments.n is not None and arguments.n < 1:
        raise UsageError(f"--n {arguments.n}: expected one image or more")
    for path in (arguments.json, arguments.results):
        if path:
            ensure_writable(path)
    scores = compute(
        arguments.base_folder,
        arguments.targets,
        arguments.references,
        benchmarks=arguments.benchmark,
        arithmetic="bfloat16" if arguments.emulate_bf16 else "float32",
        n=arguments.n,
        common=arguments.common,
    )
    print("\n\n".join(map(as_text, scores)))
    if arguments.json:
        answers = {score.benchmark: score.to_json() for score in scores}
        write_json(arguments.json, answers if len(scores) > 1 else scores[0].to_json())
    if arguments.results:
        from llava import results
        from llava.provenance import commit

        told = str(arguments.base_folder), commit() or ""
        results.append(arguments.results, [row for score in scores for row in score.rows(*told)])


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="A score, cosine: how near a tower's projected tokens come to CLIP's.",
    )
    parser.add_argument(
        "--base_folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="what `law a-score dump` wrote; or <tower>/tensor_<i>.pt, perhaps in a folder per "
        "benchmark; or a feature store",
    )
    parser.add_argument("--targets", nargs="+", metavar="TOWER", help="default: every folder")
    parser.add_argument(
        "--references",
        nargs="+",
        default=REFERENCES,
        metavar="TOWER",
        help=f"what the targets are compared with (default: {' '.join(REFERENCES)})",
    )
    parser.add_argument(
        "--benchmark",
        nargs="+",
        metavar="NAME",
        help="which benchmarks; with one folder per tower only, what to call theirs",
    )
    parser.add_argument("--n", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--common", action="store_true", help="leave out images that not all towers have"
    )
    parser.add_argument(
        "--emulate-bf16", action="store_true", help="round every step as the published numbers are"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--results", type=Path, metavar="CSV", help="append to this results table")
    return parser


def compute(
    base: Path,
    targets: list[str] | None = None,
    references: list[str] | None = None,
    *,
    benchmarks: list[str] | None = None,
    arithmetic: str = "float32",
    n: int | None = None,
    common: bool = False,
) -> "list[AScore]":
    """The score of each benchmark under `base`; missing files are found before any is scored."""
    from A_score.folders import find_benchmarks
    from A_score.score import a_score
    from A_score.tokens import pick, shared_images

    jobs = []
    for name, found in _choose(find_benchmarks(base), base, benchmarks).items():
        towers, folder = found.towers, found.folder
        reference_names = pick(towers, references or REFERENCES, "--references", folder)
        target_names = pick(towers, targets or list(towers), "--targets", folder)
        needed = [towers[tower] for tower in dict.fromkeys(reference_names + target_names)]
        drawn = list(found.draw.images) if found.draw else []
        images, left_out = shared_images(needed, folder, common, n, drawn)
        draw = found.draw if set(images) <= set(drawn) else None
        jobs.append((name, towers, target_names, reference_names, images, left_out, draw))
    return [
        a_score(
            towers,
            target_names,
            reference_names,
            images,
            benchmark=name,
            arithmetic=arithmetic,
            left_out=left_out,
            draw=draw,
        )
        for name, towers, target_names, reference_names, images, left_out, draw in jobs
    ]


def _choose(
    found: "dict[str, Benchmark]", base: Path, names: list[str] | None
) -> "dict[str, Benchmark]":
    """The benchmarks that --benchmark names; for towers right under `base`, their new name."""
    if not names:
        return found
    if all(one.folder == base for one in found.values()):
        if len(names) > 1:
            raise UsageError(
                f"--benchmark: {base} holds one benchmark, and {len(names)} names came"
            )
        return {names[0]: next(iter(found.values()))}
    chosen = {}
    for name in names:
        key = name if name in found else benchmark_id(name)
        if key not in found:
            raise UsageError(f"--benchmark: {unknown_name('benchmark', name, found)} (in {base})")
        chosen[key] = found[key]
    return chosen


def as_text(score: "AScore") -> str:
    """A table of one benchmark, largest A first."""
    head = ["target", "A", "s.e.", *score.references]
    cells = [
        [name, f"{value:.6f}", f"{error:.6f}" if error == error else "", *map("{:.6f}".format, row)]
        for name, value, error, row in sorted(
            zip(
                score.targets,
                score.a_score,
                score.stderr,
                score.values_TFI.mean(2),
                strict=True,
            ),
            key=lambda entry: -entry[1],
        )
    ]
    widths = [max(len(row[column]) for row in [head, *cells]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *cells]
    ]
    left_out = f", {score.left_out} left out" if score.left_out else ""
    footer = f"{score.benchmark}: {len(score.images)} images{left_out}; "
    footer += "; ".join(dict.fromkeys(score.protocols.values()))
    return "\n".join([*lines, "", footer])


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
