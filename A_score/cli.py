"""`law a-score`: one sub-command for each form of the A score, and the dump that one needs."""

import importlib
import sys
from dataclasses import dataclass

from llava.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Form:
    """One sub-command; `module` has `main(argv, prog)` and is imported when called."""

    module: str
    help: str


FORMS = {
    "dump": Form("A_score.dump", "write projected tokens of benchmarks' images, for the cosine"),
    "cosine": Form("A_score.compute", "cosine of projected tokens to CLIP's (the paper's tables)"),
    "nll": Form("A_score.nll", "likelihood of captions through a stage-1 projector"),
    "head": Form("A_score.contrastive.train", "train a head on a frozen tower; no language model"),
}


def main(argv: list[str]) -> None:
    """Runs one form; UsageError for a name that is none."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] not in FORMS:
        raise UsageError(f"law a-score: {unknown_name('form', argv[0], FORMS)}")
    module = importlib.import_module(FORMS[argv[0]].module)
    module.main(argv[1:], prog=f"law a-score {argv[0]}")


def usage() -> str:
    """The help text of `law a-score`."""
    width = max(map(len, FORMS))
    forms = [f"  {name:<{width}}  {form.help}" for name, form in FORMS.items()]
    return "\n".join(
        [
            "usage: law a-score FORM [options]",
            "",
            "How well a tower's tokens are aligned with the language model's.",
            "",
            *forms,
            "",
            "`law a-score FORM --help` shows a form's options.",
        ]
    )
