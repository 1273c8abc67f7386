"""`law report`: one self-contained HTML file: decisions first, then what they rest on."""

import argparse
from pathlib import Path

from AC_policy.cli import add_study, read_study
from llava.files import ensure_writable, write_text
from llava.log import get_logger

logger = get_logger("report")


def main(argv: list[str]) -> None:
    """Writes the report and prints where it is."""
    parser = argparse.ArgumentParser(
        prog="law report", description="One HTML file: the law, the ranking, how sure it is."
    )
    add_study(parser, paper=("prior", "join", "off"))
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default report.html"
    )
    parser.add_argument(
        "--benchmark", default="", help="shown in the large figures; default: the first"
    )
    parser.add_argument("--trials", type=int, default=1000, help="of the random policies")
    parser.add_argument(
        "--cost", default="paper", metavar="{paper,authors,llava}", help="GPU hours by whose count"
    )
    parser.add_argument(
        "--sensitivity",
        type=Path,
        metavar="JSON",
        help="what `law policy sensitivity --json` wrote; left out of the report without it",
    )
    parser.add_argument(
        "--correspondence",
        type=Path,
        metavar="DIR",
        help="with c_score.json as `law c-score --json` wrote it, and pictures/; "
        "a folder that is not there is left out",
    )
    arguments = parser.parse_args(argv)
    if arguments.correspondence and not arguments.correspondence.exists():
        logger.warning("%s is not there: no section on it", arguments.correspondence)
        arguments.correspondence = None
    ensure_writable(arguments.out)
    from AC_policy.report.content import gather
    from AC_policy.report.page import render

    also = [arguments.benchmark] if arguments.benchmark else []
    content = gather(
        read_study(arguments, also),
        arguments.benchmark,
        paper=arguments.paper if arguments.table else "off",
        trials=arguments.trials,
        cost=arguments.cost,
        sensitivity=arguments.sensitivity,
        correspondence=arguments.correspondence,
        seed=arguments.seed,
    )
    write_text(arguments.out, render(content))
    print(arguments.out)
