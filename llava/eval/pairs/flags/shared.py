"""Flags that several scorers have."""

import argparse


def add_batch_size(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """`--batch-size`; `what` are its units."""
    parser.add_argument(
        "--batch-size", type=int, default=default, metavar="N", help=f"{what} (default: {default})"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`, which llava.extraction.usable_device reads."""
    parser.add_argument("--device", default="", help="cpu, cuda:0, ...; default: a GPU if any")


def add_tower_alias(parser: argparse.ArgumentParser) -> None:
    """`--tower-alias`, several times if need be; registry.parse_replacements reads it."""
    parser.add_argument(
        "--tower-alias",
        "--tower_alias",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="read the weights of a tower (or of what embeds texts) from another folder or hub id",
    )
