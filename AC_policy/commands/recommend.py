"""`law policy recommend`: what to finetune next on one benchmark."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from AC_policy.flags import add_constants, add_json, add_scale, add_study, bayes_options, read_study
from AC_policy.text import footer, number, percent, text_table
from llava import catalog
from llava.files import write_json

if TYPE_CHECKING:
    from AC_policy.recommend import Recommendation


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its flags."""
    recommend = commands.add_parser("recommend", help="what to finetune next, and when to stop")
    add_study(recommend, paper=("prior", "join", "off"))
    add_scale(recommend)
    add_json(recommend)
    recommend.add_argument("--benchmark", required=True, help="lmms-eval task or display name")
    recommend.add_argument(
        "--tolerance", type=float, help="expected regret to stop at, fraction of the range"
    )
    recommend.add_argument(
        "--cost", default="paper", metavar="{paper,authors,llava}", help="GPU hours by whose count"
    )
    recommend.add_argument(
        "--rank-anyway", action="store_true", help="rank also where the law fails its test"
    )
    recommend.add_argument(
        "--replay", action="store_true", help="what it would have said, run by run"
    )
    add_constants(recommend)
    recommend.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints it, and writes it with --json."""
    from AC_policy.recommend import recommend

    options = bayes_options(arguments)
    study = read_study(arguments, [arguments.benchmark])
    answer = recommend(
        study,
        arguments.benchmark,
        paper=arguments.paper if arguments.table else "off",
        options=options,
        scale=arguments.scale,
        cost=arguments.cost,
        rank_anyway=arguments.rank_anyway,
        replay=arguments.replay,
        seed=arguments.seed,
    )
    print_recommendation(answer)
    print(
        footer(study, f"scale over {answer.scale}; prior from {len(answer.prior_from)} benchmarks")
    )
    if arguments.json:
        write_json(arguments.json, dataclasses.asdict(answer))


def print_recommendation(answer: "Recommendation") -> None:
    """The recommendation as text, how far to trust it first."""
    show = catalog.display_representation
    print(f"{catalog.display_benchmark(answer.benchmark)}: {answer.k} of {answer.n} finetuned\n")
    print(f"The law {_VERDICTS[answer.trust.verdict]}: {answer.trust.reason}.\n")
    if answer.ranking is None:
        print("Nothing is ranked by a law that does not hold; --rank-anyway ranks all the same.\n")
    else:
        rows = [
            [
                str(row.rank),
                show(row.representation),
                "run" if row.finetuned else "",
                number(row.measured, 2),
                number(row.predicted, 2),
                f"{number(row.low, 2)} to {number(row.high, 2)}" if row.low is not None else "",
                *percent(row.p_best, row.p_top3),
            ]
            for row in answer.ranking[:20]
        ]
        head = ["", "representation", "", answer.unit, "predicted", "80 %", "P best", "P top 3"]
        print(text_table(head, rows) + "\n")
        if len(answer.ranking) > 20:
            print(f"... and {len(answer.ranking) - 20} more; --json writes them all\n")
    if answer.take:
        ties = ", ".join(map(show, answer.take_ties))
        print(
            f"best so far    {show(answer.take)}"
            + (f" (a rerun may favour {ties})" if ties else "")
        )
    if answer.next:
        print(f"finetune next  {show(answer.next)}")
    if answer.stop:
        why = "everything is finetuned" if answer.k == answer.n else "more runs promise too little"
        print(f"stop           {why}")
    if answer.expected_regret is not None:
        print(
            f"regret         {100 * answer.expected_regret:.1f} % of the range expected when "
            f"stopping now; tolerance {100 * answer.tolerance:g} %"
        )
    cost = answer.savings
    print(
        f"GPU hours      {cost.spent:,.0f} of {cost.all:,.0f} spent, {cost.saved:,.0f} not"
        + (f"; the next run costs {cost.next:,.0f}" if answer.next else "")
        + f" ({cost.note})\n"
    )
    for step in answer.replay or []:
        print(
            f"  run {step.k}: " + (show(step.finetuned) if step.finetuned else "nothing yet"),
            end="",
        )
        if step.held:
            print(
                f"; best {show(step.held)}, P best {100 * step.p_best_held:.0f} %, expected regret "
                f"{100 * step.expected_regret:.1f} %, true {100 * step.true_regret:.1f} %",
                end="",
            )
        print("; stop" if step.stop else "")


_VERDICTS = {
    "holds": "holds",
    "fails": "FAILS its test here",
    "not testable yet": "is not testable yet",
}
