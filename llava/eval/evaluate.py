"""`law evaluate`: benchmarks of a trained model through lmms-eval, each finished one kept at once.

The table of results, and nothing else, is on stdout.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from llava import catalog
from llava.errors import LawError, UsageError
from llava.eval.evaluation.launch import in_interpreter, in_processes, without
from llava.launch import launch


def parser() -> argparse.ArgumentParser:
    """Words are joined by `-` or `_`."""
    made = argparse.ArgumentParser(
        prog="law evaluate",
        description="Benchmarks of a trained model, through lmms-eval. A second call goes on.",
        allow_abbrev=False,
    )
    made.add_argument("--run", required=True, metavar="DIR", help="a stage-2 folder, or a hub id")
    made.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="NAME",
        help=f"a set ({', '.join(catalog.benchmark_sets())}), benchmarks, any task of lmms-eval, "
        "task:metric, task:metric:unit",
    )
    made.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each")
    made.add_argument(
        "--batch-size", "--batch_size", type=int, default=8, help="questions at a time (8)"
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="unset: DIR/eval of the run")
    made.add_argument("--results", type=Path, metavar="CSV", help="append to this results table")
    made.add_argument("--ocr", action="store_true", help="TextVQA with OCR tokens in the question")
    made.add_argument("--model", default="law_llava", help="lmms-eval's name of the model's class")
    made.add_argument(
        "--model-args", "--model_args", default="", metavar="K=V,...", help="more for that class"
    )
    made.add_argument("--model-base", "--model_base", help="language model of adapters")
    made.add_argument(
        "--conv-template", "--conv_template", help="conversation template; unset: that of training"
    )
    made.add_argument(
        "--tower-alias",
        "--tower_alias",
        action="append",
        default=[],
        metavar="ID=FOLDER",
        help="where a tower's weights are now; may be given repeatedly",
    )
    made.add_argument("--device", help="unset: this process's GPU, or the CPU")
    made.add_argument("--dtype", help="unset: that of the checkpoint")
    made.add_argument(
        "--include-path",
        "--include_path",
        action="append",
        default=[],
        metavar="DIR",
        help="tasks of one's own; may be given repeatedly",
    )
    made.add_argument(
        "--overwrite", action="store_true", help="replace results of another model or setting"
    )
    made.add_argument("--check", action="store_true", help="look at everything, load no model")
    made.add_argument("--processes", type=int, default=1, metavar="N", help="that share each task")
    made.add_argument("--python", metavar="PATH", help="evaluate by this interpreter")
    return made


def main(argv: Sequence[str]) -> None:
    """Evaluates what is not evaluated yet; LawError at the end where a task failed."""
    arguments = parser().parse_args(argv)
    for name, value in (
        ("limit", arguments.limit),
        ("batch-size", arguments.batch_size),
        ("processes", arguments.processes),
    ):
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: expected a whole number from 1")
    if arguments.python:
        in_interpreter(arguments.python, without(argv, "--python"))
    from llava.eval.evaluation.run import look, run  # transformers and torch: --help is quick

    shared = arguments.processes > 1 and launch().world == 1 and not arguments.check
    with contextlib.redirect_stdout(sys.stderr):  # what lmms-eval and its tasks print
        if shared:
            look(arguments)  # what is wrong is told once, and not by a launcher
        else:
            said, failed = run(arguments)
    if shared:
        in_processes(arguments.processes, without(argv, "--processes"))
    sys.stdout.write(said)
    if failed and launch().rank == 0:  # a launcher would end it at once if another one failed
        told = "".join(f"\n  {task}: {why}" for task, why in failed.items())
        raise LawError(f"{len(failed)} task(s) failed, the others are kept:{told}")
