"""Conversation records by number, out of files that no process ever holds.

    [{"id": 1, "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "..."}, ...]}]

One pass over a file checks every record and leaves an index: where each one starts, its words, its
images. The index is written beside the file (or into `cache_dir`, or the user's cache), so the next
process reads that. `image` may be a list, and null means none.
"""

import hashlib
import io
import json
import os
import zipfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llava.data.scan import parse, scan
from llava.errors import LawError
from llava.files import write_bytes
from llava.log import get_logger, progress

logger = get_logger("data")

VERSION = 1
"""Of the index; goes up when the same file gives another one."""
IMAGE_WORDS = 128
"""What an image counts as, in words, in `lengths`; LLaVA's number."""
SAMPLED = 1 << 16
"""Bytes at either end of a file that its stamp looks at."""


class Records:
    """The records of one file, or of several joined by `,`, in order."""

    def __init__(self, path: str | os.PathLike, cache_dir: str | os.PathLike | None = None):
        """Reads the indices or builds them; LawError for a file that is missing or broken."""
        self.files = [_IndexedFile.open(one, cache_dir) for one in _paths(path)]
        self._starts = np.cumsum([0, *(len(file) for file in self.files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        file, inside = self._at(i)
        return self.files[file].read(inside)

    def _at(self, i: int) -> tuple[int, int]:
        """Which file, and which of its records."""
        i = int(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        i %= len(self)
        file = int(np.searchsorted(self._starts, i, "right")) - 1
        return file, i - int(self._starts[file])

    def place(self, i: int) -> str:
        """File and number of a record, for messages."""
        file, inside = self._at(i)
        return f"{self.files[file].path}: record {inside}"

    @cached_property
    def words(self) -> np.ndarray:
        """int64 [records]: words of all turns, split at spaces."""
        return np.concatenate([file.words for file in self.files]).astype(np.int64)

    @cached_property
    def image_counts(self) -> np.ndarray:
        """int64 [records]: images of every record."""
        return np.concatenate([file.images for file in self.files]).astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [records]: words, and LLaVA's 128 for a record with an image."""
        return self.words + IMAGE_WORDS * (self.image_counts > 0)

    @property
    def modality_lengths(self) -> np.ndarray:
        """int64 [records]: words, negative for a record without image; 1 where there are none."""
        words = np.maximum(self.words, 1)
        return np.where(self.image_counts > 0, words, -words)

    @property
    def stamp(self) -> str:
        """64 hex digits that change when a file does."""
        return hashlib.sha256("".join(file.stamp for file in self.files).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """64 hex digits over all bytes of the files, wherever they are; reads them whole."""
        return hashlib.sha256(
            "".join(_digest(file.path) for file in self.files).encode()
        ).hexdigest()


@dataclass
class _IndexedFile:
    """One file and its index."""

    path: Path
    stamp: str
    offsets: np.ndarray
    """int64 [records + 1]: first byte of every record, and the byte behind the last."""
    words: np.ndarray
    images: np.ndarray
    _handle: int | None = None

    @classmethod
    def open(cls, path: Path, cache_dir: str | os.PathLike | None) -> "_IndexedFile":
        stamp = _stamp(path)
        places = _index_places(path, cache_dir)
        for place in places:
            if (found := _read_index(place, path, stamp)) is not None:
                return found
        built = _build(path, stamp)
        _write_index(built, places)
        return built

    def __len__(self) -> int:
        return len(self.words)

    def read(self, i: int) -> dict[str, Any]:
        first, end = int(self.offsets[i]), int(self.offsets[i + 1])
        try:
            if self._handle is None:
                self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return parse(_read_at(self._handle, first, end - first))
        except (OSError, ValueError) as error:
            raise LawError(
                f"{self.path}: record {i} is not where it was ({error}); the file changed during "
                "the run: start again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, so that a worker process may have a copy."""
        return {**self.__dict__, "_handle": None}

    def __del__(self):
        if self._handle is not None:
            os.close(self._handle)


def _read_at(handle: int, first: int, size: int) -> bytes:
    """Without a position in the file, which forked processes would share."""
    pieces = []
    while size > 0 and (piece := os.pread(handle, size, first)):
        pieces.append(piece)
        first, size = first + len(piece), size - len(piece)
    return b"".join(pieces)


def images_of(record: dict[str, Any]) -> list[str]:
    """The paths of a record's images."""
    image = record.get("image")
    if image is None:
        return []
    return [image] if isinstance(image, str) else list(image)


def _paths(path: str | os.PathLike) -> list[Path]:
    text = os.fspath(path)
    names = [text] if Path(text).is_file() else [name.strip() for name in text.split(",")]
    found = [Path(name) for name in names if name]
    if not found:
        raise LawError("no data: expected a JSON or JSONL file, or several joined by ','")
    for one in found:
        if one.is_dir():
            raise LawError(f"{one}: is a folder; expected a JSON or JSONL file")
        if not one.is_file():
            raise LawError(f"{one}: no such file (seen from {Path.cwd()})")
    return found


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error


def _stamp(path: Path) -> str:
    """Changes when the file does, as far as size, time and its two ends tell."""
    try:
        facts = path.stat()
        with open(path, "rb") as handle:
            ends = handle.read(SAMPLED)
            handle.seek(max(0, facts.st_size - SAMPLED))
            ends += handle.read(SAMPLED)
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error
    text = f"{VERSION} {facts.st_size} {facts.st_mtime_ns} {hashlib.sha256(ends).hexdigest()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _index_places(path: Path, cache_dir: str | os.PathLike | None) -> list[Path]:
    """Where the index may be: beside the file, or in a cache under a name made of its path."""
    full = os.path.realpath(path)
    cached = f"{path.name}.{hashlib.sha256(full.encode()).hexdigest()[:16]}.index.npz"
    if cache_dir is not None:
        return [Path(cache_dir) / cached]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return [path.with_name(f".{path.name}.index.npz"), home / "law-of-vision" / cached]


def _read_index(place: Path, path: Path, stamp: str) -> _IndexedFile | None:
    """None where there is none, it is of another file, or it is damaged."""
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            offsets, words, images = (stored[name] for name in ("offsets", "words", "images"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: cannot be read (%s); made anew", place, error)
        return None
    return _IndexedFile(path, stamp, offsets, words, images)


def _write_index(built: _IndexedFile, places: Sequence[Path]) -> None:
    """Into the first place that can be written; several processes write the same bytes."""
    data = io.BytesIO()
    arrays = {"offsets": built.offsets, "words": built.words, "images": built.images}
    np.savez(data, stamp=np.array(built.stamp), **arrays)
    for place in places:
        try:
            write_bytes(place, data.getvalue())
            return
        except LawError as error:
            logger.debug("%s", error)
    logger.warning(
        "%s: its index can be written to none of %s; every process will read the whole file",
        built.path,
        ", ".join(map(str, places)),
    )


def _build(path: Path, stamp: str) -> _IndexedFile:
    """One pass over the file."""
    starts, words, images = array("q"), array("i"), array("i")
    for i, (start, end, record) in enumerate(progress(scan(path), f"reading {path.name}")):
        if problem := _problem(record):
            raise LawError(f"{path}: record {i}, byte {start}: {problem}")
        starts[i:] = array("q", (start, end))
        words.append(sum(len(turn["value"].split()) for turn in record["conversations"]))
        images.append(len(images_of(record)))
    return _IndexedFile(
        path,
        stamp,
        np.array(starts, np.int64),
        np.array(words, np.int32),
        np.array(images, np.int32),
    )


def _problem(record: dict[str, Any]) -> str:
    """What is wrong with a record's form; '' where nothing is."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        found = f"keys {list(record)}" if turns is None else _short(turns)
        return f"expected `conversations`, a list of {{from, value}}, found {found[:200]}"
    if not turns:
        return "`conversations` is empty"
    for number, turn in enumerate(turns):
        texts = isinstance(turn, dict) and [turn.get(key) for key in ("from", "value")]
        if not texts or not all(isinstance(text, str) for text in texts):
            return f"turn {number}: expected {{from, value}} with texts, found {_short(turn)}"
    image = record.get("image")
    names = image if isinstance(image, list) else [] if image is None else [image]
    if not all(isinstance(name, str) and name for name in names):
        return f"`image`: expected a path, a list of paths or null, found {_short(image)}"
    return ""


def _short(value: Any) -> str:
    return json.dumps(value)[:80]
