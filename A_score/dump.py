"""`law a-score dump`: projected tokens of a benchmark's images, for `law a-score cosine`.

docs/a_score.md says what is drawn and what is written; dumping.py does the work.
"""

import argparse
from pathlib import Path

from llava.errors import UsageError

LEAST = {"n": 1, "seed": 0, "batch_size": 1}


def main(argv: list[str], prog: str = "law a-score dump") -> None:
    """Dumps every run on every benchmark, as far as that is not there."""
    arguments = _parser(prog).parse_args(argv)
    for name, least in LEAST.items():
        if getattr(arguments, name) < least:
            raise UsageError(f"--{name} {getattr(arguments, name)}: expected {least} or more")
    # imported when there is something to do: --help is quick
    from A_score.dumping import Options, describe, dump
    from llava.eval.image_sources import find_sources
    from llava.extraction import usable_device
    from llava.model.multimodal_encoder.registry import parse_replacements

    options = Options(
        arguments.dtype,
        usable_device(arguments.device),
        arguments.batch_size,
        arguments.features,
        parse_replacements(arguments.tower_alias),
    )
    manifests = describe(arguments.run, arguments.names or [], options)
    sources = find_sources(
        arguments.benchmark, arguments.images, arguments.image_folder, arguments.include_path
    )
    dump(manifests, sources, arguments.out, arguments.n, arguments.seed, options, arguments.pt)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Projected tokens of a benchmark's images, the same for every representation.",
    )
    parser.add_argument(
        "--run",
        nargs="+",
        required=True,
        metavar="DIR",
        help="runs of stage 1, with config.json and mm_projector; or whole LLaVAs",
    )
    parser.add_argument(
        "--benchmark",
        nargs="+",
        required=True,
        metavar="NAME",
        help="lmms-eval tasks, or names for what --images says",
    )
    parser.add_argument("--n", type=int, default=100, help="images per benchmark (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("dumps"), metavar="DIR", help="default: dumps"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="a benchmark's images: a folder, or a JSON or JSONL file whose records have `image`",
    )
    parser.add_argument(
        "--image_folder", metavar="DIR", help="where a JSON's paths begin (default: its folder)"
    )
    parser.add_argument(
        "--include_path", nargs="+", default=[], metavar="DIR", help="YAMLs of further tasks"
    )
    parser.add_argument(
        "--as",
        dest="names",
        nargs="+",
        metavar="NAME",
        help="what to call each run (default: its representation)",
    )
    parser.add_argument(
        "--features", type=Path, metavar="STORE", help="read a feature store, run no tower"
    )
    parser.add_argument(
        "--pt", type=Path, metavar="DIR", help="also write tensor_<i>.pt there, i from 1"
    )
    parser.add_argument("--dtype", help="of tower and projector (default: that of training)")
    parser.add_argument("--device", default="", help="cpu, cuda:0, ...; default: a GPU if any")
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="images at once (default: 1); with more, last digits depend on which",
    )
    parser.add_argument(
        "--tower_alias",
        "--tower-alias",
        action="append",
        default=[],
        metavar="ID=FOLDER",
        help="read a tower's weights, of every run, from another folder or hub id",
    )
    return parser
