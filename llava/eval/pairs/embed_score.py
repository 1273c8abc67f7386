"""`--scorer embed`: cosine of a LLaVA's vectors of an image with a question, and of a caption.

In one call every image is embedded once with every question that it is asked, and every caption
once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.errors import LawError, UsageError
from llava.eval.embedding import (
    Embedder,
    Entry,
    base_of,
    instruction,
    load_embedder,
    trained_how,
)
from llava.eval.evaluation.subject import Subject, subject
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import open_picture
from llava.eval.pairs.questions import question
from llava.eval.pairs.scorer import Scorer
from llava.extraction import usable_device
from llava.log import get_logger
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.model.representation import dtype_name

logger = get_logger("pairs")


class EmbedScorer(Scorer):
    """Cosines of images, each with its question unless there are to be none, and of captions."""

    name = "embed"
    answers = True

    def __init__(self, embedder: Embedder, who: Subject, questions: bool = True, seed: int = 0):
        self.embedder, self.who = embedder, who
        self.questions, self.seed = questions, seed
        self._told = False

    def scores(self, items: Sequence[Item]) -> list[np.ndarray]:
        """float64 [I, C] of every item, NaN where `item.needed` is false."""
        self.embedder.forget()
        asked = [self._asked(item) for item in items]
        wanted = {
            (path, text): self._entry(item, image, path, text)
            for item, said in zip(items, asked, strict=True)
            for image, (path, text) in enumerate(zip(item.images, said, strict=True))
        }
        queries = self._vectors(wanted, "images")
        captions = dict.fromkeys(caption for item in items for caption in item.captions)
        targets = self._vectors(
            {text: Entry(text, where=f"'{text}'") for text in captions}, "texts"
        )
        return [
            _matrix(
                item,
                np.stack([queries[key] for key in zip(item.images, said, strict=True)]),
                np.stack([targets[caption] for caption in item.captions]),
            )
            for item, said in zip(items, asked, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """Everything that the scores depend on, as plain JSON values."""
        model = self.embedder.model
        asked = f"question/order{self.seed}" if self.questions else "no-question"
        how = ["last-token", trained_how(self.who.path), asked, dtype_name(model.dtype)]
        return {
            "protocol": "/".join(how),
            "representation": self.who.representation,
            "spec_hash": self.who.spec_hash,
            "model": self.who.path,
            "run_dir": self.who.path,
            "seed": self.who.seed,
            "fingerprint": self.who.fingerprint,
            "select_feature": getattr(model.config, "mm_vision_select_feature", None),
            "dtype": dtype_name(model.dtype),
            "pooling": "last token",
            "instruction": instruction("{question}") if self.questions else instruction(),
            "order_seed": self.seed if self.questions else None,
            "max_length": self.embedder.max_length,
        }

    def _asked(self, item: Item) -> list[str]:
        """The instruction that every image of an item gets."""
        if not self.questions:
            return [instruction()] * len(item.images)
        found = [question(item, image, self.seed) for image in range(len(item.images))]
        if not all(found) and not self._told:
            self._told = True
            logger.warning(
                "item %s: its captions tell no question (no objects on the sides of one axis), so "
                "its images go without one, as all such do; --no-question asks none of any item",
                item.id,
            )
        return [instruction(text) for text in found]

    def _entry(self, item: Item, image: int, path: Path, text: str) -> Entry:
        where = f"item {item.id}, image {image}"
        return Entry(text, lambda: _opened(path, where), where)

    def _vectors(self, entries: dict[Any, Entry], what: str) -> dict[Any, np.ndarray]:
        """float64 [H] of every entry, by its key."""
        cut = self.embedder.cut
        vectors = self.embedder.embed(list(entries.values()), what).double().numpy()
        if self.embedder.cut > cut:
            logger.warning(
                "%d of %d texts are longer than %d tokens and were cut",
                self.embedder.cut - cut,
                len(entries),
                self.embedder.max_length,
            )
        return dict(zip(entries, vectors, strict=True))


def _matrix(item: Item, images_IH: np.ndarray, captions_CH: np.ndarray) -> np.ndarray:
    """float64 [I, C]: cosines of what is needed."""
    images_IH = images_IH / np.linalg.norm(images_IH, axis=1, keepdims=True)
    captions_CH = captions_CH / np.linalg.norm(captions_CH, axis=1, keepdims=True)
    return np.where(item.needed, images_IH @ captions_CH.T, np.nan)


def _opened(path: Path, where: str) -> Image.Image:
    try:
        return open_picture(path)
    except LawError as error:
        raise LawError(f"{where}: {error}") from None


def make(arguments: argparse.Namespace) -> EmbedScorer:
    """The scorer of flags/embed.py's flags; UsageError for a model that gives no embeddings."""
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size {arguments.batch_size}: expected 1 or more")
    path, base = arguments.model_path, base_of(arguments.model_path, arguments.model_base)
    who = subject(path, base, towers=parse_replacements(arguments.tower_alias))
    embedder = load_embedder(
        path,
        base,
        arguments.dtype,
        usable_device(arguments.device),
        arguments.tower_alias,
        arguments.batch_size,
    )
    return EmbedScorer(embedder, who, not arguments.no_question, arguments.order_seed)
