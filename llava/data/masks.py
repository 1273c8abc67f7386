"""Conversations to ids and labels: a model learns its answers with their end marks, nothing else.

The text is made in pieces that know whether they are an answer (`llava/conversation.py`), tokenised
once, and a token is supervised where its first character is an answer's. So nothing that stands in
the text - a separator, a role name, an end or unknown token - can shift or lose a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.chat_template import ChatTemplate
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, Segment, SeparatorStyle, template
from llava.errors import LawError
from llava.log import get_logger
from llava.text_encoder import Encoded
from llava.tokenization import encode_prompt, text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = get_logger("masks")

CHAT = "chat"
"""The version that stands for the tokenizer's own chat template."""
HUMAN, ANSWERER, SYSTEM = "human", "gpt", "system"


class SampleError(LawError):
    """One sample that cannot be trained on; the message says why."""


@dataclass
class Labelled:
    """Ids of a sample, an image as IMAGE_TOKEN_INDEX, and its labels.

    A label is the id where the token is supervised and IGNORE_INDEX everywhere else. All labels may
    be IGNORE_INDEX: empty answers, or answers beyond the length that a text is cut to.
    """

    input_ids: list[int]
    labels: list[int]


def labelled(segments: Sequence[Segment], encoded: Encoded) -> Labelled:
    """What is `encoded` of the segments' joined text, supervised where an answer's tokens begin."""
    labels = [IGNORE_INDEX] * len(encoded.ids)
    place = 0
    for segment in segments:
        if segment.answer:
            said = encoded.beginning_in(place, place + len(segment.text))
            labels[said] = encoded.ids[said]
        place += len(segment.text)
    if IMAGE_TOKEN_INDEX in labels:
        labels = [IGNORE_INDEX if label == IMAGE_TOKEN_INDEX else label for label in labels]
    return Labelled(encoded.ids, labels)


class Labeller:
    """Makes ids and labels of conversations under one template; picklable.

    `version` is a key of `conv_templates`, or "chat" for the tokenizer's own template. Text without
    an image is cut to `max_length` tokens; samples with images are not, since their length is known
    only with that of the images. `use_start_end` puts <im_start> and <im_end> around images.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        version: str,
        max_length: int | None = None,
        use_start_end: bool = False,
    ):
        self.version = version
        self.max_length = max_length
        self.use_start_end = use_start_end
        self._chat = ChatTemplate(tokenizer) if version == CHAT else None
        self._template = None if version == CHAT else template(version)
        self._encoder = text_encoder(tokenizer)
        self._plain = not self._chat and self._template.sep_style is SeparatorStyle.PLAIN
        self._told = False

    def __call__(self, conversations: list[dict[str, Any]], has_image: bool | int) -> Labelled:
        """Ids and labels of one record's `conversations`.

        `has_image` is whether the record has an image, or how many: as in LLaVA, a turn about one
        image has it before its text, wherever `<image>` stood and however often; with several
        images every `<image>` keeps its place. Raises SampleError.
        """
        segments = self.segments(conversations, has_image)
        text = "".join(segment.text for segment in segments)
        made = labelled(segments, self._encode(text, has_image))
        cut = None if has_image else self.max_length
        return Labelled(made.input_ids[:cut], made.labels[:cut])

    def segments(self, conversations: list[dict[str, Any]], has_image: bool | int) -> list[Segment]:
        """The text of one record in pieces, answers apart; raises SampleError."""
        system, turns = _turns(conversations)
        if system is not None and self._chat is None:
            raise SampleError(
                f"turn 0 is from '{SYSTEM}', and the template '{self.version}' has its own system "
                "text; leave the turn out, or use --version chat"
            )
        several = has_image > 1
        if has_image:
            turns = [(who, self._with_image(text, several)) for who, text in turns]
        if self._plain:
            return self._plain_segments(turns, several)
        texts = _alternating(turns)
        if self._chat is not None:
            try:
                return self._chat.segments(texts, system)
            except LawError as error:
                raise SampleError(str(error)) from error
        conversation = self._template.copy()
        for index, text in enumerate(texts):
            conversation.append_message(conversation.roles[index % 2], text)
        return conversation.segments()

    def _encode(self, text: str, has_image: bool | int) -> Encoded:
        if has_image or self._plain:
            return encode_prompt(text, self._encoder)
        # Here `<image>` is a word like any other: there is no image that it could stand for.
        return self._encoder.encode(text, first=True)

    def _plain_segments(self, turns: list[tuple[str, str]], several: bool) -> list[Segment]:
        """An image, or several, and the caption; the instruction is left out, as in LLaVA."""
        if [who for who, _ in turns] != [HUMAN, ANSWERER]:
            raise SampleError(
                f"the template '{self.version}' takes one '{HUMAN}' turn and one '{ANSWERER}', "
                f"and this record has {', '.join(who for who, _ in turns)}"
            )
        human, answer = (text for _, text in turns)
        if DEFAULT_IMAGE_TOKEN in human:
            human = DEFAULT_IMAGE_TOKEN * (human.count(DEFAULT_IMAGE_TOKEN) if several else 1)
        elif not self._told:
            self._told = True
            logger.warning(
                "records without %s under the template '%s' keep their human text, unsupervised",
                DEFAULT_IMAGE_TOKEN,
                self.version,
            )
        conversation = self._template.copy()
        conversation.append_message(conversation.roles[0], human)
        conversation.append_message(conversation.roles[1], answer)
        return conversation.segments()

    def _with_image(self, text: str, several: bool) -> str:
        """A turn's text with its image where LLaVA puts it."""
        if DEFAULT_IMAGE_TOKEN not in text:
            return text
        if not several:
            rest = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            text = f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()
        return with_marks(text, self._template, self.use_start_end)


def with_marks(text: str, used: Conversation | None, start_end: bool) -> str:
    """The text with what a template, and <im_start> and <im_end>, put around each of its images."""
    image = DEFAULT_IMAGE_TOKEN
    if used is not None and "mmtag" in used.version:
        image = f"<Image>{image}</Image>"
    if start_end:
        marked = f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}"
        image = image.replace(DEFAULT_IMAGE_TOKEN, marked)
    return text.replace(DEFAULT_IMAGE_TOKEN, image)


def _turns(conversations: Any) -> tuple[str | None, list[tuple[str, str]]]:
    """(text of a leading system turn, (who, text) of the others), every type checked."""
    if not isinstance(conversations, list) or not conversations:
        raise SampleError("`conversations` must be a list of turns, and not an empty one")
    turns = []
    for index, turn in enumerate(conversations):
        who, text = (
            (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        )
        if not isinstance(text, str):
            raise SampleError(
                f"turn {index}: expected {{'from': ..., 'value': text}}, got {turn!r:.80}"
            )
        if who not in (HUMAN, ANSWERER) and not (who == SYSTEM and index == 0):
            raise SampleError(f"turn {index} is from {who!r}; expected '{HUMAN}' or '{ANSWERER}'")
        _check_text(index, text)
        turns.append((who, text))
    system = turns.pop(0)[1] if turns[0][0] == SYSTEM else None
    if not turns:
        raise SampleError("there is no turn but the system's")
    return system, turns


def _check_text(index: int, text: str) -> None:
    """JSON can hold halves of characters, which no tokenizer takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SampleError(
                f"turn {index}: character {error.start} is half of a surrogate pair"
            ) from error


def _alternating(turns: list[tuple[str, str]]) -> list[str]:
    """The texts of turns that alternate, human first.

    A first turn of the answerer is left out, as LLaVA does: some ShareGPT records begin so.
    """
    skipped = int(turns[0][0] == ANSWERER)
    for index, (who, _) in enumerate(turns):
        if who != (HUMAN, ANSWERER)[(index + skipped) % 2]:
            raise SampleError(f"turn {index} is from '{who}', as the one before it is")
    if len(turns) == skipped:
        raise SampleError(f"there is no turn from '{HUMAN}'")
    return [text for _, text in turns[skipped:]]
