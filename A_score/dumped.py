"""What `law a-score dump` writes, and how it is read back.

    OUT/<benchmark>/images.json                       the images, in the order of the draw
    OUT/<benchmark>/<representation>/manifest.json    what the tokens are
                                     <id>.safetensors [tokens, width] of one image

In a folder's name `/` is written `--`, and one that is too long ends in its digest
(files.folder_name). A file of tokens says which manifest and which image it is of and carries a
checksum, so that what is damaged or belongs elsewhere is seen.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from llava.config import build, to_plain
from llava.errors import LawError
from llava.files import read_json, write_bytes, write_json

FORMAT = "law a-score dump 1"
IMAGES = "images.json"
MANIFEST = "manifest.json"
REMEDY = "move it away, and dump again"
SAME_SOURCE = ("kind", "task")
"""What two sources must share, besides the images themselves, which may have moved."""


@dataclass(frozen=True)
class DrawnImages:
    """The images of a benchmark that every representation is dumped on."""

    benchmark: str
    seed: int
    source: dict[str, Any]
    """Where they came from when they were first drawn."""
    images: dict[str, str]
    """Id -> hash of the content, in the order of the draw."""
    format: str = FORMAT

    @classmethod
    def read(cls, folder: Path) -> "DrawnImages | None":
        """Those of a benchmark's folder; None where none were drawn."""
        return _read(cls, folder / IMAGES, "source", ("kind",))

    def write(self, folder: Path) -> None:
        """Writes them into a benchmark's folder."""
        write_json(folder / IMAGES, to_plain(self))

    def difference(self, other: "DrawnImages") -> str:
        """What `other` was drawn differently by, in words; one may be the longer draw."""
        if self.benchmark != other.benchmark:
            return f"is of benchmark {self.benchmark}, and this is {other.benchmark}"
        if self.seed != other.seed:
            return f"was drawn with seed {self.seed}, and this is seed {other.seed}"
        for name in SAME_SOURCE:
            before, now = self.source.get(name), other.source.get(name)
            if before != now:
                return f"was drawn from {name} {before}, and this is {now}"
        for (before, content), (now, other_content) in zip(
            self.images.items(), other.images.items(), strict=False
        ):
            if before != now:
                return f"has image {before} where {now} would be drawn now: its source has changed"
            if content != other_content:
                return f"has an image {before} of other content"
        return ""


@dataclass(frozen=True)
class Manifest:
    """What the tokens of one representation are."""

    name: str
    """As results tables have it."""
    tokens: dict[str, Any]
    """All that they depend on besides the image."""
    towers: list[str]
    """Their ids."""
    run: str
    """Folder of the projector."""
    stage: str
    """What the projector went through last: `stage1`, `lora` or `whole`."""
    language_model: str
    shape: list[int | None]
    """Tokens of an image (null where they depend on its size) and their width."""
    libraries: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    format: str = FORMAT

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """That of a representation's folder; None where it has none of ours."""
        return _read(cls, folder / MANIFEST, "tokens", ("spec_hash", "dtype", "representation"))

    def write(self, folder: Path) -> None:
        """Writes it into a representation's folder."""
        write_json(folder / MANIFEST, to_plain(self))

    @property
    def digest(self) -> str:
        """64 hex digits over what the tokens depend on."""
        plain = json.dumps(self.tokens, sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    def difference(self, other: "Manifest") -> str:
        """What tokens of `other` differ by, in words; the first of them."""
        if self.name != other.name:
            return f"name is {self.name}, and this is {other.name}"
        for name in dict.fromkeys([*self.tokens, *other.tokens]):
            before, now = self.tokens.get(name), other.tokens.get(name)
            if before != now:
                return f"{name} {_short(before)}, and this is {name} {_short(now)}"
        return ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _read(cls: type, path: Path, where: str, texts: Sequence[str]) -> Any:
    """What a file of this format says, with these `texts` in the field `where`; None without it."""
    if not path.is_file():
        return None
    facts = read_json(path, REMEDY)
    written = str(facts.get("format"))
    if written == FORMAT:
        found = build(cls, facts, str(path))
        for name in texts:
            if not isinstance(getattr(found, where).get(name), str):
                raise LawError(f"{path}: {where}: expected a text under {name}; {REMEDY}")
        return found
    if written.startswith(FORMAT.rstrip("0123456789")):
        raise LawError(f"{path}: is '{written}', and this program reads '{FORMAT}'")
    return None  # somebody else's


def write_tokens(path: Path, tokens_NC: torch.Tensor, manifest: Manifest, content: str) -> None:
    """Writes the tokens of the image with this content."""
    kept = tokens_NC.contiguous()
    note = {"manifest": manifest.digest, "content": content, "crc32": _crc(kept)}
    # one entry: the order of several is not the same every time
    data = safetensors.torch.save({"tokens": kept}, {"dump": json.dumps(note)})
    write_bytes(path, data)


def read_tokens(path: Path, manifest: Manifest, content: str | None = None) -> torch.Tensor:
    """[tokens, width]; LawError where they are damaged, or of another manifest or image."""
    try:
        with safe_open(path, "pt") as handle:
            note = dict(json.loads((handle.metadata() or {})["dump"]))
            tokens = handle.get_tensor("tokens")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise LawError(f"{path}: cannot be read ({error}); dump it again") from error
    if note.get("manifest") != manifest.digest:
        raise LawError(f"{path}: its tokens are not those of {MANIFEST} beside it; dump it again")
    if content is not None and note.get("content") != content:
        raise LawError(f"{path}: its image is another than in {IMAGES}; dump it again")
    if note.get("crc32") != _crc(tokens):
        raise LawError(f"{path}: bytes of it are not those that were written; dump it again")
    return tokens


def _crc(tokens: torch.Tensor) -> int:
    return zlib.crc32(tokens.reshape(-1).view(torch.uint8).numpy())


def is_sound(path: Path, manifest: Manifest, content: str) -> bool:
    """Whether the file holds the image's tokens, every byte as written."""
    try:
        read_tokens(path, manifest, content)
    except LawError:
        return False
    return True


def contents_digest(images: Mapping[str, str]) -> str:
    """16 hex digits over the contents of images in their order."""
    return hashlib.sha256(" ".join(images.values()).encode()).hexdigest()[:16]
