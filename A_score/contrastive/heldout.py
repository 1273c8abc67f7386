"""How well a head finds captions it was not trained on: an estimate of alignment without an LLM.

Pools of P different images with P different captions; recall@1 is the share of images whose own
caption scores higher than every other of the pool, and the other way round. Ties are not right.
Letters in shapes: P images and captions of a pool.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from A_score.contrastive.captions import Captions
from llava.data.images import path_inside
from llava.data.tower_tokens import Tokens
from llava.errors import LawError
from llava.log import get_logger, progress
from llava.model.contrastive.losses import clip_loss
from llava.model.contrastive.model import Head
from llava.results import ResultRow

logger = get_logger("a-score")

QUANTITY = "A_head"
MEASURES = {
    "image_to_text": ("fraction", True),
    "text_to_image": ("fraction", True),
    "infonce": ("nats", False),
}
"""What is measured in a pool: unit, and whether higher is better."""


@dataclass(frozen=True)
class Alignment:
    """What the pools gave."""

    pool: int
    """P."""
    left_out: int
    """Records that no whole pool had room for."""
    values: dict[str, list[float]]
    """Measure -> its value in every pool."""

    @property
    def n(self) -> int:
        """Images in all."""
        return self.pool * len(self.values["infonce"])

    def mean(self, measure: str) -> float:
        """Over pools."""
        return float(np.mean(self.values[measure]))

    def stderr(self, measure: str) -> float | None:
        """Of the mean, over pools; None for one pool."""
        values = self.values[measure]
        return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None

    def to_json(self) -> dict:
        """Means, standard errors and every pool's values."""
        measured = {
            name: {"mean": self.mean(name), "stderr": self.stderr(name), "pools": self.values[name]}
            for name in MEASURES
        }
        return {"pool": self.pool, "n": self.n, "left_out": self.left_out, **measured}

    def rows(self, benchmark: str, **facts: str | int) -> list[ResultRow]:
        """A row of the results table for every measure, `BENCHMARK_MEASURE`."""
        return [
            ResultRow(
                quantity=QUANTITY,
                benchmark=f"{benchmark}_{name}",
                value=self.mean(name),
                unit=unit,
                higher_is_better=higher,
                stderr=self.stderr(name),
                n=self.n,
                **facts,
            )
            for name, (unit, higher) in MEASURES.items()
        ]


def pools(captions: Captions, size: int, seed: int) -> tuple[list[list[int]], dict[int, str]]:
    """(whole pools of records, caption of every record): nothing stands twice in a pool.

    Neither a caption nor an image does, by its path: both would be ties. Records come in an order
    drawn by the seed, each goes to the first pool that lacks its caption and its image. LawError
    where there is no whole pool.
    """
    order = list(range(len(captions)))
    random.Random(f"pools {seed}").shuffle(order)  # a draw of data  # noqa: S311
    told = {i: captions.caption(i, 0) for i in order}
    found: list[dict[str, int]] = []
    shown: list[set[str]] = []
    first_for: dict[str, int] = {}
    first_open = 0
    for i in order:
        # a caption's own pools are those before `first_for`; full ones are those before first_open
        place, image = max(first_for.get(told[i], 0), first_open), captions.image(i)
        while place < len(found) and (len(found[place]) == size or image in shown[place]):
            place += 1
        if place == len(found):
            found.append({})
            shown.append(set())
        found[place][told[i]] = i
        shown[place].add(image)
        first_for[told[i]] = place + 1
        while first_open < len(found) and len(found[first_open]) == size:
            first_open += 1
    whole = [list(pool.values()) for pool in found if len(pool) == size]
    if not whole:
        images = {captions.image(i) for i in order}
        raise LawError(
            f"{len(order)} held-out records have {len(set(told.values()))} different captions and "
            f"{len(images)} images; a pool of {size} needs that many of both; take a smaller one "
            "with --pool"
        )
    return whole, told


@torch.no_grad()
def alignment(
    head: Head, tokens: Tokens, captions: Captions, folder: Path, size: int, seed: int
) -> Alignment:
    """Recall and InfoNCE of a head in evaluation mode; nats are at the head's temperature."""
    whole, told = pools(captions, size, seed)
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for pool in progress(whole, "held-out pools"):
        images = [path_inside(folder, captions.image(i)) for i in pool]
        patches = head.patches(tokens(images))
        scores_PP = head.scores(patches, head.embed([told[i] for i in pool])).double().cpu()
        if not torch.isfinite(scores_PP).all():
            raise LawError(
                "the head gives held-out scores that are not finite; the tower's tokens are not, "
                "so take --dtype float32"
            )
        values["image_to_text"].append(recall(scores_PP))
        values["text_to_image"].append(recall(scores_PP.T))
        values["infonce"].append(float(clip_loss(scores_PP, head.scale.double().cpu())))
    left_out = len(captions) - size * len(whole)
    if left_out:
        logger.info("held out: %d records are in no whole pool of %d", left_out, size)
    return Alignment(size, left_out, values)


def recall(scores_PP: torch.Tensor) -> float:
    """Share of rows whose diagonal entry is larger than every other."""
    others = scores_PP.clone().fill_diagonal_(-torch.inf)
    return float((scores_PP.diagonal() > others.amax(1)).double().mean())


def as_text(found: Alignment) -> str:
    """Two lines."""
    one, other, nats = (found.mean(name) for name in MEASURES)
    return (
        f"recall@1 in pools of {found.pool}: image to text {one:.4f}, text to image {other:.4f} "
        f"(chance {1 / found.pool:.4f})\n"
        f"InfoNCE {nats:.4f} nats (chance {np.log(found.pool):.4f}); {found.n} images"
    )
