"""Flags that several commands share, and what they select."""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.config import load
from llava.errors import UsageError, unknown_name
from llava.results_schema import QUANTITIES

if TYPE_CHECKING:  # what computes is imported by the command that needs it: --help is quick
    from AC_policy.policies import BayesOptions
    from AC_policy.study import Study

SCALES = ("candidates", "finetuned")


def add_study(parser: argparse.ArgumentParser, paper: Sequence[str]) -> None:
    """Adds the flags that select a study; `paper` are the values that --paper may take."""
    meaning = {
        "prior": "its benchmarks teach the prior (default)",
        "join": "its rows join the table's",
        "off": "not used" + ("" if "prior" in paper else " (default)"),
    }
    parser.add_argument(
        "--table",
        action="extend",
        nargs="+",
        metavar="CSV",
        help="results tables; default: the paper's",
    )
    parser.add_argument(
        "--paper",
        choices=paper,
        default="prior" if "prior" in paper else "off",
        help="beside --table, the paper's: " + "; ".join(f"{k}: {meaning[k]}" for k in paper),
    )
    parser.add_argument("--a", default="cosine", metavar="{cosine,nll}", help="which A score")
    parser.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="QUANTITY[:BENCHMARK]=NAME",
        help="which protocol, where the table holds several; may be given repeatedly",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default 0)")


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Adds --scale."""
    parser.add_argument(
        "--scale",
        default="candidates",
        metavar="{candidates,finetuned}",
        help="what A and C are min-max scaled over",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")


def add_constants(parser: argparse.ArgumentParser) -> None:
    """Adds --constants."""
    parser.add_argument(
        "--constants", type=Path, metavar="YAML", help="constants of bayes, see configs/policies"
    )


def read_study(
    arguments: argparse.Namespace,
    also: Sequence[str] = (),
    unaligned: bool = False,
    new: bool = False,
) -> "Study":
    """The study that the flags select; the rest as in `load_study`."""
    from AC_policy.paper import LAW_TABLES
    from AC_policy.study import load_study

    scale = getattr(arguments, "scale", SCALES[0])
    if scale not in SCALES:
        raise UsageError(unknown_name("scale", scale, SCALES))
    tables = list(arguments.table or [])
    if not tables or arguments.paper == "join":
        tables += LAW_TABLES
    return load_study(tables, arguments.a, _protocols(arguments.protocol), also, unaligned, new)


def _protocols(given: Iterable[str]) -> dict[str, str]:
    chosen = {}
    for text in given:
        where, equals, name = text.partition("=")
        if not equals:
            raise UsageError(
                f"--protocol {text}: expected QUANTITY=NAME or QUANTITY:BENCHMARK=NAME, such as "
                "C_pck=NAME"
            )
        if where.partition(":")[0] not in QUANTITIES:
            raise UsageError(unknown_name("quantity", where.partition(":")[0], QUANTITIES))
        chosen[where] = name
    return chosen


def bayes_options(arguments: argparse.Namespace) -> "BayesOptions":
    """Constants of `bayes` from --constants and --tolerance."""
    from AC_policy.policies import BayesOptions

    options = load(BayesOptions, arguments.constants) if arguments.constants else BayesOptions()
    tolerance = getattr(arguments, "tolerance", None)
    return options if tolerance is None else dataclasses.replace(options, tolerance=tolerance)
