"""A head's folder: config.json says what it is, head.safetensors holds what it learned.

The towers' fields are those of a LLaVA's config, so a head is moved to another machine as a LLaVA
is: `OLD=NEW` says where a tower's weights are now.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from llava.config import build, to_plain
from llava.errors import LawError
from llava.files import read_json, write_bytes, write_json
from llava.model.contrastive.config import HeadConfig
from llava.model.contrastive.model import Head
from llava.model.contrastive.texts import moved_text, text_source
from llava.model.multimodal_encoder.registry import Representation
from llava.model.representation import record, representation_of

CONFIG, WEIGHTS = "config.json", "head.safetensors"
FORMAT = 1
"""Of config.json; goes up when its fields mean something else."""
KINDS = {
    "head": dict,
    "text": dict,
    "towers": dict,
    "training": dict,
    "frame": str,
    "dtype": str,
    "digest": str,
}
DIGEST = re.compile("[0-9a-f]{64}")
REMEDY = "expected a folder that `law a-score head --out` wrote"


@dataclass
class SavedHead:
    """A head with the towers that it was trained on."""

    head: Head
    representation: Representation
    frame: str
    dtype: str
    """Of the towers."""
    training: dict[str, Any]
    """What it was trained on and how, for whoever reads the folder."""
    digest: str
    """SHA-256 of its weights."""


def save_head(
    folder: str | os.PathLike,
    head: Head,
    representation: Representation,
    frame: str,
    dtype: str,
    training: Mapping[str, Any],
) -> None:
    """Writes the folder; the config comes last, so a folder with one is whole."""
    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    data = save(weights)
    towers = SimpleNamespace()
    record(towers, representation)
    write_bytes(Path(folder) / WEIGHTS, data)
    write_json(
        Path(folder) / CONFIG,
        {
            "format": FORMAT,
            "head": to_plain(head.config),
            "text": head.texts.facts(),
            "towers": vars(towers),
            "frame": frame,
            "dtype": dtype,
            "digest": hashlib.sha256(data).hexdigest(),
            "training": dict(training),
        },
    )


def load_head(
    folder: str | os.PathLike,
    replacements: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
) -> SavedHead:
    """The head in evaluation mode, with its text source; towers are not built.

    `replacements` maps a tower's id, and the name of the text source's model, to where their
    weights are read from. Raises LawError for a folder that is none, weights that are not those
    that its config names, or a text source that is not the one of training.
    """
    path = Path(folder) / CONFIG
    facts = read_json(path, REMEDY)
    _check_config(facts, path)
    towers, text = facts["towers"], facts["text"]
    config = build(HeadConfig, facts["head"], f"{path}: head")
    names = [part["id"] for part in towers["mm_vision_specs"]]
    text_config, elsewhere = moved_text(config.text, replacements or {}, names)
    moved = replace(config, text=text_config)
    found = representation_of(SimpleNamespace(**towers), elsewhere)
    texts = text_source(moved.text, text.get("captions", ()), device)
    if not _same(texts.facts(), text, moved != config):
        raise LawError(
            f"{path}: text source '{config.text.source}' is not the one that the head was trained "
            f"with, which was {_short(text)}; found {_short(texts.facts())}"
        )
    head = Head(moved, found.dim, texts)
    _fill(head, Path(folder) / WEIGHTS, facts["digest"])
    return SavedHead(
        head.to(device).eval(),
        found,
        facts["frame"],
        facts["dtype"],
        facts["training"],
        facts["digest"],
    )


def _check_config(facts: Any, path: Path) -> None:
    """Raises LawError for what `save_head` does not write."""
    if not isinstance(facts, dict) or "head" not in facts or "digest" not in facts:
        raise LawError(f"{path}: no config of a head; {REMEDY}")
    if facts.get("format") != FORMAT:
        raise LawError(
            f"{path}: has format {facts.get('format')}, and this version reads {FORMAT}; train "
            "the head anew, or take the version that wrote it"
        )
    for name, kind in KINDS.items():
        if not isinstance(facts.get(name), kind):
            raise LawError(f"{path}: `{name}` is {facts.get(name)!r:.60}; {REMEDY}")
    if not isinstance(facts["towers"].get("mm_vision_specs"), list):
        raise LawError(f"{path}: `towers` has no mm_vision_specs; {REMEDY}")


def _same(found: Mapping[str, Any], recorded: Mapping[str, Any], moved: bool) -> bool:
    """Whether a text source is that of training.

    Weights that were a hub's then and were said to be elsewhere now cannot be compared, as towers'
    cannot; all else must be the same.
    """
    weights = str(recorded.get("weights", ""))
    if moved and not DIGEST.fullmatch(weights):
        found = {**found, "weights": weights}
    return dict(found) == dict(recorded)


def _fill(head: Head, path: Path, digest: str) -> None:
    """Reads the weights; LawError where they are damaged or of another head."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise LawError(f"{path}: its bytes are not those that {CONFIG} names; copy it again")
        head.load_state_dict(load(data))
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}; {REMEDY}") from error
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LawError(f"{path}: does not fit its {CONFIG}: {reason}") from error


def _short(text: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:16]}" for key, value in text.items())
