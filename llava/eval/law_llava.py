"""`--model law_llava` for lmms-eval: any LLaVA of ours or released, in batches, without silence.

What its arguments mean beside those of lmms-eval's own `llava`: docs/evaluation.md. The prompts and
greedy answers are the same; likelihoods are of the tokens that training would supervise.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image, ImageFile

from llava.conversation import template
from llava.data.masks import CHAT
from llava.errors import LawError, UsageError
from llava.eval.answering import Answering, Decoding, Question
from llava.eval.evaluation.together import LONGEST_WAIT
from llava.eval.prompts import Prompts, is_plain, version_of
from llava.eval.vision_cache import VisionCache
from llava.launch import launch
from llava.log import get_logger
from llava.model.builder import as_dtype, load_pretrained_model
from llava.model.checkpoint_layout import Checkpoint
from llava.model.multimodal_encoder.preprocess import to_rgb
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.model.representation import dtype_name

logger = get_logger("eval")

BETWEEN_IMAGES = " "
"""As lmms-eval's own `llava` joins the marks of several images."""
LATELY_OPENED = 8
"""Documents whose images are kept: each choice of a question is a request of its own."""
NEW_TOKENS = 1024
"""Of an answer, where a task does not say."""
PASSED_ON = (
    "min_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "top_k",
)
"""Generation arguments of a task that transformers' `generate` knows by the same name."""
WITHOUT_EFFECT = ("do_sample", "image_aspect_ratio", "use_cache", "image_sizes")
"""Sampling follows the temperature; how images are framed is the checkpoint's matter."""


class LawLlava(lmms):
    """A LLaVA behind lmms-eval's interface.

    `pretrained`: whatever `load_pretrained_model` reads, with `model_base` where it needs one.
    `conv_template`: that of training unless given; another one is refused unless `any_template`.
    `dtype`: the checkpoint's unless given. `stop_at_until`: whether a task's `until` ends an
    answer; lmms-eval's own class lets answers run on, and so does this one. `tower_alias`:
    "ID=FOLDER;ID=FOLDER". `features`: a feature store, read and added to. `cache_gb`: room for
    tower tokens in memory.

    Raises UsageError for what cannot be meant, before weights are read; `check` raises it alone.
    """

    is_simple = True

    @staticmethod
    def check(
        pretrained: str,
        conv_template: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        cache_gb: float | str = 2.0,
        any_template: bool = False,
        **others: Any,
    ) -> tuple[str, int, str, float]:
        """(template, batch size, device, GB of cache) that such an instance has; reads no weights.

        Raises UsageError for what cannot be meant.
        """
        as_dtype(dtype, on_cuda=False)
        version = _version(Checkpoint(str(pretrained)), conv_template, bool(any_template))
        return version, _whole(batch_size), _device(device), _gigabytes(cache_gb)

    def __init__(
        self,
        pretrained: str,
        model_base: str | None = None,
        conv_template: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        tower_alias: str = "",
        features: str | None = None,
        cache_gb: float = 2.0,
        stop_at_until: bool = False,
        any_template: bool = False,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise UsageError(f"model_args: {', '.join(sorted(unknown))} mean nothing to law_llava")
        version, batch_size, place, cache_gb = self.check(
            pretrained, conv_template, batch_size, device, dtype, cache_gb, any_template
        )
        self.accelerator = _accelerator(place)
        tokenizer, model, processor, _ = load_pretrained_model(
            str(pretrained),
            model_base,
            attn_implementation=attn_implementation,
            device="cuda" if device_map and place != "cpu" else place,
            device_map=device_map,
            dtype=dtype or _recorded_dtype(Checkpoint(str(pretrained))),
            tower_replacements=parse_replacements([p for p in tower_alias.split(";") if p]),
        )
        self.until = bool(stop_at_until)
        self.prompts = Prompts(tokenizer, model.config, version)
        cache = VisionCache(model, processor, cache_gb, features)
        self.answering = Answering(model, self.prompts, cache, batch_size)
        self.settings = self._settings(model, version)
        self._opened = lru_cache(LATELY_OPENED)(self._open)

    @property
    def config(self) -> Any:
        """The checkpoint's."""
        return self.answering.model.config

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's."""
        return self.answering.tokenizer

    @property
    def batch_size(self) -> int:
        """Questions that are asked together."""
        return self.answering.batch_size

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        return self.answering.model.get_input_embeddings().weight.device

    def clean(self) -> None:
        """Keeps the model: the next task is asked of it, too."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request, in their order; any exception ends the run."""
        by_arguments: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            key = json.dumps(request.args[1] or {}, sort_keys=True, default=str)
            by_arguments.setdefault(key, []).append(place)
        answers = [""] * len(requests)
        for places in by_arguments.values():
            decoding = self._decoding(requests[places[0]].args[1] or {})
            questions = [
                self._question(context, doc_to_visual, doc_id, task, split)
                for context, _, doc_to_visual, doc_id, task, split in (
                    requests[place].args for place in places
                )
            ]
            said = self.answering.answers(questions, decoding)
            for place, answer in zip(places, said, strict=True):
                answers[place] = answer
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each request's continuation (mean negative log-likelihood, whether greedy decoding
        says it), in nats per token.

        lmms-eval 0.7 takes the smallest for the likeliest. The end mark is scored, as in training.
        A plain tuple would not do: 0.7.3 makes a text of it, and its multiple choice then fails.
        """
        questions, continuations = [], []
        for request in requests:
            if len(request.args) != 6:
                raise LawError(
                    f"{request.task_name}: asks for likelihoods without an image or question "
                    "(acc_mutual_info); law_llava has none"
                )
            context, target, doc_to_visual, doc_id, task, split = request.args
            if not isinstance(target, str):
                target = target(self.task_dict[task][split][doc_id])
            questions.append(self._question(context, doc_to_visual, doc_id, task, split))
            continuations.append(str(target))
        scores = self.answering.scores(questions, continuations)
        return [GenerationResult((score.mean_nll, score.greedy)) for score in scores]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: no task of a single turn asks for it."""
        raise LawError("law_llava answers single turns; tasks of several rounds are not supported")

    def _question(
        self, context: Any, doc_to_visual: Callable, doc_id: int, task: str, split: str
    ) -> Question:
        text = context[0] if isinstance(context, list) else context

        def opened() -> tuple[list[str], list[Image.Image]]:
            images = self._opened(doc_to_visual, task, split, doc_id)
            return [self.prompts.with_images(text, len(images), BETWEEN_IMAGES)], images

        return Question(opened, len(text), f"{task}, document {doc_id}")

    def _open(
        self, doc_to_visual: Callable, task: str, split: str, doc_id: int
    ) -> list[Image.Image]:
        # lmms-eval, and some of its tasks, let PIL fill up with grey what a file lacks
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            return _images(doc_to_visual(self.task_dict[task][split][doc_id]))
        except OSError as error:
            raise LawError(f"an image cannot be read: {error}") from error

    def _decoding(self, given: dict[str, Any]) -> Decoding:
        """A task's generation arguments; unknown ones are said."""
        given = dict(given)
        until = given.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        most = given.pop("max_new_tokens", None) or given.pop("max_gen_toks", None) or NEW_TOKENS
        decoding = Decoding(
            max_new_tokens=int(most),
            temperature=float(given.pop("temperature", None) or 0.0),
            top_p=given.pop("top_p", None),
            num_beams=int(given.pop("num_beams", None) or 1),
            seed=0,
            until=until if self.until else (),
            more={name: given.pop(name) for name in PASSED_ON if given.get(name) is not None},
        )
        unknown = sorted(set(given) - set(WITHOUT_EFFECT) - set(PASSED_ON))
        if unknown:
            logger.warning("generation arguments without effect here: %s", ", ".join(unknown))
        return decoding

    def _settings(self, model: Any, version: str) -> dict[str, Any]:
        config = model.config
        return {
            "conv_template": version,
            "dtype": dtype_name(model.dtype),
            "stop_at_until": self.until,
            "image_aspect_ratio": getattr(config, "image_aspect_ratio", None),
            "representation": getattr(config, "mm_vision_tower", None),
            "spec_hash": getattr(config, "mm_vision_spec_hash", ""),
        }


def _images(visuals: Any) -> list[Image.Image]:
    """RGB images of what a task's doc_to_visual gives; nothing for a question without any."""
    if visuals is None or (isinstance(visuals, Sequence) and all(v is None for v in visuals)):
        return []
    visuals = [visuals] if isinstance(visuals, Image.Image) else list(visuals)
    for visual in visuals:
        if not isinstance(visual, Image.Image):
            raise LawError(f"gave a {type(visual).__name__}; law_llava looks at images alone")
    return [to_rgb(visual) for visual in visuals]


def _version(checkpoint: Checkpoint, asked: str | None, any_template: bool) -> str:
    """The template to ask in; UsageError for one that answers would be wrong in."""
    trained = checkpoint.config.get("conversation_version")
    version = version_of(trained, asked)
    if trained and not any_template and not _same(version, trained):
        raise UsageError(
            f"conv_template={version}: {checkpoint.path} was trained with {trained}, so its "
            f"answers would be worse than they are; leave conv_template out, or add "
            f"any_template=True"
        )
    if is_plain(version):
        raise UsageError(
            f"{checkpoint.path} would be asked in {version}, the template of captions alone, which "
            "has no place for a question; evaluate stage 2, or pass "
            "conv_template=vicuna_v1,any_template=True"
        )
    return version


def _same(one: str, other: str) -> bool:
    return one == other or (CHAT not in (one, other) and template(one) == template(other))


def _device(asked: str | None) -> str:
    """As asked for, else this process's GPU, else the CPU; several processes never share a GPU."""
    if asked and not asked.startswith("cuda"):
        return asked
    if not torch.cuda.is_available():
        if asked:
            raise UsageError(f"device {asked}: no CUDA device is visible; pass device cpu")
        return "cpu"
    if asked and asked != "cuda" and launch().world == 1:
        return asked
    return f"cuda:{launch().local % torch.cuda.device_count()}"


def _accelerator(place: str) -> Accelerator:
    """What lmms-eval gathers the ranks' results with."""
    waiting = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    return Accelerator(cpu=place == "cpu", kwargs_handlers=[waiting])


def _recorded_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype that the checkpoint's weights are in, where its config says so."""
    return checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")


def _whole(batch_size: int | str) -> int:
    try:
        count = int(batch_size)
    except ValueError:
        count = 0
    if count < 1:
        raise UsageError(f"batch_size {batch_size}: expected a whole number from 1")
    return count


def _gigabytes(room: float | str) -> float:
    try:
        found = float(room)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < float("inf"):
        raise UsageError(f"cache_gb {room}: expected a number of gigabytes, or 0 for no cache")
    return found
