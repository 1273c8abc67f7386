"""A conversation with a model: turns to the prompt it was trained on, and its answer back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerBase

from llava.chat_template import ChatTemplate
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle, template
from llava.data.masks import CHAT
from llava.errors import UsageError
from llava.log import get_logger
from llava.mm_utils import KeywordsStoppingCriteria, process_images, tokenizer_image_token
from llava.model.multimodal_encoder.processor import ImageProcessor

logger = get_logger("chat")

UNKNOWN_VERSION = "vicuna_v1"


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; temperature 0 takes the likeliest token every time."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    seed: int | None = None

    def arguments(self) -> dict[str, Any]:
        """For `generate`."""
        given: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.temperature > 0,
        }
        if self.temperature > 0:
            given |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": None}
        return given


def version_of(config: Any, asked: str | None = None) -> str:
    """The conversation template: as asked for, else that of training, else LLaVA-1.5's, said."""
    version = asked or getattr(config, "conversation_version", None)
    if version is None:
        logger.info("the model does not say its template; taking %s (--conv-mode)", UNKNOWN_VERSION)
        version = UNKNOWN_VERSION
    if version != CHAT:
        template(version)
    return version


@dataclass
class Conversing:
    """A model, and what was said to it and by it so far."""

    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    processor: ImageProcessor | None
    version: str
    sampling: Sampling = field(default_factory=Sampling)
    turns: list[str] = field(default_factory=list)
    """Human, answer, human, ..."""
    images: list[Image.Image] = field(default_factory=list)
    """All that the conversation is about, in order."""

    def ask(self, text: str, images: Sequence[Image.Image] = ()) -> str:
        """The answer to `text`, which comes with `images`; both are kept for the next turn.

        Raises UsageError for images where the model has no vision tower.
        """
        if images and self.processor is None:
            raise UsageError("this model has no vision tower; ask without an image")
        turns = [*self.turns, self._with_images(text, len(images))]
        answer = self._answer(self.prompt(turns), [*self.images, *images])
        self.turns = [*turns, answer]
        self.images += images
        return answer

    def prompt(self, turns: Sequence[str]) -> str:
        """The text that asks for the answer to the last of `turns`."""
        if self.version == CHAT:
            return ChatTemplate(self.tokenizer).prompt(list(turns))
        conversation = template(self.version)
        for index, turn in enumerate([*turns, None]):
            conversation.append_message(conversation.roles[index % 2], turn)
        return conversation.get_prompt()

    def _with_images(self, text: str, count: int) -> str:
        mark = DEFAULT_IMAGE_TOKEN
        if getattr(self.model.config, "mm_use_im_start_end", False):
            mark = DEFAULT_IM_START_TOKEN + mark + DEFAULT_IM_END_TOKEN
        if self._plain():
            return mark * count or text
        return text if DEFAULT_IMAGE_TOKEN in text else f"{mark}\n" * count + text

    def _plain(self) -> bool:
        return self.version != CHAT and self._template().sep_style is SeparatorStyle.PLAIN

    def _template(self) -> Conversation:
        return template(self.version)

    def _answer(self, prompt: str, images: Sequence[Image.Image]) -> str:
        device = self.model.get_input_embeddings().weight.device
        ids = tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, "pt")[None]
        ids = ids.to(device)
        given: dict[str, Any] = {}
        if images:
            pixels = process_images(images, self.processor, self.model.config)
            given = {"images": pixels, "image_sizes": [image.size for image in images]}
        stop = self._stop()
        if stop:
            given["stopping_criteria"] = [KeywordsStoppingCriteria([stop], self.tokenizer, ids)]
        if self.sampling.seed is not None:
            torch.manual_seed(self.sampling.seed)
        with torch.inference_mode():
            new = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                **given,
                **self.sampling.arguments(),
            )
        answer = self.tokenizer.decode(new[0], skip_special_tokens=True)
        return (answer.partition(stop)[0] if stop else answer).strip()

    def _stop(self) -> str:
        """What ends an answer besides the tokenizer's own end token."""
        if self.version == CHAT:
            return ""
        used = self._template()
        end = used.sep2 if used.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2) else None
        end = end or used.sep
        return "" if end == self.tokenizer.eos_token else end
