"""Vectors of captions, by each of the sources of a `TextConfig`.

Letters in shapes: B captions, L tokens, C channels.
"""

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llava.errors import LawError, UnknownNameError, UsageError
from llava.model.contrastive.config import TextConfig
from llava.model.multimodal_encoder.dual import build_dual, has_text
from llava.model.multimodal_encoder.pretrained import folder_digest
from llava.model.multimodal_encoder.registry import part_ids, resolve
from llava.model.multimodal_encoder.vit import quiet


class TextSource(ABC):
    """Gives captions vectors; frozen, except for the table."""

    dim: int
    """Width of a pooled vector."""
    token_dim: int = 0
    """Width of a token's vector; 0 for a source without tokens."""

    @abstractmethod
    def vectors(self, captions: Sequence[str]) -> Tensor:
        """float32 [B, C]; LawError for a caption that the source does not have."""

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """float32 [B, L, C] and bool [B, L], true for what is no padding."""
        raise UsageError(f"{type(self).__name__} has no tokens; take text source clip or llm")

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the vectors depend on, as plain JSON values.

        `weights`, where there are any, is a local folder's digest or a hub id.
        """


class ClipTexts(TextSource):
    """The text half of a CLIP or SigLIP."""

    def __init__(self, config: TextConfig, device: str | torch.device = "cpu"):
        parts = resolve(config.model).parts
        if len(parts) > 1 or not has_text(parts[0]):
            raise UsageError(
                f"text.model: {config.model} has no text half; expected one CLIP or SigLIP"
            )
        self.encoder = build_dual(parts[0], device=device)
        self.dim, self.token_dim = self.encoder.text_dim, self.encoder.token_dim

    def vectors(self, captions: Sequence[str]) -> Tensor:
        """The model's own embeddings, not normalised."""
        return self.encoder.texts(captions)

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states; begin and end marks are among them."""
        return self.encoder.text_tokens(captions)

    def facts(self) -> dict[str, Any]:
        """The weights and the tokenizer."""
        spec = self.encoder.spec
        weights = spec.digest or spec.weights or spec.id
        return {"source": "clip", "weights": weights, "text": self.encoder.text_digest}


class LanguageModelTexts(TextSource):
    """Last hidden states of a causal language model; a pooled vector is their mean."""

    def __init__(self, config: TextConfig, device: str | torch.device = "cpu"):
        import transformers

        self.source = config.model
        try:
            with quiet():
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.source)
                model, found = transformers.AutoModel.from_pretrained(
                    self.source, dtype=torch.float32, output_loading_info=True
                )
        except Exception as error:  # OSError, ValueError, SafetensorError, ...
            reason = str(error).strip().splitlines()[0]
            raise LawError(f"text.model: {self.source} cannot be read: {reason}") from error
        if missing := sorted(found["missing_keys"]):
            raise LawError(
                f"text.model: {self.source} lacks {len(missing)} weights, such as {missing[0]}"
            )
        if self.tokenizer.pad_token is None:  # masked below, so any will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        self.model = model.requires_grad_(False).eval().to(device)
        self.dim = self.token_dim = self.model.config.hidden_size

    @torch.no_grad()
    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states after the last layer, as long as the longest caption."""
        rows = self.tokenizer(list(captions), padding=True, return_tensors="pt")
        ids_BL, mask_BL = (
            rows[name].to(self.model.device) for name in ("input_ids", "attention_mask")
        )
        states_BLC = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return states_BLC.float(), mask_BL.bool()

    def vectors(self, captions: Sequence[str]) -> Tensor:
        """Mean over a caption's tokens."""
        states_BLC, mask_BL = self.tokens(captions)
        return (states_BLC * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)

    def facts(self) -> dict[str, Any]:
        """The weights and the tokenizer's vocabulary."""
        weights = folder_digest(self.source) if Path(self.source).is_dir() else self.source
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return {
            "source": "llm",
            "weights": weights,
            "text": hashlib.sha256(vocabulary).hexdigest(),
        }


class FileTexts(TextSource):
    """Vectors that were computed elsewhere: .npy of [captions, C], and a JSON list of captions."""

    def __init__(self, config: TextConfig, device: str | torch.device = "cpu"):
        self.vectors_file, self.captions_file = config.vectors, config.captions
        captions = _caption_list(config.captions)
        try:
            self.array = np.load(config.vectors, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise LawError(f"{config.vectors}: cannot be read as .npy: {error}") from error
        if self.array.ndim != 2 or self.array.dtype.kind != "f":
            raise LawError(
                f"{config.vectors}: expected floats [captions, width], found {self.array.dtype} "
                f"{list(self.array.shape)}"
            )
        if len(captions) != len(self.array):
            raise LawError(
                f"{config.vectors} has {len(self.array)} rows and {config.captions} "
                f"{len(captions)} captions; expected one row for each"
            )
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.dim = self.array.shape[1]
        self.device = device

    def vectors(self, captions: Sequence[str]) -> Tensor:
        """Rows of the file; LawError for a caption that it lacks or a row that is not finite."""
        places = [_place(self.rows, caption, self.captions_file) for caption in captions]
        found = torch.from_numpy(np.array(self.array[places], np.float32))
        if not torch.isfinite(found).all():
            bad = places[int((~torch.isfinite(found).all(1)).nonzero()[0])]
            raise LawError(f"{self.vectors_file}: row {bad} holds NaN or infinity")
        return found.to(self.device)

    def facts(self) -> dict[str, Any]:
        """Digests of both files."""
        files = {"vectors": self.vectors_file, "captions": self.captions_file}
        return {"source": "file"} | {name: _digest(path) for name, path in files.items()}


class TableTexts(TextSource, nn.Module):
    """A learned vector for every caption of a closed set; `captions` is that set."""

    def __init__(self, captions: Sequence[str], width: int):
        nn.Module.__init__(self)
        self.captions = list(captions)
        self.rows = {caption: row for row, caption in enumerate(self.captions)}
        if len(self.rows) != len(self.captions) or not self.rows:
            raise LawError(f"a table of {len(self.captions)} captions; expected some, each once")
        self.dim = width
        self.table = nn.Embedding(len(self.captions), width)

    def vectors(self, captions: Sequence[str]) -> Tensor:
        """The captions' rows; LawError for a caption that was none of training's."""
        places = [_place(self.rows, caption, "the head's table") for caption in captions]
        return self.table(torch.tensor(places, device=self.table.weight.device))

    def facts(self) -> dict[str, Any]:
        """The captions; the vectors are among the head's weights."""
        return {"source": "table", "captions": self.captions}


def text_source(
    config: TextConfig, captions: Sequence[str] = (), device: str | torch.device = "cpu"
) -> TextSource:
    """The source that a config means; `captions` are those that a table is of."""
    if config.source == "table":
        return TableTexts(captions, config.width).to(device)
    kinds = {"clip": ClipTexts, "llm": LanguageModelTexts, "file": FileTexts}
    return kinds[config.source](config, device)


def moved_text(
    config: TextConfig, replacements: Mapping[str, str], towers: Sequence[str]
) -> tuple[TextConfig, dict[str, str]]:
    """(the config, perhaps with its model elsewhere; the replacements that towers have use for).

    `replacements` maps names to folders or hub ids, as `--tower-alias OLD=NEW` says them; OLD is
    the model as the config has it, or the id that this name stands for. `towers` are the ids of the
    towers beside it, which may be the same.
    """
    names = [config.model]
    if config.source == "clip" and config.model not in replacements:
        with contextlib.suppress(UnknownNameError):  # a folder that is gone has no other name
            names += part_ids(config.model)
    used = next((name for name in names if name in replacements), None)
    if used is None:
        return config, dict(replacements)
    left = {old: new for old, new in replacements.items() if old != used or old in towers}
    return replace(config, model=replacements[used]), left


def _place(rows: dict[str, int], caption: str, where: object) -> int:
    if caption not in rows:
        raise LawError(
            f"caption '{caption[:80]}' is none of the {len(rows)} in {where}, which knows no "
            "other; take a text source that reads any caption: clip or llm"
        )
    return rows[caption]


def _caption_list(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise LawError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise LawError(f"{path}: expected a JSON list of captions")
    if len(set(found)) != len(found):
        raise LawError(f"{path}: {len(found) - len(set(found))} captions stand there twice")
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
