"""Text to ids, each id with the characters that it stands for, in one pass.

LLaVA's checkpoints were trained with the Python (slow) `LlamaTokenizer` of transformers 4, which
runs sentencepiece on the text between special tokens; the tokenizer of transformers 5 gives other
ids for double spaces, leading spaces and what follows a special token. `SentencePieceEncoder` gives
the old ids, `BackendEncoder` those of any tokenizer of the `tokenizers` library.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llava.errors import LawError, MissingPackageError

SPACE_PIECE = "▁"
"""sentencepiece writes a space so (U+2581)."""


@dataclass(frozen=True)
class Encoded:
    """Ids and where they come from: `text[starts[i]:ends[i]]` is what id i stands for.

    A token made of a part of a character has the whole character. Only the BOS that no text asked
    for has an empty span, (0, 0). Both arrays are int64 [T] and never fall.
    """

    ids: list[int]
    starts: np.ndarray
    ends: np.ndarray

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of every id, in characters."""
        return list(zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    def beginning_in(self, start: int, end: int) -> slice:
        """The ids whose first character is one of `text[start:end]`."""
        first = max(
            np.searchsorted(self.starts, start, side="left"),
            np.searchsorted(self.ends, start, side="right"),
        )
        return slice(int(first), int(np.searchsorted(self.starts, end, side="left")))


def join(parts: Iterable[tuple[int, Encoded]]) -> Encoded:
    """The parts one after the other, each with the place in the text where it begins."""
    parts = list(parts)
    empty = [np.empty(0, np.int64)]
    return Encoded(
        [token for _, part in parts for token in part.ids],
        np.concatenate(empty + [part.starts + place for place, part in parts]),
        np.concatenate(empty + [part.ends + place for place, part in parts]),
    )


def single(token: int, length: int) -> Encoded:
    """One id for `length` characters."""
    return Encoded([token], np.zeros(1, np.int64), np.full(1, length, np.int64))


class TextEncoder(Protocol):
    """Text to ids with spans; picklable, so that a data loader's workers can have it."""

    bos: int | None
    """Id that this tokenizer begins every text with; None where it begins with nothing."""

    def encode(self, text: str, first: bool) -> Encoded:
        """Ids of `text`, as a text of its own; with BOS where it is the first."""


class SentencePieceModel:
    """A `tokenizer.model`: sentencepiece's model with how it was trained to read text."""

    def __init__(self, path: Path):
        try:
            from sentencepiece import sentencepiece_model_pb2
        except ImportError as error:
            raise MissingPackageError(
                "a tokenizer.model is read with sentencepiece and protobuf; install them with "
                "`pip install 'sentencepiece>=0.2' 'protobuf>=5'`"
            ) from error
        try:
            self._proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        except Exception as error:  # protobuf's own DecodeError, by whichever of its backends
            raise LawError(f"{path}: is no sentencepiece model: {error}") from error

    @property
    def adds_dummy_space(self) -> bool:
        """Whether a text gets a space before it."""
        return self._proto.normalizer_spec.add_dummy_prefix

    @property
    def keeps_text(self) -> bool:
        """Whether the pieces of a text, put together, are the text, byte by byte."""
        reads, trained = self._proto.normalizer_spec, self._proto.trainer_spec
        return (
            trained.byte_fallback
            and not trained.treat_whitespace_as_suffix
            and reads.escape_whitespaces
            and not reads.remove_extra_whitespaces
            and not reads.precompiled_charsmap
        )

    def processor(self, dummy_space: bool) -> Any:
        """A SentencePieceProcessor; without the dummy space where `dummy_space` is false."""
        from sentencepiece import SentencePieceProcessor

        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        proto.normalizer_spec.add_dummy_prefix &= dummy_space
        return SentencePieceProcessor(model_proto=proto.SerializeToString())


class SentencePieceEncoder:
    """What the slow LlamaTokenizer of transformers 4.38 makes of a text, with spans.

    `legacy` true: sentencepiece puts its dummy space before every stretch between special tokens.
    False: before the text only. `special` are the added tokens with their ids; those that
    `strip_left` or `strip_right` names swallow the spaces beside them.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        legacy: bool,
        special: dict[str, int],
        named: Iterable[str],
        unknown: str,
        bos: int | None,
        strip_left: Iterable[str] = (),
        strip_right: Iterable[str] = (),
    ):
        self.bos = bos
        self.legacy = legacy
        self._special = special
        self._named = frozenset(named)
        self._strip_left, self._strip_right = frozenset(strip_left), frozenset(strip_right)
        longest_first = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._processor = model.processor(dummy_space=legacy)
        self._piece_bytes = _piece_bytes(self._processor)
        self._dummy_bytes = int(legacy and model.adds_dummy_space)
        self._unknown = unknown
        self._unknown_pieces = len(self._processor.encode(unknown))

    def encode(self, text: str, first: bool) -> Encoded:
        """Ids of `text`, as a text of its own; with BOS where it is the first."""
        parts = [(0, single(self.bos, 0))] if first and self.bos is not None else []
        begin = 0
        for match in self._pattern.finditer(text):
            token, end = match.group(), match.start()
            if token in self._strip_left:
                end = begin + len(text[begin:end].rstrip())
            parts += self._stretch(text, begin, end, before=token)
            parts.append((match.start(), single(self._special[token], len(token))))
            begin = match.end()
            if token in self._strip_right:
                begin += len(text[begin:]) - len(text[begin:].lstrip())
        return join([*parts, *self._stretch(text, begin, len(text), before=None)])

    def _stretch(
        self, text: str, begin: int, end: int, before: str | None
    ) -> list[tuple[int, Encoded]]:
        """What text[begin:end] gives, which lies before the special token `before`."""
        stretch = text[begin:end].replace(SPACE_PIECE, " ")
        if begin == 0 and text and not self.legacy:
            if not stretch and before in self._named:
                return []
            return [(0, self._pieces(" " + stretch, added=1))]
        return [(begin, self._pieces(stretch, added=0))] if stretch else []

    def _pieces(self, stretch: str, added: int) -> Encoded:
        """What sentencepiece makes of a stretch whose first `added` characters are not the text's.

        Without its dummy space sentencepiece would join a space at the beginning with nothing, so
        the unknown token stands before it, and its pieces are dropped again.
        """
        if not self.legacy and stretch.startswith(" "):
            ids = self._processor.encode(self._unknown + stretch)
            before, dropped = len(self._unknown.encode()), self._unknown_pieces
        else:
            ids = self._processor.encode(stretch)
            before, dropped = self._dummy_bytes, 0
        lengths = self._piece_bytes[ids]
        ends = np.cumsum(lengths) - before
        starts = np.maximum(ends - lengths, 0)[dropped:]
        starts, ends = _characters(stretch, starts, ends[dropped:])
        starts = np.maximum(starts - added, 0)
        # The dummy space belongs to the character that it stands before.
        return Encoded(ids[dropped:], starts, np.maximum(ends - added, starts + 1))


class BackendEncoder:
    """What a tokenizer of the `tokenizers` library makes of a text, with spans."""

    def __init__(self, backend: Any, bos: int | None):
        self.bos = bos
        self._backend = type(backend).from_str(backend.to_str())
        # It adds BOS and EOS, and may cut the spaces off the spans.
        self._backend.post_processor = None
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, text: str, first: bool) -> Encoded:
        """Ids of `text`, as a text of its own; with BOS where it is the first."""
        found = self._backend.encode(text, add_special_tokens=False)
        spans = np.array(found.offsets, np.int64).reshape(-1, 2)
        body = Encoded(found.ids, spans[:, 0], np.maximum(spans[:, 1], spans[:, 0] + 1))
        if not first or self.bos is None:
            return body
        return join([(0, single(self.bos, 0)), (0, body)])


def _characters(text: str, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans in bytes of UTF-8 as spans in characters; a part of a character counts as it whole."""
    total = len(text) if text.isascii() else len(text.encode())
    if not len(ends) or ends[-1] != total:
        raise LawError(
            f"the tokenizer's pieces stand for {ends[-1] if len(ends) else 0} bytes of the {total} "
            f"of {text[:60]!r}: its tokenizer.model changes text, and no span can be told"
        )
    if total == len(text):
        return starts, ends
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    character = np.repeat(np.arange(len(text)), widths)
    return character[starts], character[np.maximum(ends, 1) - 1] + 1


def _piece_bytes(processor: Any) -> np.ndarray:
    """Bytes of UTF-8 that each id stands for, int64 [vocabulary]; a space is one byte."""
    ids = list(range(len(processor)))
    pieces = processor.id_to_piece(ids)
    lengths = [len(piece.replace(SPACE_PIECE, " ").encode()) for piece in pieces]
    return np.where(processor.is_byte(ids), 1, np.array(lengths, np.int64))
