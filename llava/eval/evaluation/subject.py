"""What is evaluated: a checkpoint's representation, template and seed, and a hash that tells it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import constants

from llava.conversation import conv_templates
from llava.errors import LawError, UnknownNameError, UsageError
from llava.eval.evaluation.fingerprint import fingerprint
from llava.eval.prompts import version_of
from llava.files import read_json
from llava.model.builder import config_fields
from llava.model.checkpoint_layout import LORA, STAGE1, TEXT, Checkpoint
from llava.model.multimodal_encoder.known import towers as known_towers
from llava.model.multimodal_encoder.pretrained import folder_digest
from llava.model.multimodal_encoder.registry import HUB_ID, Representation
from llava.model.multimodal_encoder.spec import TowerSpec
from llava.model.representation import representation_of, spec_hash


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
    try:
        representation = representation_of(SimpleNamespace(**fields), towers)
    except UnknownNameError as error:
        raise UsageError(f"{path}: its vision tower: {error}; {_remedy('OLD')}") from error
    if representation is None:
        raise UsageError(f"{path}: its config names no vision tower (mm_vision_tower)")
    for part in representation.parts:
        _check_there(path, part, towers or {})
    version = version_of(fields.get("conversation_version"), template)
    prints = [fingerprint(one) for one in (path, base) if one]
    return Subject(
        path,
        representation.name,
        spec_hash(representation),
        _one_name(version),
        _seed(Path(path)),
        "+".join([*prints, *_digest_of_towers(representation)]),
    )


def _check_there(path: str, part: TowerSpec, towers: Mapping[str, str]) -> None:
    """A tower is known by name, a folder that is there, or a hub id; the last has no digest."""
    where = part.weights or part.id
    is_name = where in known_towers() or (
        HUB_ID.fullmatch(where) and (not part.digest or part.id in towers)
    )
    if not (is_name or Path(where).is_dir()):
        raise UsageError(
            f"{path}: its vision tower {where} is not here (seen from {Path.cwd()}); "
            f"{_remedy(part.id)}"
        )


def _remedy(tower: str) -> str:
    return f"say where it is now with --tower-alias {tower}=FOLDER"


def _digest_of_towers(representation: Representation) -> list[str]:
    """One hash of the towers that are folders, whose contents may change; hub ids are names."""
    found = [
        part.digest or (folder_digest(where) if Path(where).is_dir() else "")
        for part in representation.parts
        for where in [part.weights or part.id]
    ]
    return [hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]] if any(found) else []


def _check_kind(checkpoint: Checkpoint, base: str | None) -> None:
    path = checkpoint.path
    folder = Path(path)
    if not folder.is_dir() and constants.HF_HUB_OFFLINE and checkpoint.file("config.json") is None:
        raise LawError(
            f"{path}: no such folder (seen from {Path.cwd()}) and not in the hub's cache, and the "
            f"network is off (HF_HUB_OFFLINE); type `hf download {path}` where there is one"
        )
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
