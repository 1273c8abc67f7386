"""What a model is asked in: the template of its training, with images in their marks."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.chat_template import ChatTemplate
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Segment, SeparatorStyle, template
from llava.data.masks import CHAT, Labelled, labelled, with_marks
from llava.errors import LawError
from llava.log import get_logger
from llava.tokenization import encode_prompt, tokenizer_image_token

logger = get_logger("prompts")

UNKNOWN_VERSION = "vicuna_v1"


def version_of(trained: str | None, asked: str | None = None) -> str:
    """The conversation template: as asked for, else that of training, else LLaVA-1.5's, said."""
    version = asked or trained
    if version is None:
        logger.info("the model does not say its template; taking %s (--conv-mode)", UNKNOWN_VERSION)
        version = UNKNOWN_VERSION
    if version != CHAT:
        template(version)
    return version


def is_plain(version: str) -> bool:
    """Whether a template is stage 1's: an image and its caption, no question."""
    return version != CHAT and template(version).sep_style is SeparatorStyle.PLAIN


class Prompts:
    """Turns to text and ids under one template.

    Turns are human, answer, human, ... `version` is a key of `conv_templates`, or "chat" for the
    tokenizer's own template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Any, version: str):
        self.tokenizer = tokenizer
        self.version = version
        self.start_end = bool(getattr(config, "mm_use_im_start_end", False))
        self._chat = ChatTemplate(tokenizer) if version == CHAT else None
        self._template = None if version == CHAT else template(version)

    @property
    def plain(self) -> bool:
        """Whether the template is stage 1's: an image and its caption, no question."""
        return is_plain(self.version)

    @cached_property
    def stop(self) -> str:
        """What ends an answer besides the tokenizer's own end token; often nothing."""
        used = self._template
        if used is None:
            *_, answer = (s.text for s in self._chat.segments(["a", "b"]) if s.answer)
            end = answer.removeprefix("b").strip()
        else:
            two = used.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
            end = (used.sep2 if two else None) or used.sep
        return "" if end == self.tokenizer.eos_token else end

    def with_images(self, text: str, count: int, between: str = "\n") -> str:
        """A turn about `count` images: their marks before the text, unless it has some itself.

        A plain template has no place for a text beside an image; one is left out, and that is said.
        """
        if self.plain and count:
            if text.strip():
                logger.warning(
                    "the template '%s' asks for captions alone: '%s' is not asked",
                    self.version,
                    text[:60],
                )
            text = DEFAULT_IMAGE_TOKEN * count
        elif count and DEFAULT_IMAGE_TOKEN not in text:
            text = between.join([DEFAULT_IMAGE_TOKEN] * count) + "\n" + text
        return with_marks(text, self._template, self.start_end)

    def prompt(self, turns: Sequence[str]) -> str:
        """The text that asks for the answer to the last of `turns`."""
        if self._chat is not None:
            return self._chat.prompt(list(turns))
        conversation = self._template.copy()
        for index, turn in enumerate([*turns, None]):
            conversation.append_message(conversation.roles[index % 2], turn)
        return conversation.get_prompt()

    def ids(self, turns: Sequence[str]) -> torch.Tensor:
        """int64 [T]: the ids of `prompt`, an image as IMAGE_TOKEN_INDEX."""
        return tokenizer_image_token(self.prompt(turns), self.tokenizer, return_tensors="pt")

    def labelled(self, turns: Sequence[str], end: bool = True) -> Labelled:
        """Ids of whole turns, of which the last answer, with its end mark, is supervised.

        Without `end` the text stops behind the answer's last character. Raises LawError where it is
        empty.
        """
        if not turns[-1]:
            raise LawError("the answer is empty, so no token of it can be scored")
        segments = self._segments(turns)
        if not end:
            segments = _without_end(segments, turns[-1])
        last = max(i for i, segment in enumerate(segments) if segment.answer)
        asked = [Segment(s.text, answer=i == last) for i, s in enumerate(segments)]
        text = "".join(segment.text for segment in segments)
        return labelled(asked, encode_prompt(text, self.tokenizer))

    def _segments(self, turns: Sequence[str]) -> list[Segment]:
        if self._chat is not None:
            return self._chat.segments(list(turns))
        conversation = self._template.copy()
        for index, turn in enumerate(turns):
            conversation.append_message(conversation.roles[index % 2], turn)
        return conversation.segments()


def _without_end(segments: Sequence[Segment], answer: str) -> list[Segment]:
    """The segments up to the last character of the last answer."""
    last = max(i for i, segment in enumerate(segments) if segment.answer)
    text = segments[last].text
    # the first: an answer such as `s` is in its end mark `</s>`, too
    said = text[: text.index(answer) + len(answer)]
    return [*segments[:last], Segment(said, answer=True)]
