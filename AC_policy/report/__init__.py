"""`law report`: one self-contained HTML file: decisions first, then what they rest on."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from AC_policy.cli import add_study, read_study
from llava.errors import TableError
from llava.files import ensure_writable, write_text
from llava.log import get_logger

if TYPE_CHECKING:  # what computes is imported when it is needed: --help is quick
    from AC_policy.report.content import Content
    from AC_policy.study import Study

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
    parser.add_argument(
        "--sweep",
        type=Path,
        metavar="JSON",
        help="summary.json of a sweep: what was run, what it cost, what failed",
    )
    arguments = parser.parse_args(argv)
    if arguments.correspondence and not arguments.correspondence.exists():
        logger.warning("%s is not there: no section on it", arguments.correspondence)
        arguments.correspondence = None
    ensure_writable(arguments.out)
    from AC_policy.report import own, sweep
    from AC_policy.report.page import render

    run = sweep.read(arguments.sweep) if arguments.sweep else None
    content = _content(arguments)
    mine = None
    if arguments.table:
        mine = own.gather(arguments.table, _protocols(arguments.protocol), arguments.seed)
    write_text(arguments.out, render(content, mine, run))
    print(arguments.out)


def _content(arguments: argparse.Namespace) -> "Content | str":
    """What the study gives; of a sweep, which may have failed half-way, as much as there is."""
    from AC_policy.report.content import gather

    also = [arguments.benchmark] if arguments.benchmark else []
    try:
        study = read_study(arguments, also)
    except TableError as error:
        if not arguments.sweep:
            raise
        study, why = _what_is_there(arguments)
        if study is None:
            return str(error)
        for reason in why:
            logger.warning("left out of the report: %s", reason)
    return gather(
        study,
        arguments.benchmark,
        paper=arguments.paper if arguments.table else "off",
        trials=arguments.trials,
        cost=arguments.cost,
        sensitivity=arguments.sensitivity,
        correspondence=arguments.correspondence,
        seed=arguments.seed,
    )


def _what_is_there(arguments: argparse.Namespace) -> "tuple[Study | None, list[str]]":
    """The study of the benchmarks that can have one, and what the others lack."""
    from AC_policy.paper import LAW_TABLES
    from AC_policy.report.own import partial_study

    tables = list(arguments.table or [])
    if not tables or arguments.paper == "join":
        tables += LAW_TABLES
    return partial_study(tables, arguments.a, _protocols(arguments.protocol))


def _protocols(given: list[str]) -> dict[str, str]:
    """Of texts that `read_study` has checked."""
    return dict(text.split("=", 1) for text in given)
