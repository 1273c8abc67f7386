"""Features of an image folder for the C score, by the original README's option names.

    python extract_feature.py --input_path data/SPair-71k/JPEGImages \
        --output_path data/SPair-71k/features --feature DINOv2

They go into the feature store at --output_path; --pt also writes the original's files,
`<output_path>/<folders as in the input>/<image>_<suffix>.pt`, each a tensor [1, C, H, W].
"""

import argparse
import io
import sys
from pathlib import Path

if __name__ == "__main__":  # the folders beside this file are no modules: datasets, data, configs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from C_score.options import FRAMES, options, representation, sized_name, suffix_of
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
from llava.model.multimodal_encoder.registry import parse_replacements

logger = get_logger("features")


def main(argv: list[str] | None = None) -> None:
    """Extracts one feature, or several joined by '+' (each part on its own)."""
    arguments = _parser().parse_args(argv)
    if not arguments.input_path.is_dir():
        raise UsageError(
            f"--input_path {arguments.input_path}: no such folder; `bash data/prepare_spair.sh` "
            "fetches SPair-71k"
        )
    found = representation(
        arguments.feature, arguments.protocol, parse_replacements(arguments.tower_alias)
    )
    images, store = find_images([arguments.input_path]), FeatureStore(arguments.output_path)
    if arguments.pt:
        _check_stems(images)
    options = {**run_options(arguments), "frame": FRAMES[arguments.protocol], "skip_bad": True}
    done = []
    for mirrored in (False, True) if arguments.flip else (False,):
        ready = extract(found, images, store, mirrored=mirrored, **options)
        for one in ready if arguments.pt else ():
            single = len(found.parts) == 1
            name = arguments.feature if single else sized_name(one.space.spec)
            ending = suffix_of(name) + (FLIPPED if mirrored else "")
            export(one.space, one.keys, arguments.input_path, arguments.output_path, ending)
        done += ready
    report(done)
    if not arguments.skip_bad:
        refuse_bad(done)


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
        help=f"{', '.join(options())}, or any name or combination that `law towers` understands",
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
    return parser


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "extract_feature")
