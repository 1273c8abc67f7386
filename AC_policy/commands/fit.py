"""`law policy fit`: how well A and C explain performance."""

import argparse
import dataclasses

from AC_policy.flags import add_json, add_scale, add_study, read_study
from AC_policy.text import extent, footer, percent, text_table
from llava import catalog
from llava.errors import UsageError
from llava.files import write_json


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its flags."""
    fit = commands.add_parser("fit", help="R² of A and C, left-out and under permutation")
    add_study(fit, paper=("join", "off"))
    add_scale(fit)
    add_json(fit)
    fit.add_argument("--draws", type=int, default=1000, help="shuffles behind each null")
    fit.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints it, and writes it with --json."""
    from AC_policy.law import fit_law

    if arguments.draws < 20:
        raise UsageError(f"--draws is {arguments.draws}; a 95th percentile needs 20 or more")
    study = read_study(arguments)
    result = fit_law(study, arguments.scale, arguments.draws, arguments.seed)
    print("R² of performance on A and C: in sample, left out, and the 95th percentile of the")
    print("in-sample R² when performance is shuffled among the representations.\n")
    for kind, entries in (("benchmark", result.benchmarks), ("group", result.groups)):
        rows = [
            [catalog.display_benchmark(name), feature, *percent(fit.r2, fit.r2_loo, fit.null_p95)]
            for name, fits in entries.items()
            for feature, fit in fits.items()
            if kind == "group" or feature == "AC_degree2"
        ]
        print(text_table([kind, "features", "R² %", "left out", "null 95"], rows) + "\n")
    print(footer(study, f"n = {extent(result.rows.values())}, scale over {result.scale}"))
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


def _plain(entries: dict) -> dict:
    return {
        name: {feature: dataclasses.asdict(fit) for feature, fit in fits.items()}
        for name, fits in entries.items()
    }
