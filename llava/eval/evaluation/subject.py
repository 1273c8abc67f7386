"""What is evaluated: a checkpoint's representation, template and seed, and a hash that tells it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.conversation import conv_templates
from llava.errors import UsageError
from llava.eval.prompts import version_of
from llava.files import read_json
from llava.model.builder import config_fields
from llava.model.checkpoint_layout import LORA, STAGE1, TEXT, Checkpoint
from llava.model.representation import representation_of, spec_hash

COUNTED = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.index.json",
    "*.safetensors",
    "*.bin",
)
"""Files of a checkpoint that its answers depend on."""
PIECE, PIECES = 1 << 16, 32
"""Bytes, and how many such pieces of a file are hashed: 2 MB of it, evenly spread."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint, as a result names it."""

    path: str
    representation: str
    spec_hash: str
    template: str
    """Conversation template that it is asked in; of several names the longest."""
    seed: int | None
    """Of its training, where its folder tells."""
    fingerprint: str


def subject(
    path: str,
    base: str | None = None,
    template: str | None = None,
    towers: Mapping[str, str] | None = None,
) -> Subject:
    """What `path`, a folder or hub id, holds; no weights are read but a few pieces.

    Raises UsageError for what no question can be asked of: a projector or adapters without a
    `base`, a model without a vision tower; LawError for a folder that is none.
    """
    checkpoint = Checkpoint(path)
    _check_kind(checkpoint, base)
    fields = config_fields(checkpoint)
    representation = representation_of(SimpleNamespace(**fields), towers)
    if representation is None:
        raise UsageError(f"{path}: its config names no vision tower (mm_vision_tower)")
    version = version_of(fields.get("conversation_version"), template)
    prints = [fingerprint(one) for one in (path, base) if one]
    return Subject(
        path,
        representation.name,
        spec_hash(representation),
        _one_name(version),
        _seed(Path(path)),
        "+".join(prints),
    )


def fingerprint(path: str) -> str:
    """A hash of a checkpoint's contents; moving or copying it changes nothing.

    Of every file its size and `PIECES` pieces, evenly spread, so that 13 GB take no minute;
    training changes every tensor that it trains. A hub id is told by its commit.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = Checkpoint(path).file("config.json")
        return f"{path}@{config.parent.name}" if config else path
    found = hashlib.sha256()
    for file in sorted({f for pattern in COUNTED for f in folder.glob(pattern) if f.is_file()}):
        found.update(f"{file.name} {file.stat().st_size}\n".encode())
        for piece in _pieces(file):
            found.update(piece)
    return found.hexdigest()[:16]


def _pieces(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    last = max(size - PIECE, 0)
    starts = sorted({last * i // (PIECES - 1) for i in range(PIECES)})
    with open(file, "rb") as handle:
        for start in starts if size > PIECE * PIECES else range(0, size, PIECE):
            handle.seek(start)
            yield handle.read(PIECE)


def _check_kind(checkpoint: Checkpoint, base: str | None) -> None:
    path = checkpoint.path
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        inner = sorted(folder.glob("checkpoint-*"), key=lambda one: one.stat().st_mtime)
        if inner:
            raise UsageError(
                f"{path}: no config.json, so this run is not finished; {inner[-1]} is its newest "
                "checkpoint: finish the run, or evaluate that"
            )
    if checkpoint.kind in (STAGE1, LORA) and not base:
        what = {STAGE1: "the projector of a stage 1", LORA: "adapters"}[checkpoint.kind]
        named = checkpoint.config.get("_name_or_path") or "LANGUAGE_MODEL"
        raise UsageError(
            f"{path} holds {what} and no language model; evaluate the folder of a stage 2, or pass "
            f"--model-base {named}"
        )
    if checkpoint.kind == TEXT:
        raise UsageError(f"{path} is a language model without a vision tower; expected a LLaVA")


def _one_name(version: str) -> str:
    """`v1` and `vicuna_v1` are one template: the longest of its names."""
    if version not in conv_templates:  # the tokenizer's own
        return version
    return max(
        (name for name, one in conv_templates.items() if one == conv_templates[version]), key=len
    )


def _seed(folder: Path) -> int | None:
    """The seed in a run's run.json, which stands beside the model or above a checkpoint-N."""
    for place in (folder, folder.parent if folder.name.startswith("checkpoint-") else folder):
        path = place / "run.json"
        if path.is_file():
            return _of_flags(read_json(path)).get("seed")
    return None


def _of_flags(run: Mapping[str, Any]) -> Mapping[str, Any]:
    flags = run.get("flags")
    return flags if isinstance(flags, dict) else {}
