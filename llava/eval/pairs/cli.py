"""`law pairs`: which commands there are; each is imported when it is called."""

import importlib
import sys
from dataclasses import dataclass

from llava.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Action:
    """One sub-command; `module` has `main(argv, prog)` and is imported when called."""

    module: str
    help: str


ACTIONS = {
    "run": Action("llava.eval.pairs.run", "score benchmarks of pairs with a model"),
    "agree": Action("llava.eval.pairs.agree", "how alike a tower finds the images of a pair"),
    "table": Action("llava.eval.pairs.table", "results of several runs beside each other"),
    "where": Action("llava.eval.pairs.where", "where to get the data, and whether it is all there"),
    "make-synthetic": Action("llava.eval.pairs.synthetic", "make pairs of coloured shapes"),
    "train-embedder": Action("llava.eval.pairs.train_embedder", "train a LLaVA to give embeddings"),
}


def main(argv: list[str]) -> None:
    """Runs one sub-command; UsageError for a name that is none."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] not in ACTIONS:
        raise UsageError(f"law pairs: {unknown_name('command', argv[0], ACTIONS)}")
    module = importlib.import_module(ACTIONS[argv[0]].module)
    module.main(argv[1:], prog=f"law pairs {argv[0]}")


def usage() -> str:
    """The help text of `law pairs`."""
    width = max(map(len, ACTIONS))
    actions = [f"  {name:<{width}}  {action.help}" for name, action in ACTIONS.items()]
    return "\n".join(
        [
            "usage: law pairs COMMAND [options]",
            "",
            "Whether a model tells two images apart that differ in one respect.",
            "",
            *actions,
            "",
            "`law pairs COMMAND --help` shows a command's options.",
        ]
    )
