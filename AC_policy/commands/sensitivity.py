"""`law policy sensitivity`: how far `bayes` carries."""

import argparse
import dataclasses

from AC_policy.flags import add_json, add_study, read_study
from AC_policy.text import footer, number, text_table
from llava import catalog
from llava.files import write_json


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its flags."""
    sensitivity = commands.add_parser(
        "sensitivity", help="how far bayes carries: its constants, nested choice, unseen candidates"
    )
    add_study(sensitivity, paper=("join", "off"))
    add_json(sensitivity)
    sensitivity.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints it, and writes it with --json."""
    from AC_policy.held_out import held_out
    from AC_policy.sensitivity import CHOSEN_AT, nested, sensitivity

    study = read_study(arguments)
    unseen = held_out(study, seed=arguments.seed)
    variants, chosen = sensitivity(study, arguments.seed), nested(study)
    print("bayes with one constant changed; recall@3 and regret of the top 3 after 3, 4, 5 runs\n")
    rows = [
        [
            row.constant,
            str(row.value) + (" *" if row.default else ""),
            *map(number, row.recall_at_3),
            *map(number, row.regret_top3),
            f"{row.runs:.2f}",
            number(row.regret, 4),
            number(row.worst_regret, 4),
        ]
        for row in variants
    ]
    runs = [str(k) for k in CHOSEN_AT]
    print(text_table(["constant", "", *runs, *runs, "stops at", "regret", "worst"], rows))
    print("\n* default\n\nconstants chosen on the other benchmarks only:\n")
    rows = [
        [
            catalog.display_benchmark(row.benchmark),
            ", ".join(f"{name} {value or '-'}" for name, value in row.constants.items()),
            *map(number, [row.recall_at_3[k] for k in CHOSEN_AT]),
            *map(number, [row.regret_top3[k] for k in CHOSEN_AT]),
        ]
        for row in chosen
    ]
    print(text_table(["benchmark", "constants", *runs, *runs], rows) + "\n")
    print(
        f"representations that the prior never saw: {unseen.seen} others teach it on the other\n"
        f"benchmarks, {unseen.unseen} are left to choose among; regret after k runs, mean of "
        f"{unseen.splits} splits\n"
    )
    rows = [[name, *map(number, regret)] for name, regret in unseen.regret.items()]
    print(text_table(["k", *map(str, range(1, unseen.unseen))], rows))
    print(
        f"\nbayes stops after {unseen.stops:.2f} of {unseen.unseen} runs, regret then "
        f"{unseen.regret_then:.4f}\n"
    )
    print(footer(study, ""))
    if arguments.json:
        write_json(
            arguments.json,
            {
                "protocols": study.protocols,
                "held_out": dataclasses.asdict(unseen),
                "variants": [dataclasses.asdict(row) for row in variants],
                "nested": [dataclasses.asdict(row) for row in chosen],
            },
        )
