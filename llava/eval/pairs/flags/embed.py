"""Flags of `--scorer embed`."""

import argparse

from llava.eval.pairs.flags.shared import add_batch_size, add_device, add_tower_alias


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the embedder and of what it is asked."""
    parser.add_argument(
        "--model-path", "--model_path", required=True, metavar="RUN", help="embedder, or any LLaVA"
    )
    parser.add_argument(
        "--model-base", "--model_base", metavar="RUN", help="unset: what training wrote beside it"
    )
    parser.add_argument(
        "--no-question", action="store_true", help="images alone, without the question"
    )
    parser.add_argument(
        "--order-seed", type=int, default=0, help="of the alternatives' order for single images"
    )
    parser.add_argument("--dtype", metavar="NAME", help="unset: bfloat16 on CUDA, float32 on a CPU")
    add_batch_size(parser, 8, "rows at once")
    add_device(parser)
    add_tower_alias(parser)
