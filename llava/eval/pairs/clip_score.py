"""`--scorer clip`: cosine of the embeddings that a CLIP or SigLIP was trained to compare.

The plain cosine, as t2v_metrics and the published evaluations of What'sUp and MMVP-VLM take it;
temperature and bias change no decision. In one call every image and every caption is embedded once;
nothing is kept from call to call, so a run that goes on after a kill has the same batches.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.errors import LawError, UsageError, unknown_name
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import captions_of, groups_of, in_batches, pictures_of
from llava.eval.pairs.scorer import Scorer, no_text_encoder
from llava.extraction import usable_device
from llava.features import DTYPES
from llava.log import get_logger
from llava.model.multimodal_encoder.dual import DualEncoder, build_dual, has_text
from llava.model.multimodal_encoder.preprocess import check_frame
from llava.model.multimodal_encoder.registry import parse_replacements, resolve
from llava.model.representation import dtype_name

logger = get_logger("pairs")


class ClipScorer(Scorer):
    """A model with both halves."""

    name = "clip"

    def __init__(self, dual: DualEncoder, representation: str, batch_size: int = 32):
        self.dual = dual
        self.representation = representation
        self.batch_size = batch_size

    def scores(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Cosines [I, C], float64, of every item; NaN where not needed.

        Raises LawError for an image that does not decode, or an embedding without a direction.
        """
        images = self._images(pictures_of(items))
        texts = self._texts(captions_of(items))
        return [_cosines(item, images, texts) for item in items]

    def facts(self) -> dict[str, Any]:
        """The model with both of its halves, and how images are shown to it."""
        spec, dtype = self.dual.spec, dtype_name(self.dual.dtype)
        return {
            "scorer": self.name,
            "representation": self.representation,
            "model": spec.weights or spec.id,
            "spec_hash": spec.hash(),
            "texts": self.dual.text_digest,
            "frame": self.dual.frame,
            "dtype": dtype,
            "score": "cosine",
            "protocol": f"cosine/{self.dual.frame}/{dtype}",
        }

    def _images(self, paths: Sequence[Path]) -> dict[Path, np.ndarray]:
        found: dict[Path, np.ndarray] = {}
        for group, pixels in in_batches(paths, self.dual.preprocess, "images", self.batch_size):
            found |= zip(group, directions(self.dual.images(pixels), group), strict=True)
        return found

    def _texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        before = self.dual.truncated
        found: dict[str, np.ndarray] = {}
        for group in groups_of(texts, self.batch_size):
            found |= zip(group, directions(self.dual.texts(group), group), strict=True)
        if cut := self.dual.truncated - before:
            logger.warning("%d of %d captions were cut off", cut, len(texts))
        return found


def _cosines(
    item: Item, images: Mapping[Path, np.ndarray], texts: Mapping[str, np.ndarray]
) -> np.ndarray:
    images_I1D = np.stack([images[path] for path in item.images])[:, None]
    texts_1CD = np.stack([texts[text] for text in item.captions])[None]
    # no matrix product: its rounding may differ from row to row, and equal vectors must tie
    return np.where(item.needed, (images_I1D * texts_1CD).sum(-1), np.nan)


def directions(vectors_BD: torch.Tensor, names: Sequence[object]) -> np.ndarray:
    """The vectors at length 1, float64 [B, D]; LawError naming one that has no direction."""
    vectors_BD = vectors_BD.double().cpu().numpy()
    lengths_B1 = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    for name, length in zip(names, lengths_B1[:, 0], strict=True):
        if not 0 < length < np.inf:
            raise LawError(
                f"{name}: its embedding has length {length}; the model's weights are damaged, or "
                "take --dtype float32"
            )
    return vectors_BD / lengths_B1


def make(arguments: argparse.Namespace) -> ClipScorer:
    """The scorer of flags/clip.py's flags; UsageError for a model without a text encoder."""
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size {arguments.batch_size}: expected 1 or more")
    if arguments.dtype not in DTYPES:
        raise UsageError(f"--dtype: {unknown_name('dtype', arguments.dtype, DTYPES)}")
    check_frame(arguments.frame)
    found = resolve(arguments.model, replace=parse_replacements(arguments.tower_alias))
    if len(found.parts) > 1 or not has_text(found.parts[0]):
        raise no_text_encoder(found.name)
    device = usable_device(arguments.device)
    dual = build_dual(found.parts[0], arguments.frame, DTYPES[arguments.dtype], device)
    return ClipScorer(dual, found.name, arguments.batch_size)
