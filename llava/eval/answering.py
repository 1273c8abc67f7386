"""Many questions to a model: answers, and how likely given answers are, in batches.

What a question gets does not depend on the batch it is in, but for rounding. While the device works
on one batch, a thread opens and preprocesses the images of the next.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.data.masks import Labelled
from llava.errors import LawError, UsageError
from llava.eval.prompts import Prompts, version_of
from llava.eval.shared_prefix import can_share, groups, shared_likelihood
from llava.eval.vision_cache import Prepared, VisionCache
from llava.log import progress
from llava.mm_utils import KeywordsStoppingCriteria
from llava.model.likelihood import AnswerLikelihood, answer_likelihood
from llava.model.multimodal_encoder.processor import ImageProcessor

T = TypeVar("T")

NOT_FINITE = "the model gives NaN in place of likelihoods; its weights are damaged, or take float32"


@dataclass(frozen=True)
class Question:
    """What a model is asked."""

    open: Callable[[], tuple[list[str], list[Image.Image]]]
    """(turns, the last of which is to be answered and all of which have their image marks; the
    images of all turns in order). Called once, perhaps by another thread."""
    size: int
    """About how long it is, in any unit: questions of like size go together."""
    where: str = ""
    """What errors call it, e.g. "mme, document 7"."""


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; temperature 0 takes the likeliest token every time."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    seed: int | None = None
    """Of draws, with what a question is called: neither order nor ranks change what is drawn."""
    until: tuple[str, ...] = ()
    """Texts that end an answer, besides the template's own."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further arguments of transformers' `generate`."""

    def arguments(self) -> dict[str, Any]:
        """For `generate`."""
        given: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.temperature > 0,
        }
        if self.temperature > 0:
            given |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": None}
        return given | self.more


@dataclass(frozen=True)
class AnswerScore:
    """How likely a given answer is."""

    log_likelihood: float
    """Sum over its tokens, in nats; the end mark is one of them unless it was left out."""
    tokens: int
    greedy: bool
    """Whether it is what greedy decoding says."""

    @property
    def mean_nll(self) -> float:
        """Nats per token."""
        return -self.log_likelihood / self.tokens


@dataclass(frozen=True)
class _Ready:
    """A question whose images are preprocessed."""

    question: Question
    turns: list[str]
    ids: torch.Tensor
    """int64 [T]: of the prompt, an image as IMAGE_TOKEN_INDEX."""
    seen: Prepared


class Answering:
    """A model that is asked in batches; the model is put into evaluation mode."""

    def __init__(self, model: nn.Module, prompts: Prompts, cache: VisionCache, batch_size: int = 1):
        self.model = model.eval()
        self.prompts = prompts
        self.cache = cache
        self.batch_size = batch_size
        self.tokenizer = prompts.tokenizer
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad
        self.ends = _ends(model, self.tokenizer, prompts.stop)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: nn.Module,
        processor: ImageProcessor | None,
        version: str | None = None,
        batch_size: int = 1,
    ) -> "Answering":
        """Of what `load_pretrained_model` gives, in the template of training unless another."""
        trained = getattr(model.config, "conversation_version", None)
        prompts = Prompts(tokenizer, model.config, version_of(trained, version))
        return cls(model, prompts, VisionCache(model, processor), batch_size)

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> list[str]:
        """Generated text of every question, in their order, as it was decoded."""
        drawn = decoding.temperature > 0
        seeds = _seeds(questions, decoding.seed)
        answers: list[str] = [""] * len(questions)
        size = 1 if drawn else self.batch_size
        for places, batch in self._batches(questions, size, "answers"):
            if drawn and decoding.seed is not None:
                torch.manual_seed(seeds[places[0]])
            with _naming([one.question for one in batch]):
                said = self._generate(batch, decoding)
            for place, answer in zip(places, said, strict=True):
                answers[place] = answer
        return answers

    def scores(
        self, questions: Sequence[Question], answers: Sequence[str], end: bool = True
    ) -> list[AnswerScore]:
        """Of one given answer to every question, in their order; `end`: with its end mark."""
        found: list[AnswerScore | None] = [None] * len(questions)
        for places, batch in self._batches(questions, self.batch_size, "likelihoods"):
            with _naming([one.question for one in batch]):
                scored = self._score(batch, [answers[place] for place in places], end)
            for place, score in zip(places, scored, strict=True):
                found[place] = score
        return found

    def _batches(
        self, questions: Sequence[Question], size: int, what: str
    ) -> Iterator[tuple[list[int], list[_Ready]]]:
        """(places, questions made ready), the longest first: what does not fit fails at once."""
        order = sorted(range(len(questions)), key=lambda place: -questions[place].size)
        batches = [order[start : start + size] for start in range(0, len(order), size)]

        def ready(places: list[int]) -> list[_Ready]:
            pixels: dict[str, Any] = {}  # of all: several ask about the same image
            return [self._ready(questions[place], pixels) for place in places]

        made = _one_ahead(ready, batches)
        if len(batches) > 1:
            made = progress(made, what, len(batches))
        yield from zip(batches, made, strict=True)

    def _ready(self, question: Question, pixels: dict[str, Any]) -> _Ready:
        with _naming([question]):
            turns, images = question.open()
            ids = self.prompts.ids(turns)
            _check_marks(int((ids == IMAGE_TOKEN_INDEX).sum()), len(images))
            return _Ready(question, turns, ids, self.cache.prepare(images, pixels))

    def _seen(self, seen: Sequence[Prepared]) -> dict[str, Any]:
        """Arguments for the images of a batch."""
        pixels = {key: value for one in seen for key, value in one.pixels.items()}
        keys = tuple(key for one in seen for key in one.keys)
        images = tuple(image for one in seen for image in one.images)
        return self.cache.arguments(Prepared(keys, images, pixels))

    def _generate(self, batch: Sequence[_Ready], decoding: Decoding) -> list[str]:
        device = self.model.get_input_embeddings().weight.device
        rows = [one.ids for one in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad).to(device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        stops = [stop for stop in (self.prompts.stop, *decoding.until) if stop]
        given = self._seen([one.seen for one in batch])
        if stops:
            given["stopping_criteria"] = [KeywordsStoppingCriteria(stops, self.tokenizer, ids)]
        with torch.inference_mode():
            new = self.model.generate(
                ids,
                attention_mask=mask,
                pad_token_id=self.pad,
                eos_token_id=self.ends,
                logits_processor=[_refuse_nan],
                **given,
                **decoding.arguments(),
            )
        return [self._text(row, stops) for row in new.tolist()]

    def _text(self, row: list[int], stops: Sequence[str]) -> str:
        """What a row says up to its end, without what ended it."""
        end = next((place for place, token in enumerate(row) if token in self.ends), len(row))
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
        return min((text.partition(stop)[0] for stop in stops), key=len, default=text)

    def _score(
        self, batch: Sequence[_Ready], answers: Sequence[str], end: bool
    ) -> list[AnswerScore]:
        rows = [
            self.prompts.labelled([*one.turns, answer.strip()], end)
            for one, answer in zip(batch, answers, strict=True)
        ]
        for one, row in zip(batch, rows, strict=True):
            _check_marks(row.input_ids.count(IMAGE_TOKEN_INDEX), len(one.seen.keys))
        found = self._likelihood(rows, [one.seen for one in batch])
        counts = found.count_B.tolist()
        for row, answer, count in zip(rows, answers, counts, strict=True):
            _check_whole(answer, count, sum(label != IGNORE_INDEX for label in row.labels))
        if not torch.isfinite(found.sum_B).all():
            raise LawError(NOT_FINITE)
        columns = (found.sum_B.tolist(), counts, found.greedy_B.tolist())
        return [AnswerScore(*one) for one in zip(*columns, strict=True)]

    def _likelihood(self, rows: list[Labelled], seen: list[Prepared]) -> AnswerLikelihood:
        """Of all rows; what several begin with is computed once."""
        shared = groups(rows, [one.keys for one in seen]) if can_share(self.model) else None
        if shared is not None:
            first = self._seen([seen[group.rows[0]] for group in shared])
            return shared_likelihood(self.model, rows, shared, self.pad, **first)
        device = self.model.get_input_embeddings().weight.device
        items = [
            {"input_ids": torch.tensor(row.input_ids), "labels": torch.tensor(row.labels)}
            for row in rows
        ]
        batch = {name: value.to(device) for name, value in Collator(self.pad)(items).items()}
        return answer_likelihood(self.model, **batch, **self._seen(seen))


def _check_marks(marks: int, images: int) -> None:
    """Raises LawError: in a batch, an image too many would be taken for the next question's."""
    if marks != images:
        raise LawError(
            f"the text has {marks} image marks ({DEFAULT_IMAGE_TOKEN}), and there are {images} "
            "images; expected one for each, or no marks at all"
        )


def _refuse_nan(_: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
    """The scores of the next token as they are; LawError for any that are no numbers."""
    if torch.isnan(scores_BV).any():
        raise LawError(NOT_FINITE)
    return scores_BV


def _check_whole(answer: str, scored: int, tokens: int) -> None:
    """Raises LawError for an answer that the model's maximum length cuts off."""
    if scored != tokens:
        raise LawError(
            f"{tokens - scored} of {tokens} tokens of the answer '{answer[:40]}' lie beyond the "
            "model's maximum length; shorten the question, or ask about fewer images"
        )


@contextlib.contextmanager
def _naming(batch: Sequence[Question]) -> Iterator[None]:
    """Errors of a batch say which questions are in it."""
    where = ", ".join(question.where for question in batch if question.where)[:500]
    try:
        yield
    except LawError as error:
        if not where:
            raise
        kind = UsageError if isinstance(error, UsageError) else LawError
        raise kind(f"{where}: {error}") from error
    except Exception as error:
        if where:
            error.add_note(f"while answering {where}")
        raise


def _one_ahead(function: Callable[[T], Any], items: Sequence[T]) -> Iterator[Any]:
    """Results in order, the next of which is being made meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(function, items[0]) if items else None
        for following in [*items[1:], None]:
            if waiting is None:
                return
            done = waiting.result()
            waiting = None if following is None else pool.submit(function, following)
            yield done


def _ends(model: nn.Module, tokenizer: PreTrainedTokenizerBase, stop: str) -> list[int]:
    """Ids that end an answer: the model's, the tokenizer's, and the template's where it is one."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ends = dict.fromkeys([*own, tokenizer.eos_token_id, tokenizer.added_tokens_encoder.get(stop)])
    return [token for token in ends if token is not None]


def _seeds(questions: Sequence[Question], seed: int | None) -> list[int]:
    """A seed for every question, of what it is called and how often it came before."""
    met: Counter[str] = Counter()
    seeds = []
    for question in questions:
        digest = hashlib.sha256(f"{seed} {question.where} {met[question.where]}".encode()).digest()
        seeds.append(int.from_bytes(digest[:7], "big"))
        met[question.where] += 1
    return seeds
