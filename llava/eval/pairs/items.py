"""What a pair benchmark asks: images, captions, which of them belong together.

Letters in shapes: I images and C captions of an item.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from llava.errors import LawError


@dataclass(frozen=True)
class Item:
    """Images with captions that are true of some of them and false of others.

    Every published form is one of these: a set of What'sUp has four images and four captions,
    MMVP and Winoground two of each, COCO-spatial one image and two captions.
    """

    id: str
    images: tuple[Path, ...]
    captions: tuple[str, ...]
    right: tuple[int, ...]
    """For every image, the caption that is true of it."""
    choices: tuple[tuple[int, ...], ...]
    """For every image, the captions that it is to choose among, the right one with them."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Images that differ in one respect; each is right about its own caption only."""
    axes: tuple[str, ...] = ()
    """For every image, in what respect: `left/right`, a pattern of MMVP-VLM; empty for none."""
    question: str = ""
    """What the captions answer, where they are answers and no statements."""

    def __post_init__(self):
        images, captions = len(self.images), len(self.captions)
        if not images or not captions:
            raise LawError(f"item {self.id}: {images} images and {captions} captions")
        for name in ("right", "choices", *(["axes"] if self.axes else [])):
            if len(getattr(self, name)) != images:
                raise LawError(
                    f"item {self.id}: {name} has {len(getattr(self, name))} entries, expected one "
                    f"for each of {images} images"
                )
        for right, choices in zip(self.right, self.choices, strict=True):
            if right not in choices or len(choices) < 2 or len(set(choices)) != len(choices):
                raise LawError(
                    f"item {self.id}: an image chooses among {choices} and caption {right} is "
                    "right; expected two captions or more, the right one with them"
                )
            if not 0 <= min(choices) <= max(choices) < captions:
                raise LawError(f"item {self.id}: choices {choices} of {captions} captions")
        for one, other in self.pairs:
            inside = 0 <= one < images and 0 <= other < images
            if not inside or self.right[one] == self.right[other]:
                raise LawError(
                    f"item {self.id}: images {one} and {other} of {images} are no pair; expected "
                    "two images that different captions are true of"
                )

    def axis(self, image: int) -> str:
        """In what respect an image is asked about; empty where that is not said."""
        return self.axes[image] if self.axes else ""

    @property
    def needed(self) -> np.ndarray:
        """bool [I, C]: the scores that any accuracy reads; the others need not be computed."""
        needed = np.zeros((len(self.images), len(self.captions)), bool)
        for image, choices in enumerate(self.choices):
            needed[image, list(choices)] = True
        for pair in self.pairs:
            rights = [self.right[image] for image in pair]
            needed[np.ix_(pair, rights)] = True
        return needed


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it was read, in the order of its file.

    Attributes:
        name: as it stands in results tables, e.g. `whatsup_a`.
        items: what is asked.
        chooses: `captions`: an image chooses among captions (What'sUp, MMVP); `images`: a caption
            chooses among a pair's images (MMVP-VLM).
        protocol: what else the numbers depend on, e.g. `two-way` or `labels=original`.
    """

    name: str
    items: tuple[Item, ...]
    chooses: Literal["captions", "images"] = "captions"
    protocol: str = ""

    def __post_init__(self):
        if not self.items:
            raise LawError(f"{self.name}: no items")
        if self.chooses == "images" and not all(item.pairs for item in self.items):
            raise LawError(
                f"{self.name}: an item has no pair of images for its captions to choose among"
            )
