"""`law pairs run`: scores benchmarks of pairs with a model, and says what it got right."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import LawError, UsageError, unknown_name
from llava.eval.pairs.accuracies import ACCURACIES
from llava.eval.pairs.scorer import SCORERS, Scorer, scorer_flags, scorer_module
from llava.files import ensure_writable, write_json
from llava.launch import launch
from llava.log import get_logger

if TYPE_CHECKING:  # --help is quick
    from llava.eval.pairs.items import Benchmark

logger = get_logger("pairs")

USUAL_METRICS = ("individual", "pair", "set")


def main(argv: list[str], prog: str = "law pairs run") -> None:
    """Scores what is not scored yet, writes the result and prints its accuracies."""
    arguments = parse(argv, prog)
    _check(arguments)
    # imported when there is something to do: --help is quick
    from llava import results
    from llava.eval.pairs.config import read_benchmarks
    from llava.eval.pairs.result import rows
    from llava.eval.pairs.table import as_text

    benchmarks = read_benchmarks(arguments.config, arguments.only, arguments.limit)
    scorer = scorer_module(arguments.scorer).make(arguments)
    result = evaluate(scorer, benchmarks, arguments.out, arguments.overwrite)
    if result is None or launch().rank:
        return
    if arguments.results:
        found = rows(result, arguments.metrics, str(arguments.out.parent))
        results.append(arguments.results, found, skip_known=True)
    _tell_ties(result)
    print(as_text({str(arguments.out): result}), end="")


def parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    """The command's flags with those of the scorer that --scorer names."""
    parser = _parser(prog)
    name = _scorer_in(argv)
    if name:
        scorer_flags(name).add_arguments(parser.add_argument_group(f"--scorer {name}"))
    return parser.parse_args(argv)


def evaluate(
    scorer: Scorer, benchmarks: "Sequence[Benchmark]", out: Path, overwrite: bool = False
) -> dict[str, Any] | None:
    """The result (result.py says of what form), written to `out`; what is there is not redone.

    Of several processes only the first has what was scored now. Raises UsageError where the scorer
    takes no questions and a benchmark asks some, and LawError where `out` holds something else and
    is not to be overwritten.
    """
    from llava.eval.pairs.result import whole
    from llava.eval.pairs.scoring import benchmark_digest, fingerprint, forget, score_all

    _check_questions(scorer, benchmarks)
    digests = {one.name: benchmark_digest(one) for one in benchmarks}
    mark = fingerprint({"scorer": scorer.name} | scorer.facts(), digests)
    if out.exists() and not overwrite:
        return _there(out, mark)
    scores = score_all(scorer, benchmarks, out, mark)
    if scores is None:
        return None
    result = whole(scorer, benchmarks, scores, digests, mark)
    write_json(out, result)
    forget(out)
    return result


def _tell_ties(result: dict[str, Any]) -> None:
    """Warns of decisions that are wrong for equal scores: too coarse a dtype, a text cut off."""
    for one in result["results"]:
        if one["ties"]:
            logger.warning(
                "%s: %d of %d decisions are ties, whose scores are equal; they count as wrong",
                one["benchmark"],
                one["ties"],
                one["individual"]["of"],
            )


def _there(out: Path, mark: str) -> dict[str, Any]:
    """The result that is there already, of the same model and data."""
    from llava.eval.pairs.result import read_result

    found = read_result(out)
    if found["fingerprint"] != mark:
        raise LawError(
            f"{out}: holds the result of another model, other flags or other data "
            f"({found['scorer']}, {found['facts'].get('model')}); give another --out, or "
            "--overwrite"
        )
    logger.info("%s: is there already, of the same model and data", out)
    return found


def _check_questions(scorer: Scorer, benchmarks: "Sequence[Benchmark]") -> None:
    asking = [one.name for one in benchmarks if any(item.question for item in one.items)]
    if asking and not scorer.answers:
        raise UsageError(
            f"{', '.join(asking)}: asks questions, whose answers --scorer {scorer.name} cannot "
            "score; give the benchmark statements (kind mmvp: `statements: FILE` in the place of "
            "`data`), leave it out with --only, or take --scorer vqa"
        )


def _check(arguments: argparse.Namespace) -> None:
    """Refuses what cannot be meant before a model is read."""
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit}: expected 1 or more")
    for name in arguments.metrics:
        if name not in ACCURACIES:
            raise UsageError(f"--metrics: {unknown_name('accuracy', name, ACCURACIES)}")
    if arguments.out.suffix != ".json":
        raise UsageError(f"--out {arguments.out}: expected a name that ends in .json")
    for path in filter(None, (arguments.out, arguments.results)):
        ensure_writable(path)


def _scorer_in(argv: Sequence[str]) -> str | None:
    """The value of --scorer, whose own flags the parser must have before it reads the others."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--scorer", nargs="?")
    return early.parse_known_args(argv)[0].scorer


def _parser(prog: str) -> argparse.ArgumentParser:
    kinds = [f"{name}: {kind.help}" for name, kind in SCORERS.items()]
    parser = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="Scores benchmarks of pairs with a model. " + "; ".join(kinds) + ". "
        f"`{prog} --scorer NAME --help` shows a scorer's own flags.",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="YAML", help="e.g. configs/pairs/whatsup.yaml"
    )
    parser.add_argument(
        "--scorer", required=True, metavar="NAME", help=f"one of {', '.join(SCORERS)}"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.json", help="the result, with all scores"
    )
    parser.add_argument("--results", type=Path, metavar="CSV", help="also rows of a results table")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=list(USUAL_METRICS),
        metavar="NAME",
        help=f"accuracies that become rows, of {', '.join(ACCURACIES)} (default: "
        f"{' '.join(USUAL_METRICS)})",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="benchmarks of the configuration"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N items of each")
    parser.add_argument(
        "--overwrite", action="store_true", help="also where --out holds another result"
    )
    return parser
