"""Flags of `--scorer head`."""

import argparse
from pathlib import Path

from llava.eval.pairs.flags.shared import add_batch_size, add_device, add_tower_alias


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the head and of how its towers are run."""
    parser.add_argument(
        "--head", type=Path, required=True, metavar="FOLDER", help="what `law a-score head` wrote"
    )
    add_batch_size(parser, 16, "images at once")
    add_device(parser)
    add_tower_alias(parser)
