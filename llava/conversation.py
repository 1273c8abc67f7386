"""Conversation templates: turns to the one text that a language model reads.

A template is data (`conversation_templates.yaml`); its style says how turns are joined. The text is
made in pieces that know whether they are an answer, so the prompt of inference and the masks of
training cannot drift apart:

    PLAIN    human text, then answer + sep                          (stage 1: image, caption)
    SINGLE   system + sep, then every turn as `Role: text` + sep
    TWO      system + sep, then `USER: text` + sep and `ASSISTANT: text` + sep2
    MPT      system + sep, then role + text + sep                   (ChatML)
    LLAMA_2  `[INST] text [/INST]`, the first with the system text in it, then ` text ` + sep2

Source: the templates of LLaVA 1.2.2, whose prompts these equal character by character.
"""

import dataclasses
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Literal

from llava.config import build, read_yaml
from llava.errors import UnknownNameError, unknown_name


class SeparatorStyle(Enum):
    """How the turns of a conversation are joined."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclass(frozen=True)
class Segment:
    """A piece of the text; `answer` where it is what the model has to say, its end mark included.

    What stands before an answer is exactly the prompt that inference gives for it.
    """

    text: str
    answer: bool


@dataclass
class Conversation:
    """A template with the turns said so far: human first, then in turn.

    `messages` holds [role, text] pairs; a last answer of None asks the model for it.
    """

    system: str
    roles: tuple[str, str]
    messages: list[list[str | None]] = field(default_factory=list)
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def copy(self) -> "Conversation":
        """An equal conversation whose messages can change on their own."""
        return dataclasses.replace(self, messages=[list(message) for message in self.messages])

    def append_message(self, role: str, message: str | None) -> None:
        """Adds a turn; None as text leaves it to the model."""
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments())

    def segments(self) -> list[Segment]:
        """The text in pieces, answers apart; joined they are the prompt.

        An empty turn is its role alone (in LLAMA_2 nothing): LLaVA writes no end mark after it, so
        an empty answer teaches nothing. In PLAIN it still has its end mark.
        """
        pieces = [Segment(self._head(), answer=False)]
        for index, (role, text) in enumerate(self.messages):
            answer = index % 2 == 1
            before, said = self._turn(index, role, text, answer)
            pieces += [Segment(before, answer=False), Segment(said, answer=answer)]
        return [piece for piece in pieces if piece.text]

    def _head(self) -> str:
        if self.sep_style in (SeparatorStyle.PLAIN, SeparatorStyle.LLAMA_2):
            return ""
        return self.system + self.sep

    def _turn(self, index: int, role: str, text: str | None, answer: bool) -> tuple[str, str]:
        """(what introduces a turn, what is said in it with its end mark)."""
        style = self.sep_style
        if style is SeparatorStyle.PLAIN:
            return "", text + self.sep if answer and text is not None else text or ""
        text = text or ""
        if style is SeparatorStyle.LLAMA_2:
            return self._llama_2_turn(index, text, answer)
        if style is SeparatorStyle.MPT:
            return role, text + self.sep if text else ""
        end = self.sep2 if style is SeparatorStyle.TWO and answer else self.sep
        return f"{role}:", f" {text}{end}" if text else ""

    def _llama_2_turn(self, index: int, text: str, answer: bool) -> tuple[str, str]:
        if answer:
            return "", f" {text} {self.sep2}" if text else ""
        if index == 0:  # the tokenizer writes the first <s> itself
            system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system else ""
            return "", f"[INST] {system}{text} [/INST]"
        return "", f"{self.sep}[INST] {text} [/INST]" if text else ""


@dataclass(frozen=True)
class _Template:
    """One entry of the YAML file."""

    names: list[str]
    style: Literal["PLAIN", "SINGLE", "TWO", "MPT", "LLAMA_2"]
    version: str
    roles: tuple[str, str]
    sep: str
    sep2: str | None = None
    system: str = ""


class UnknownTemplateError(UnknownNameError, KeyError):
    """A name that no template goes by."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError's is in quotes


class _Templates(dict[str, Conversation]):
    """Templates by name; a name that is none is an error that says the nearest."""

    def __missing__(self, name: str) -> Conversation:
        raise UnknownTemplateError(unknown_name("conversation template", name, self))


def _read_templates() -> dict[str, Conversation]:
    templates = _Templates()
    path = Path(__file__).with_name("conversation_templates.yaml")
    for index, entry in enumerate(read_yaml(path)):
        facts = build(_Template, entry, where=f"{path.name}[{index}]")
        for name in facts.names:
            templates[name] = Conversation(
                system=facts.system,
                roles=facts.roles,
                sep_style=SeparatorStyle[facts.style],
                sep=facts.sep,
                sep2=facts.sep2,
                version=facts.version,
            )
    return templates


conv_templates: dict[str, Conversation] = _read_templates()
"""Name -> template; `copy()` one before adding messages."""
default_conversation: Conversation = conv_templates["vicuna_v1"]


def template(name: str) -> Conversation:
    """A fresh conversation of this template; raises UnknownTemplateError with the nearest name."""
    return conv_templates[name].copy()
