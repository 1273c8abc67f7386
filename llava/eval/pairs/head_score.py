"""`--scorer head`: cosine of images and captions after a trained head on a frozen tower.

It makes towers without a text half comparable with captions: DINOv2, diffusion models, and
combinations. `law a-score head` trains it. Letters in shapes: I images and C captions of an item, T
captions of a call.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.data.tower_tokens import LiveTokens, Options
from llava.errors import LawError, UsageError
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import captions_of, groups_of, pictures_of
from llava.eval.pairs.scorer import Scorer
from llava.extraction import usable_device
from llava.model.contrastive.model import Texts
from llava.model.contrastive.saved import SavedHead, load_head
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.model.representation import spec_hash


class HeadScorer(Scorer):
    """A head with its towers; images and captions of a call are embedded once each."""

    name = "head"

    def __init__(self, saved: SavedHead, folder: Path, device: str = "cpu", batch_size: int = 16):
        self.saved, self.folder, self.batch_size = saved, folder, batch_size
        options = Options(saved.dtype, device, batch_size)
        self.tokens = LiveTokens(saved.representation, saved.frame, options)

    @torch.no_grad()
    def scores(self, items: Sequence[Item]) -> list[np.ndarray]:
        """float64 [I, C] of every item, NaN where `item.needed` is false.

        LawError for an image that does not decode, or a caption that the text source does not have.
        """
        head = self.saved.head
        paths, captions = pictures_of(items), captions_of(items)
        patches = {}
        for group in groups_of(paths, self.batch_size):
            patches |= zip(group, head.patches(self.tokens(group)), strict=True)
        texts = {}
        for group in groups_of(captions, self.batch_size):
            embedded = head.embed(group)
            texts |= {one: (embedded.rows[i], embedded.mask[i]) for i, one in enumerate(group)}
        return [self._matrix(item, patches, texts) for item in items]

    def _matrix(
        self,
        item: Item,
        patches: dict[Path, torch.Tensor],
        texts: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> np.ndarray:
        images_IND = torch.stack([patches[path] for path in item.images])
        columns = [
            self.saved.head.scores(images_IND, Texts(rows_LD[None], mask_L[None]))
            for rows_LD, mask_L in (texts[caption] for caption in item.captions)
        ]
        scores_IC = torch.cat(columns, 1).double().cpu().numpy()
        if not np.isfinite(scores_IC).all():
            raise LawError(
                f"item {item.id}: the head in {self.folder} gives a score that is not finite; the "
                f"tower ran in {self.saved.dtype}"
            )
        return np.where(item.needed, scores_IC, np.nan)

    def facts(self) -> dict[str, Any]:
        """The head's weights, its towers and its texts."""
        saved = self.saved
        text = saved.head.texts.facts()
        # of a head that no command trained, its weights say how it came about
        way = saved.training.get("way") or [f"head-{saved.digest[:12]}"]
        return {
            "protocol": "/".join(way),
            "representation": saved.representation.name,
            "spec_hash": spec_hash(saved.representation),
            "model": str(self.folder),
            "fingerprint": saved.digest,
            "seed": saved.training.get("config", {}).get("seed"),
            "select_feature": saved.representation.parts[0].select,
            "frame": saved.frame,
            "dtype": saved.dtype,
            "head": saved.head.config.kind + ("-rope" if saved.head.config.rope else ""),
            "text": {name: value for name, value in text.items() if name != "captions"},
        }


def make(arguments: argparse.Namespace) -> HeadScorer:
    """The scorer of flags/head.py's flags; LawError for a folder that holds no head."""
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size {arguments.batch_size}: expected 1 or more")
    device = usable_device(arguments.device)
    saved = load_head(arguments.head, parse_replacements(arguments.tower_alias), device)
    return HeadScorer(saved, arguments.head, device, arguments.batch_size)
