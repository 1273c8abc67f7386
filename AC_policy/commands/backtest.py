"""`law policy backtest`: a policy replayed where the truth is known."""

import argparse

from AC_policy.flags import add_constants, add_json, add_scale, add_study, bayes_options, read_study
from AC_policy.text import footer, number, percent, text_table
from llava.errors import UsageError
from llava.files import write_json


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its flags."""
    backtest = commands.add_parser("backtest", help="replay a policy where the truth is known")
    add_study(backtest, paper=("prior", "join", "off"))
    add_scale(backtest)
    add_json(backtest)
    backtest.add_argument("--policy", required=True, metavar="{paper,bayes,random}")
    backtest.add_argument("--trials", type=int, default=1000, help="runs of a random policy")
    backtest.add_argument(
        "--noise-band", type=float, help="fraction of the range inside which results tie"
    )
    add_constants(backtest)
    backtest.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints it, and writes it with --json."""
    from AC_policy import backtest
    from AC_policy.paper import paper_study
    from AC_policy.policies import Setting

    setting = Setting(arguments.trials, arguments.seed, arguments.scale, bayes_options(arguments))
    band = arguments.noise_band
    if band is not None and not 0 <= band < 1:
        raise UsageError(f"--noise-band is {band}; expected a fraction of the range, 0 to 1")
    study = read_study(arguments)
    lends = arguments.table and arguments.paper == "prior"
    lent = list(paper_study().tasks.values()) if lends else []
    result = backtest.backtest(study, arguments.policy, setting, band, lent)
    answer = backtest.to_json(result, study)
    print(
        f"policy {arguments.policy}, mean over {len(result.benchmarks)} benchmarks after k runs\n"
    )
    last = min(10, len(answer["mean"]["k"]) - 1)
    rows = [
        [curve, *(number(value) for value in answer["mean"][curve][1 : last + 1])]
        for curve in backtest.CURVES
    ]
    print(text_table(["k", *map(str, range(1, last + 1))], rows) + "\n")
    rows = [
        [name, *(number(entry["mean"][key]) for key in entry["mean"])]
        for name, entry in answer["baselines"].items()
    ]
    print(text_table(["no finetuning", "recall@3", "regret", "weighted tau"], rows) + "\n")
    _print_table1(answer)
    stops = [entry["stopped"] for entry in answer["benchmarks"].values() if entry["stopped"]]
    if stops:
        runs = sum(stop["finetunings"] for stop in stops) / len(stops)
        worst = max(stop["regret"] for stop in stops)
        print(
            f"stops by itself after {runs:.2f} runs on average; largest regret then {worst:.4f}\n"
        )
    if result.coverage:
        k, (calibrated, gaussian) = min(result.coverage.items(), key=lambda item: abs(item[0] - 4))
        print(
            f"80 % intervals after {k} runs hold {100 * calibrated:.0f} % of the results "
            f"({100 * gaussian:.0f} % before calibration)\n"
        )
    bands = [entry.noise_band for entry in result.benchmarks.values()]
    print(footer(study, f"noise bands {min(bands):.3f} to {max(bands):.3f} of the range"))
    if arguments.json:
        write_json(arguments.json, answer)


def _print_table1(answer: dict) -> None:
    rows = [
        [entry["display"], str(table1["finetunings"]), *percent(*list(table1.values())[1:])]
        for entry in answer["benchmarks"].values()
        if answer["policy"] == "paper" and (table1 := entry.get("table1"))
    ]
    if answer["random_row"]:
        row = answer["random_row"]
        rows.append(
            [
                "Random (best one trained)",
                str(row["finetunings"]),
                *percent(row["published_first_hit"], row["first_hit"]),
                "",
            ]
        )
    if rows:
        head = ["Table 1", "k", "published", "first hit %", "recall@3 at that k"]
        print(text_table(head, rows) + "\n")
