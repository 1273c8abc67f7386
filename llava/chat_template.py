"""A tokenizer's own chat template, with the places of the answers in what it writes.

Language models that were trained to chat bring a template; a `law` run with `--version chat` uses
it in place of LLaVA's. Templates are free programs, so nothing is taken for granted: what stands
before an answer has to be the prompt that inference gives for it, and each answer has to appear in
the text as it is, or an error says which turn does not.
"""

import re
from typing import TYPE_CHECKING

from llava.conversation import Segment
from llava.errors import LawError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("user", "assistant")
MARK = "\ue000{index}\ue001"
"""Stands for an answer while the template runs; private-use characters, which no data has."""


class ChatTemplate:
    """The chat template of a tokenizer; picklable as the tokenizer is."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        if not getattr(tokenizer, "chat_template", None):
            raise LawError(
                f"{tokenizer.name_or_path}: this tokenizer has no chat template; "
                "choose one of LLaVA's with --version, such as v1"
            )
        self._tokenizer = tokenizer
        # The template may write the BOS that encoding adds by itself.
        ids = tokenizer("").input_ids
        adds_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        self._bos = tokenizer.bos_token if adds_bos else ""
        special = sorted(map(str, tokenizer.added_tokens_encoder), key=len, reverse=True)
        self._end = re.compile(rf"\s*(?:{'|'.join(map(re.escape, special)) or '(?!)'})")

    def prompt(self, turns: list[str], system: str | None = None) -> str:
        """The text up to the next answer; `turns` are human, answer, ..., human."""
        return self._render(_messages(turns, system), ask=True)

    def segments(self, turns: list[str], system: str | None = None) -> list[Segment]:
        """The text of a whole conversation in pieces, answers with their end mark apart.

        Raises LawError where the template cannot render these turns, or not so that answers can be
        told from the rest.
        """
        text = self._render(_messages(turns, system))
        segments, place = [], 0
        for index, (start, end) in self._answers(turns, system, text):
            asked = self._render(_messages(turns[:index], system), ask=True)
            if not text.startswith(asked) or not place <= len(asked) <= start:
                raise LawError(
                    f"turn {index}: the chat template's prompt for this answer is not what stands "
                    "before it in the whole conversation, so a model trained on it would see other "
                    "text than at inference; choose one of LLaVA's templates with --version"
                )
            mark = self._end.match(text, end)
            end = mark.end() if mark else end
            segments.append(Segment(text[place : len(asked)], answer=False))
            segments.append(Segment(text[len(asked) : end], answer=True))
            place = end
        segments.append(Segment(text[place:], answer=False))
        return [segment for segment in segments if segment.text]

    def _answers(
        self, turns: list[str], system: str | None, text: str
    ) -> list[tuple[int, tuple[int, int]]]:
        """(turn, (start, end) in `text`) of every answer that says something."""
        answers = [index for index in range(1, len(turns), 2) if turns[index]]
        marked = [
            MARK.format(index=index) if index in answers else turn
            for index, turn in enumerate(turns)
        ]
        rest = self._render(_messages(marked, system))
        found, place = [], 0
        for index in answers:
            before, mark, rest = rest.partition(MARK.format(index=index))
            place += len(before)
            # Many templates strip what they are given.
            said = next(
                (s for s in (turns[index], turns[index].strip()) if text.startswith(s, place)), None
            )
            if not mark or said is None or text[place - len(before) : place] != before:
                raise LawError(
                    f"turn {index}: the chat template does not write this answer as it is; "
                    "choose one of LLaVA's templates with --version"
                )
            found.append((index, (place, place + len(said))))
            place += len(said)
        return found

    def _render(self, messages: list[dict[str, str]], ask: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # a template raises what it likes
            raise LawError(f"the chat template refuses this conversation: {error}") from error
        return text.removeprefix(self._bos)


def _messages(turns: list[str], system: str | None) -> list[dict[str, str]]:
    said = [{"role": ROLES[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return [{"role": "system", "content": system}, *said] if system else said
