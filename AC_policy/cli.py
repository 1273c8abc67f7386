"""`law policy fit | backtest | recommend | sensitivity`: results on stdout, all of them in JSON."""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava import catalog
from llava.config import load
from llava.errors import UsageError, unknown_name
from llava.files import ensure_writable, write_json
from llava.results import QUANTITIES

if TYPE_CHECKING:  # what computes is imported by the command that needs it: --help is quick
    from AC_policy.recommend import Recommendation
    from AC_policy.study import Study

SCALES = ("candidates", "finetuned")


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

    fit = commands.add_parser("fit", help="R² of A and C, left-out and under permutation")
    add_study(fit, paper=("join", "off"))
    _add_scale(fit)
    _add_json(fit)
    fit.add_argument("--draws", type=int, default=1000, help="shuffles behind each null")
    fit.set_defaults(run=_fit)

    backtest = commands.add_parser("backtest", help="replay a policy where the truth is known")
    add_study(backtest, paper=("join", "off"))
    _add_scale(backtest)
    _add_json(backtest)
    backtest.add_argument("--policy", required=True, metavar="{paper,bayes,random}")
    backtest.add_argument("--trials", type=int, default=1000, help="runs of a random policy")
    backtest.add_argument(
        "--noise-band", type=float, help="fraction of the range inside which results tie"
    )
    _add_constants(backtest)
    backtest.set_defaults(run=_backtest)

    recommend = commands.add_parser("recommend", help="what to finetune next, and when to stop")
    add_study(recommend, paper=("prior", "join", "off"))
    _add_scale(recommend)
    _add_json(recommend)
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
    _add_constants(recommend)
    recommend.set_defaults(run=_recommend)

    sensitivity = commands.add_parser(
        "sensitivity", help="how far bayes carries: its constants, nested choice, unseen candidates"
    )
    add_study(sensitivity, paper=("join", "off"))
    _add_json(sensitivity)
    sensitivity.set_defaults(run=_sensitivity)
    return parser


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


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        default="candidates",
        metavar="{candidates,finetuned}",
        help="what A and C are min-max scaled over",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")


def _add_constants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--constants", type=Path, metavar="YAML", help="constants of bayes, see configs/policies"
    )


def read_study(arguments: argparse.Namespace, also: Sequence[str] = ()) -> "Study":
    """The study that the flags select."""
    from AC_policy.paper import LAW_TABLES
    from AC_policy.study import load_study

    scale = getattr(arguments, "scale", SCALES[0])
    if scale not in SCALES:
        raise UsageError(unknown_name("scale", scale, SCALES))
    tables = list(arguments.table or [])
    if not tables or arguments.paper == "join":
        tables += LAW_TABLES
    return load_study(tables, arguments.a, _protocols(arguments.protocol), also)


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


def _options(arguments: argparse.Namespace):
    """Constants of `bayes` from --constants and --tolerance."""
    from AC_policy.policies import BayesOptions

    options = load(BayesOptions, arguments.constants) if arguments.constants else BayesOptions()
    tolerance = getattr(arguments, "tolerance", None)
    return options if tolerance is None else dataclasses.replace(options, tolerance=tolerance)


def _fit(arguments: argparse.Namespace) -> None:
    from AC_policy.law import fit_law

    if arguments.draws < 20:
        raise UsageError(f"--draws is {arguments.draws}; a 95th percentile needs 20 or more")
    study = read_study(arguments)
    result = fit_law(study, arguments.scale, arguments.draws, arguments.seed)
    print("R² of performance on A and C: in sample, left out, and the 95th percentile of the")
    print("in-sample R² when performance is shuffled among the representations.\n")
    for kind, entries in (("benchmark", result.benchmarks), ("group", result.groups)):
        rows = [
            [catalog.display_benchmark(name), feature, *_percent(fit.r2, fit.r2_loo, fit.null_p95)]
            for name, fits in entries.items()
            for feature, fit in fits.items()
            if kind == "group" or feature == "AC_degree2"
        ]
        print(text_table([kind, "features", "R² %", "left out", "null 95"], rows) + "\n")
    print(_footer(study, f"n = {_range(result.rows.values())}, scale over {result.scale}"))
    if arguments.json:
        write_json(
            arguments.json,
            {
                "a": study.a,
                "protocols": study.protocols,
                "scale": result.scale,
                "seed": arguments.seed,
                "rows": result.rows,
                "draws": result.draws,
                "benchmarks": _plain(result.benchmarks),
                "groups": _plain(result.groups),
            },
        )


def _backtest(arguments: argparse.Namespace) -> None:
    from AC_policy import backtest
    from AC_policy.policies import Setting

    setting = Setting(arguments.trials, arguments.seed, arguments.scale, _options(arguments))
    band = arguments.noise_band
    if band is not None and not 0 <= band < 1:
        raise UsageError(f"--noise-band is {band}; expected a fraction of the range, 0 to 1")
    study = read_study(arguments)
    result = backtest.backtest(study, arguments.policy, setting, band)
    answer = backtest.to_json(result, study)
    print(
        f"policy {arguments.policy}, mean over {len(result.benchmarks)} benchmarks after k runs\n"
    )
    last = min(10, len(answer["mean"]["k"]) - 1)
    rows = [
        [curve, *(_number(value) for value in answer["mean"][curve][1 : last + 1])]
        for curve in backtest.CURVES
    ]
    print(text_table(["k", *map(str, range(1, last + 1))], rows) + "\n")
    rows = [
        [name, *(_number(entry["mean"][key]) for key in entry["mean"])]
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
    print(_footer(study, f"noise bands {min(bands):.3f} to {max(bands):.3f} of the range"))
    if arguments.json:
        write_json(arguments.json, answer)


def _print_table1(answer: dict) -> None:
    rows = [
        [entry["display"], str(table1["finetunings"]), *_percent(*list(table1.values())[1:])]
        for entry in answer["benchmarks"].values()
        if answer["policy"] == "paper" and (table1 := entry.get("table1"))
    ]
    if answer["random_row"]:
        row = answer["random_row"]
        rows.append(
            [
                "Random (best one trained)",
                str(row["finetunings"]),
                *_percent(row["published_first_hit"], row["first_hit"]),
                "",
            ]
        )
    if rows:
        head = ["Table 1", "k", "published", "first hit %", "recall@3 at that k"]
        print(text_table(head, rows) + "\n")


def _recommend(arguments: argparse.Namespace) -> None:
    from AC_policy.recommend import recommend

    options = _options(arguments)
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
        _footer(study, f"scale over {answer.scale}; prior from {len(answer.prior_from)} benchmarks")
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
                _number(row.measured, 2),
                _number(row.predicted, 2),
                f"{_number(row.low, 2)} to {_number(row.high, 2)}" if row.low is not None else "",
                *_percent(row.p_best, row.p_top3),
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


def _sensitivity(arguments: argparse.Namespace) -> None:
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
            *map(_number, row.recall_at_3),
            *map(_number, row.regret_top3),
            f"{row.runs:.2f}",
            _number(row.regret, 4),
            _number(row.worst_regret, 4),
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
            *map(_number, [row.recall_at_3[k] for k in CHOSEN_AT]),
            *map(_number, [row.regret_top3[k] for k in CHOSEN_AT]),
        ]
        for row in chosen
    ]
    print(text_table(["benchmark", "constants", *runs, *runs], rows) + "\n")
    print(
        f"representations that the prior never saw: {unseen.seen} others teach it on the other\n"
        f"benchmarks, {unseen.unseen} are left to choose among; regret after k runs, mean of "
        f"{unseen.splits} splits\n"
    )
    rows = [[name, *map(_number, regret)] for name, regret in unseen.regret.items()]
    print(text_table(["k", *map(str, range(1, unseen.unseen))], rows))
    print(
        f"\nbayes stops after {unseen.stops:.2f} of {unseen.unseen} runs, regret then "
        f"{unseen.regret_then:.4f}\n"
    )
    print(_footer(study, ""))
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


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; those that hold numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *rows]) for i in range(len(head))]
    right = [all(_numeric(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [list(head), *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _numeric(cell: str) -> bool:
    return cell.strip() in ("", "-") or cell.strip()[0] in "-.0123456789"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _percent(*values: float) -> list[str]:
    return ["-" if value != value else f"{100 * value:.1f}" for value in values]


def _range(values: Iterable[int]) -> str:
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _footer(study: "Study", extra: str) -> str:
    """What every printed number rests on."""
    protocols = ", ".join(f"{name} {' '.join(found)}" for name, found in study.protocols.items())
    return f"A is {study.a}; protocols: {protocols}" + (f"; {extra}" if extra else "")


def _plain(entries: dict) -> dict:
    return {
        name: {feature: dataclasses.asdict(fit) for feature, fit in fits.items()}
        for name, fits in entries.items()
    }
