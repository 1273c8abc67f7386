"""`law policy propose`: what a sweep runs next, on all of its benchmarks together."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from AC_policy.flags import add_constants, add_json, add_study, bayes_options, read_study
from AC_policy.text import footer, text_table
from llava import catalog
from llava.files import write_json

if TYPE_CHECKING:
    from AC_policy.propose import Proposal


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its flags."""
    propose = commands.add_parser(
        "propose", help="whose A to measure and whom to finetune next, on several benchmarks"
    )
    add_study(propose, paper=("prior", "join", "off"))
    add_json(propose)
    propose.add_argument(
        "--benchmark",
        action="extend",
        nargs="+",
        required=True,
        metavar="NAME",
        help="lmms-eval tasks or display names; nothing needs to be finetuned for them yet",
    )
    propose.add_argument("--at-once", type=int, default=1, help="runs before it is asked again")
    propose.add_argument("--most-stage1", type=int, help="representations with an A score, in all")
    propose.add_argument("--most-stage2", type=int, help="finetuned representations, in all")
    propose.add_argument(
        "--estimate-a",
        action="store_true",
        help="representations with C alone take part; A is estimated from that of their parts",
    )
    propose.add_argument(
        "--without",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="representations that cannot be run, such as one whose training failed",
    )
    propose.add_argument(
        "--tolerance", type=float, help="expected regret to stop at, fraction of the range"
    )
    propose.add_argument(
        "--rank-anyway", action="store_true", help="go on also where the law fails its test"
    )
    add_constants(propose)
    propose.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints it, and writes it with --json."""
    from AC_policy.propose import Limits, propose

    options = bayes_options(arguments)
    limits = Limits(arguments.at_once, arguments.most_stage1, arguments.most_stage2)
    study = read_study(arguments, arguments.benchmark, arguments.estimate_a, new=True)
    answer = propose(
        study,
        arguments.benchmark,
        limits,
        arguments.paper if arguments.table else "off",
        options,
        arguments.rank_anyway,
        arguments.seed,
        arguments.without,
    )
    print_proposal(answer)
    print("\n" + footer(study, ""))
    if arguments.json:
        write_json(arguments.json, dataclasses.asdict(answer))


def print_proposal(answer: "Proposal") -> None:
    """The proposal as text, benchmark by benchmark and then together."""
    show = catalog.display_representation
    rows = [
        [
            catalog.display_benchmark(name),
            f"{entry.k} of {entry.n}",
            entry.trust,
            "-" if entry.take is None else show(entry.take),
            "-" if entry.expected_regret is None else f"{100 * entry.expected_regret:.1f} %",
            "stop" if entry.stop else f"next {show(entry.next)}",
        ]
        for name, entry in answer.benchmarks.items()
    ]
    head = ["benchmark", "finetuned", "the law", "best so far", "regret", ""]
    print(text_table(head, rows) + "\n")
    for name, entry in answer.benchmarks.items():
        if entry.not_evaluated:
            print(
                f"{catalog.display_benchmark(name)}: finetuned without a result on it: "
                f"{', '.join(map(show, entry.not_evaluated))}"
            )
    for label, names in (
        ("measure A of", answer.stage1),
        ("finetune", answer.stage2),
    ):
        if names:
            print(f"{label:<13}{', '.join(map(show, names))}")
    print(f"{'stop' if answer.stop else 'go on':<13}{answer.reason}")
