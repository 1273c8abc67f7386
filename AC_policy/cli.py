"""`law policy ...`: results on stdout, all of them in JSON."""

import argparse

from AC_policy.commands import backtest, fit, propose, recommend, sensitivity
from AC_policy.flags import add_study, read_study
from llava.files import ensure_writable

__all__ = ["add_study", "main", "read_study"]


def main(argv: list[str]) -> None:
    """Runs one sub-command."""
    arguments = _parser().parse_args(argv)
    if arguments.json:
        ensure_writable(arguments.json)
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="law policy",
        description="The AC law and policy on the paper's results, or on your own table.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (fit, backtest, recommend, propose, sensitivity):
        command.add(commands)
    return parser
