"""VQAScore (Lin et al. 2024, arXiv 2404.01291): how likely a LLaVA says yes to a caption.

    exp(mean of log p over the tokens of the answer and its end mark)    as t2v_metrics computes it
    exp(sum of log p over the tokens of the answer)                      --no-answer-eos: P(answer)

With a one-token "Yes" the first is sqrt(P(Yes) P(end | Yes)). Where an item has a question of its
own, the answer is the caption, and the score is how likely it is as the answer to that question.
The likelihoods are those of the A score (llava/model/likelihood.py) under the template of training.
"""

import argparse
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import template
from llava.data.masks import CHAT
from llava.errors import LawError, UsageError
from llava.eval.answering import Answering, AnswerScore, Question
from llava.eval.evaluation.subject import Subject, subject
from llava.eval.pairs.flags.vqa import QUESTION
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import open_picture
from llava.eval.pairs.scorer import Scorer
from llava.eval.prompts import is_plain
from llava.eval.vision_cache import VisionCache
from llava.extraction import usable_device
from llava.log import get_logger
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_layout import Checkpoint
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.model.representation import dtype_name

logger = get_logger("pairs")

ANSWER = "Yes"
PLACE = "{}"
LATELY_OPENED = 8
"""Images that are kept decoded: all captions of one come one after the other."""


class VqaScorer(Scorer):
    """A LLaVA that is asked about images; `question` has one `{}` for the caption."""

    name = "vqa"
    performance = True
    answers = True

    def __init__(
        self,
        answering: Answering,
        facts: dict[str, Any],
        question: str = QUESTION,
        end: bool = True,
    ):
        self.answering = answering
        self.question = one_place(question)
        self.end = end
        self._facts = facts
        self._opened = functools.lru_cache(LATELY_OPENED)(open_picture)

    def scores(self, items: Sequence[Item]) -> list[np.ndarray]:
        """float64 [I, C] of every item, each above 0 and at most 1; NaN where not needed.

        Raises LawError for images that do not decode and for texts beyond the model's length.
        """
        # what the towers gave in other calls was computed in other batches: a run that goes on
        # after a kill has none of it, and is to end with the same digits
        self.answering.cache = VisionCache(self.answering.model, self.answering.cache.processor)
        found = [np.full((len(item.images), len(item.captions)), np.nan) for item in items]
        places, questions, answers = [], [], []
        for number, item in enumerate(items):
            asked = [self._asked(item, caption) for caption in item.captions]
            for image, caption in np.argwhere(item.needed).tolist():
                text, answer = asked[caption]
                places.append((number, image, caption))
                questions.append(self._question(item, image, text, max(len(t) for t, _ in asked)))
                answers.append(answer)
        scored = self.answering.scores(questions, answers, self.end)
        for (number, image, caption), score in zip(places, scored, strict=True):
            found[number][image, caption] = self._value(score)
        return found

    def facts(self) -> dict[str, Any]:
        """The checkpoint, how it is asked and what becomes of the likelihood."""
        dtype = dtype_name(self.answering.model.dtype)
        asked = [self.answering.prompts.version, "mean-with-end" if self.end else "sum", dtype]
        if self.question != QUESTION:
            asked.append(hashlib.sha256(self.question.encode()).hexdigest()[:8])
        return self._facts | {
            "scorer": self.name,
            "question": self.question,
            "answer": ANSWER,
            "answer_end": self.end,
            "score": "exp of the mean log p over tokens" if self.end else "exp of the sum of log p",
            "dtype": dtype,
            "protocol": "/".join(asked),
        }

    def _asked(self, item: Item, caption: str) -> tuple[str, str]:
        """(question, answer) for one caption of an item."""
        if item.question:
            text, answer = item.question, caption
        else:
            text, answer = self.question.replace(PLACE, caption), ANSWER
        if DEFAULT_IMAGE_TOKEN in text + answer:
            raise LawError(
                f"item {item.id}: its text holds {DEFAULT_IMAGE_TOKEN}, which stands for an image"
            )
        return text, answer

    def _question(self, item: Item, image: int, text: str, size: int) -> Question:
        """About one image; all about it are of one `size`, so that they stay side by side."""
        path = item.images[image]

        def opened() -> tuple[list[str], list[Image.Image]]:
            """The turn and its image, when the question's turn comes."""
            return [self.answering.prompts.with_images(text, 1)], [self._opened(path)]

        return Question(opened, size, f"item {item.id}, {path.name}")

    def _value(self, score: AnswerScore) -> float:
        return math.exp(-score.mean_nll if self.end else score.log_likelihood)


def make(arguments: argparse.Namespace) -> VqaScorer:
    """The scorer of flags/vqa.py's flags; UsageError for what cannot be meant, before weights."""
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size {arguments.batch_size}: expected 1 or more")
    towers = parse_replacements(arguments.tower_alias)
    checkpoint = Checkpoint(arguments.model_path)
    check_asked(checkpoint, arguments.conv_mode)
    one_place(arguments.question_template)
    who = subject(arguments.model_path, arguments.model_base, arguments.conv_mode, towers)
    recorded = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    tokenizer, model, processor, _ = load_pretrained_model(
        arguments.model_path,
        arguments.model_base,
        device=usable_device(arguments.device),
        device_map=None,
        dtype=arguments.dtype or recorded,
        tower_replacements=towers,
    )
    answering = Answering.of(tokenizer, model, processor, who.template, arguments.batch_size)
    return VqaScorer(
        answering, facts_of(who, model), arguments.question_template, arguments.answer_eos
    )


def one_place(question: str) -> str:
    """The template of a question; UsageError where it has not one place for the caption."""
    if question.count(PLACE) != 1:
        raise UsageError(
            f"--question-template {question!r}: has {question.count(PLACE)} places for the caption "
            f"({PLACE}), expected one"
        )
    return question


def check_asked(checkpoint: Checkpoint, asked: str | None) -> None:
    """UsageError for a model of captions alone; a template that is not its own is said."""
    if checkpoint.file("config.json") is None:
        return
    trained = checkpoint.config.get("conversation_version")
    version = asked or trained
    if version and is_plain(version):
        raise UsageError(
            f"{checkpoint.path} would be asked in '{version}', the template of captions alone: it "
            "has never answered a question. Finetune it first (bash scripts/v1_5/train/"
            "finetune.sh), then --model-path that run; how well a stage 1 reads images tells "
            "law a-score nll"
        )
    if trained and asked and _differ(trained, asked):
        logger.warning("%s was trained with %s and is asked in %s", checkpoint.path, trained, asked)


def _differ(one: str, other: str) -> bool:
    """Whether two names are of unlike templates."""
    return one != other and (CHAT in (one, other) or template(one) != template(other))


def facts_of(who: Subject, model: Any) -> dict[str, Any]:
    """What tells a checkpoint from another one, and how it looks at images."""
    config = model.config
    return {
        "model": who.path,
        "run_dir": who.path,
        "fingerprint": who.fingerprint,
        "representation": who.representation,
        "select_feature": getattr(config, "mm_vision_select_feature", None),
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", None),
        "spec_hash": who.spec_hash,
        "template": who.template,
        "seed": who.seed,
    }
