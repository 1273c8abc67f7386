"""What gives a score to an image and a caption; the ways to do so are listed in `SCORERS`."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from llava.errors import UsageError, unknown_name

if TYPE_CHECKING:  # `law pairs run --help` is quick
    import numpy as np

    from llava.eval.pairs.items import Item


class Scorer(ABC):
    """Scores of images with captions: the higher, the better they go together."""

    name: ClassVar[str]
    """As in `SCORERS`."""
    performance: ClassVar[bool] = False
    """Whether its accuracies are those of a finetuned multimodal model, which the law predicts."""
    answers: ClassVar[bool] = False
    """Whether it takes items with a question, whose captions are answers."""

    @abstractmethod
    def scores(self, items: "Sequence[Item]") -> "list[np.ndarray]":
        """float64 [I, C] of every item, NaN where `item.needed` is false.

        Raises LawError for what cannot be scored, naming item and image.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Everything that the scores depend on, as plain JSON values.

        `representation` (as results tables call the towers), `model`, `select_feature` and
        `spec_hash` are among it where they are known. Two scorers of equal facts give equal scores.
        Those that result.IDENTITY does not list say how is asked; a results table's protocol holds
        a hash of them, or the text of the fact `protocol` in its place.
        """


@dataclass(frozen=True)
class Kind:
    """One way to score."""

    module: str
    """Has `make(arguments) -> Scorer`."""
    flags: str
    """Module with `add_arguments(parser)`, which imports nothing slow."""
    help: str


SCORERS = {
    "clip": Kind(
        "llava.eval.pairs.clip_score",
        "llava.eval.pairs.flags.clip",
        "cosine of a CLIP's or SigLIP's own embeddings",
    ),
    "vqa": Kind(
        "llava.eval.pairs.vqa_score",
        "llava.eval.pairs.flags.vqa",
        "likelihood that a LLaVA answers yes",
    ),
    "embed": Kind(
        "llava.eval.pairs.embed_score",
        "llava.eval.pairs.flags.embed",
        "cosine of embeddings that a LLaVA gives",
    ),
    "head": Kind(
        "llava.eval.pairs.head_score",
        "llava.eval.pairs.flags.head",
        "cosine after a trained head on a frozen tower",
    ),
}


def scorer_flags(name: str) -> ModuleType:
    """The module of a scorer's flags, imported now; UsageError for a name that is none."""
    return importlib.import_module(_kind(name).flags)


def scorer_module(name: str) -> ModuleType:
    """The module that scores, imported now; UsageError for a name that is none."""
    return importlib.import_module(_kind(name).module)


def _kind(name: str) -> Kind:
    if name not in SCORERS:
        raise UsageError(f"--scorer: {unknown_name('scorer', name, SCORERS)}")
    return SCORERS[name]


def no_text_encoder(tower: str) -> UsageError:
    """The error for a tower that captions cannot be compared with, with the routes to take."""
    return UsageError(
        f"{tower} has no text encoder, so its images and captions have no cosine. Train a head on "
        "it and score with that: law a-score head ..., then --scorer head --head FOLDER; or ask a "
        "LLaVA trained with it: --scorer vqa --model-path RUN; or compare the images alone, which "
        "needs no text: law pairs agree --model NAME"
    )
