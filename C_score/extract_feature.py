"""Features of an image folder for the C score, by the original README's option names.

    python extract_feature.py --input_path data/SPair-71k/JPEGImages \
        --output_path data/SPair-71k/features --feature DINOv2

They go into the feature store at --output_path; --pt also writes the original's files,
`<output_path>/<folders as in the input>/<image>_<suffix>.pt`, each a tensor [1, C, H, W]. Several
options are joined by '+', and take settings: `DIFT1.5@512:t=261+DINOv2`.
"""

import argparse
import dataclasses
import io
import socket
import sys
from pathlib import Path

if __name__ == "__main__":  # the folders beside this file are no modules: datasets, data, configs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from C_score.options import (
    FRAMES,
    file_suffix,
    options,
    replacements,
    representation,
    sized_name,
)
from C_score.sources import FLIPPED
from llava.errors import UsageError
from llava.exits import run_command
from llava.extraction import (
    add_arguments,
    extract,
    find_images,
    refuse_bad,
    report,
    run_options,
)
from llava.features import FeatureStore, Space
from llava.files import write_bytes
from llava.log import get_logger, progress
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_encoder.spec import TowerSpec

logger = get_logger("features")

LONGEST_NAME = 255 - 28 - len(socket.gethostname())
"""Bytes of a file's name: what file systems take, less what is around it until it is whole."""


def main(argv: list[str] | None = None) -> None:
    """Extracts one feature, or several joined by '+' (each part on its own)."""
    arguments = _parser().parse_args(argv)
    if not arguments.input_path.is_dir():
        raise UsageError(
            f"--input_path {arguments.input_path}: no such folder; `bash data/prepare_spair.sh` "
            "fetches SPair-71k"
        )
    replace = replacements(arguments.tower_alias)
    found = representation(arguments.feature, arguments.protocol, replace)
    endings = {spec: file_suffix(spec, arguments.protocol, replace) for spec in found.parts}
    images, store = find_images([arguments.input_path]), FeatureStore(arguments.output_path)
    if arguments.pt:
        _check_stems(images)
        _check_lengths(images, max(endings.values(), key=len), arguments.flip)
    dtypes = _dtypes(found, arguments)
    arguments.dtype = arguments.dtype or "float32"
    options = {**run_options(arguments), "frame": FRAMES[arguments.protocol], "skip_bad": True}
    done = []
    for mirrored in (False, True) if arguments.flip else (False,):
        for dtype, parts in dtypes.items():
            some = dataclasses.replace(found, parts=tuple(parts))
            options["dtype"] = dtype
            ready = extract(some, images, store, mirrored=mirrored, **options)
            for spec, one in zip(parts, ready, strict=True) if arguments.pt else ():
                ending = endings[spec] + (FLIPPED if mirrored else "")
                export(one.space, one.keys, arguments.input_path, arguments.output_path, ending)
            done += ready
    report(done)
    if not arguments.skip_bad:
        refuse_bad(done)


def _dtypes(found: Representation, arguments: argparse.Namespace) -> dict[str, list[TowerSpec]]:
    """The parts by the dtype that they are computed in.

    That of --dtype; else float32, under protocol `paper` bfloat16 for what depends on it.
    """
    dtypes: dict[str, list[TowerSpec]] = {}
    for spec in found.parts:
        dtype = arguments.dtype or "float32"
        if not arguments.dtype and arguments.protocol == "paper" and spec.depends_on_dtype:
            dtype = "bfloat16"
            logger.info(
                "%s: in bfloat16, as the published features, which leaves no noise at t 1; "
                "--dtype float32 takes another",
                sized_name(spec, "paper"),
            )
        dtypes.setdefault(dtype, []).append(spec)
    return dtypes


def _check_stems(images: list[Path]) -> None:
    """UsageError where two images would share one .pt file."""
    first: dict[Path, Path] = {}
    for path in images:
        other = first.setdefault(path.with_suffix(""), path)
        if other != path:
            raise UsageError(
                f"--pt: {other} and {path} would both be written to {path.stem}_<feature>.pt; "
                "rename one, or leave --pt out, since the store keeps them apart"
            )


def _check_lengths(images: list[Path], ending: str, flip: bool) -> None:
    """UsageError where a file's name would be longer than file systems take."""
    for path in images:
        name = f"{path.stem}_{ending}{FLIPPED if flip else ''}.pt"
        if len(name.encode()) > LONGEST_NAME:
            raise UsageError(
                f"--pt: the name {name} is {len(name.encode())} bytes long, more than the "
                f"{LONGEST_NAME} that can be written; rename {path}, or leave --pt out"
            )


def export(
    space: Space, keys: dict[Path, str], images: Path, out: Path, ending: str
) -> dict[Path, Path]:
    """Writes `<image>_<ending>.pt` files [1, C, H, W] below `out`; image -> file.

    A file that is there with the same bytes is left alone; others are replaced, which is said.
    """
    rows, columns = space.spec.grid
    written, replaced = {}, 0
    for path in progress(sorted(keys), f"writing _{ending}.pt"):
        tokens_NC = space.read(keys[path])
        feature = tokens_NC.T.reshape(1, -1, rows, columns).contiguous()
        buffer = io.BytesIO()
        torch.save(feature, buffer)
        stem = path.relative_to(images).with_suffix("")
        target = out / stem.with_name(f"{stem.name}_{ending}.pt")
        there = target.is_file()
        if not there or target.read_bytes() != buffer.getvalue():
            write_bytes(target, buffer.getvalue())
            replaced += there
        written[path] = target
    if replaced:
        logger.warning(
            "%d files *_%s.pt held other features (another size or protocol, or damaged) and are "
            "replaced",
            replaced,
            ending,
        )
    return written


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_path", type=Path, required=True, help="folder of images")
    parser.add_argument("--output_path", type=Path, required=True, help="the feature store")
    parser.add_argument(
        "--feature",
        required=True,
        help=f"{', '.join(options())}, or any name that `law towers` understands; with @SIZE, "
        ":OPTION=VALUE and '+' joins",
    )
    parser.add_argument(
        "--protocol",
        default="tower",
        metavar="{tower,paper}",
        help="tower: padded, own mean and std; paper: stretched and [-1, 1] as published",
    )
    parser.add_argument("--pt", action="store_true", help="also write <image>_<suffix>.pt files")
    parser.add_argument(
        "--flip", action="store_true", help="also of the mirrored images, for the adaptive flip"
    )
    add_arguments(parser)
    parser.set_defaults(dtype=None)  # left out, the protocol decides
    return parser


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "extract_feature")
