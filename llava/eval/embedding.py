"""A LLaVA as an encoder: one vector for a text, or for an image with a question about it.

The vector is the last hidden state of the last token, of length one; no template stands around the
text, and no end token behind it. That is VLM2Vec (arXiv 2410.05160) as the comparison of LLaVA with
its own CLIP used it (arXiv 2411.05195). Letters in shapes: B rows, T positions, H hidden size.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.masks import with_marks
from llava.errors import LawError, UsageError
from llava.eval.vision_cache import Prepared, VisionCache
from llava.files import read_json
from llava.log import get_logger, progress
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_layout import LORA, TEXT, Checkpoint
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.tokenization import tokenizer_image_token

logger = get_logger("embedding")

ABOUT = "Represent the given image with the following question: "
"""VLM2Vec's instruction for an image and a question, which follows it."""
ALONE = "Represent the given image."
"""The same authors' instruction for an image alone."""
FACTS = "embedder.json"
"""In a folder of adapters: what they were trained on, and how."""
BASE = ("base", "base_fingerprint")
"""What it says of the LLaVA that they go on."""
MAX_LENGTH = 512
"""Tokens of a text, by default; VLM2Vec's 256 to 1024, of which an image took most."""


@dataclass(frozen=True)
class Entry:
    """What becomes one vector: a text, and an image before it where there is one."""

    text: str
    image: Callable[[], Image.Image] | None = None
    """Opens it; called once for every time that the entry is embedded."""
    where: str = ""
    """What errors call it."""


@dataclass(frozen=True)
class Ready:
    """Entries as ids, with their images preprocessed."""

    ids: list[torch.Tensor]
    seen: Prepared


def instruction(question: str = "") -> str:
    """The text that goes with an image; a question's own image marks are left out."""
    asked = question.replace(DEFAULT_IMAGE_TOKEN, " ").strip()
    return ABOUT + asked if asked else ALONE


class Embedder:
    """A LLaVA that gives vectors; its mode, for training or not, is the caller's.

    A text is cut to its first `max_length` tokens; how many were cut is counted in `cut`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        cache: VisionCache,
        batch_size: int = 1,
        max_length: int = MAX_LENGTH,
    ):
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.batch_size, self.max_length = batch_size, max_length
        self.cut = 0
        self._start_end = bool(getattr(model.config, "mm_use_im_start_end", False))

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: nn.Module,
        processor: ImageProcessor | None,
        batch_size: int = 1,
        max_length: int = MAX_LENGTH,
    ) -> "Embedder":
        """Of what `load_pretrained_model` gives."""
        return cls(model, tokenizer, VisionCache(model, processor), batch_size, max_length)

    def forget(self) -> None:
        """Leaves out what the towers gave: it was computed in batches of then.

        Between pieces of work after which a run may be killed, so that one that goes on without
        it ends with the same digits.
        """
        self.cache = VisionCache(self.model, self.cache.processor)

    @torch.inference_mode()
    def embed(self, entries: Sequence[Entry], what: str = "embeddings") -> torch.Tensor:
        """float32 [B, H], on the CPU, of length one, in the order of the entries.

        Raises LawError for an empty text, or an image that cannot be opened.
        """
        order = sorted(range(len(entries)), key=lambda place: -len(entries[place].text))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        found = torch.empty(len(entries), self.model.config.hidden_size)
        for places in progress(batches, what) if len(batches) > 1 else batches:
            vectors_BH = self(self.ready([entries[place] for place in places])).cpu()
            _check_finite(vectors_BH, [entries[place] for place in places])
            found[places] = vectors_BH
        return found

    def ready(self, entries: Sequence[Entry]) -> Ready:
        """Opens and preprocesses the images, and reads the texts, of one batch."""
        images = [entry.image() for entry in entries if entry.image is not None]
        return Ready([self._ids(entry) for entry in entries], self.cache.prepare(images))

    def __call__(self, batch: Ready) -> torch.Tensor:
        """float32 [B, H] of length one, with gradients where they are asked for.

        Rows are padded on the left, so that their last tokens stand together; what a row gets does
        not depend on the rows beside it.
        """
        device = self.model.get_input_embeddings().weight.device
        ids = pad_sequence(batch.ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in batch.ids], batch_first=True)
        embeddings_BTH, mask_BT, position_BT = self.model.embed_prompt(
            ids.to(device), mask.to(device), **self.cache.arguments(batch.seen)
        )
        hidden_BTH = self.model.base_model(
            inputs_embeds=embeddings_BTH,
            attention_mask=mask_BT,
            position_ids=position_BT,
            use_cache=False,
        ).last_hidden_state
        return functional.normalize(hidden_BTH[:, -1].float(), dim=-1)

    def _ids(self, entry: Entry) -> torch.Tensor:
        """int64 [T]: an image as IMAGE_TOKEN_INDEX before the text."""
        text = entry.text.replace(DEFAULT_IMAGE_TOKEN, " ").strip()
        if not text:
            raise LawError(f"{entry.where or 'an entry'}: its text is empty, so it has no vector")
        if entry.image is not None:
            text = with_marks(f"{DEFAULT_IMAGE_TOKEN} {text}", None, self._start_end)
        ids = tokenizer_image_token(text, self.tokenizer, return_tensors="pt")
        self.cut += len(ids) > self.max_length
        return ids[: self.max_length]


def _check_finite(vectors_BH: torch.Tensor, entries: Sequence[Entry]) -> None:
    """Raises LawError for vectors that are no numbers."""
    for vector_H, entry in zip(vectors_BH, entries, strict=True):
        if not torch.isfinite(vector_H).all():
            raise LawError(
                f"{entry.where or entry.text[:60]}: the model gives NaN in place of a vector; its "
                "weights are damaged, or take --dtype float32"
            )


def load_embedder(
    path: str,
    base: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    tower_alias: Sequence[str] = (),
    batch_size: int = 1,
) -> Embedder:
    """The embedder in a folder of adapters, on the LLaVA it was trained on, or a LLaVA as it is.

    Raises UsageError for what is no LLaVA, and for adapters that do not say what they are for.
    """
    checkpoint = Checkpoint(path)
    if checkpoint.kind == TEXT:
        raise UsageError(f"{path} is a language model without a vision tower; expected a LLaVA")
    tokenizer, model, processor, _ = load_pretrained_model(
        path,
        base_of(path, base),
        device=device,
        dtype=dtype,
        tower_replacements=parse_replacements(list(tower_alias)),
    )
    length = embedder_facts(path).get("max_length", MAX_LENGTH)
    return Embedder.of(tokenizer, model, processor, batch_size, length)


def embedder_facts(path: str) -> dict:
    """What training wrote beside adapters of an embedder; empty where there is none."""
    file = Path(path) / FACTS
    return read_json(file) if file.is_file() else {}


def trained_how(path: str) -> str:
    """How an embedder was trained, as part of a protocol: `trained-` and 8 hex digits.

    Of a LLaVA that is none, `untrained`. The base does not count: it says who was trained.
    """
    facts = embedder_facts(path)
    if not facts:
        return "untrained"
    how = {name: value for name, value in facts.items() if name not in BASE}
    return f"trained-{hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]}"


def base_of(path: str, base: str | None = None) -> str | None:
    """The LLaVA that adapters go on: as asked for, else what training wrote beside them."""
    return base or (embedder_facts(path).get("base") if Checkpoint(path).kind == LORA else None)
