"""The `law` command: a table of commands, each imported only when it is called."""

import importlib
import sys
from dataclasses import dataclass

from llava import __version__
from llava.errors import unknown_name
from llava.exits import run_command


@dataclass(frozen=True)
class Command:
    """One `law` command: `module` has a function `main(argv) -> None`."""

    module: str
    help: str


COMMANDS = {
    "towers": Command(
        "llava.model.multimodal_encoder.listing", "every vision tower that has a name here"
    ),
    "features": Command("llava.extraction", "run towers over images, into a feature store"),
    "train": Command("llava.train.train", "train LLaVA: stage 1, stage 2, LoRA; check; A score"),
    "chat": Command("llava.eval.chat", "ask a trained model about images"),
    "evaluate": Command("llava.eval.evaluate", "benchmarks of a trained model, through lmms-eval"),
    "pairs": Command("llava.eval.pairs.cli", "images that differ in one respect: told apart?"),
    "c-score": Command("C_score.cli", "correspondence: keypoints that a representation finds"),
    "a-score": Command("A_score.cli", "alignment: how near a representation is to CLIP's"),
    "warps": Command("C_score.warps", "make warps-mini, a small correspondence set"),
    "run": Command("llava.sweep.run", "run the steps of a YAML file, e.g. configs/quickstart.yaml"),
    "policy": Command(
        "AC_policy.cli", "which representation to finetune next: fit, backtest, recommend"
    ),
    "report": Command("AC_policy.report", "one HTML file: the law, the ranking, how sure it is"),
    "doctor": Command("llava.doctor", "check this installation and say what to mend"),
}


def usage() -> str:
    """The help text of `law`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: law COMMAND [options]",
            "",
            "Which vision representation should a multimodal LLM take?",
            "",
            *lines,
            "",
            "`law COMMAND --help` shows a command's options; `law --version` the version.",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Runs one command; exit code 2 for bad usage, 1 for failed work."""
    run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), flush=True)
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(f"law {__version__}")
        return
    if argv[0] not in COMMANDS:
        print(f"law: {unknown_name('command', argv[0], COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(COMMANDS[argv[0]].module).main(argv[1:])


if __name__ == "__main__":
    main()
