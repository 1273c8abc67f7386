"""Flags of `--scorer clip`."""

import argparse

from llava.eval.pairs.flags.shared import add_batch_size, add_device, add_tower_alias


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the model and of how it is run."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="a CLIP, OpenCLIP or SigLIP; `law towers`"
    )
    parser.add_argument(
        "--frame",
        default="own",
        metavar="{own,own_pad,crop,pad,stretch}",
        help="how an image meets the model's input (default: own)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="{float32,float16,bfloat16}",
        help="of the model (default: float32)",
    )
    add_batch_size(parser, 32, "images or captions at once")
    add_device(parser)
    add_tower_alias(parser)
