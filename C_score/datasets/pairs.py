"""What every reader gives and every score takes: pairs of pictures with their keypoints."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from C_score.datasets.frame import ANNO, frame_scale
from llava.errors import LawError

ALPHAS = (0.10, 0.05, 0.01)
"""PCK thresholds as fractions of the threshold side (reference, all sets but PF-Pascal)."""

SAMPLE_SEED = 42
"""The reference's seed of TEST_SAMPLE, set anew for every category."""


@dataclass(frozen=True)
class Picture:
    """An image of the set; the file itself is not opened to score stored features."""

    path: Path
    name: str
    """Relative to the images' root, '/' between folders, no suffix: its feature file's name."""
    width: int
    """Pixels, of the image as stored."""
    height: int


@dataclass(frozen=True)
class Category:
    """The P pairs of one category, and the K keypoints that any of their images shows.

    Attributes:
        name: as the set writes it.
        pairs: P names, unique unless `sample` drew a pair twice.
        source: int64 [P], index into PairSet.pictures.
        target: int64 [P].
        slots: K keypoint ids of the set, in the order of the columns below; K can be 0.
        source_kps: float32 [P, K, 3] x, y in the 840 frame, v in {0, 1}; zeros where v is 0.
        target_kps: float32 [P, K, 3].
        threshold_px: float64 [P], the side that alpha multiplies, in the frame: the longer side of
            the target's box, or ANNO where the set has no boxes.
        groups: ids (not columns) that are interchangeable in meaning, 2 or more in a group.
        flip_groups: ids that change places when the image is mirrored, 2 or more in a group.
        source_box: float32 [P, 4] x1, y1, x2, y2 in image pixels; None where the set has none.
        target_box: float32 [P, 4].
    """

    name: str
    pairs: tuple[str, ...]
    source: np.ndarray
    target: np.ndarray
    slots: tuple[int | str, ...]
    source_kps: np.ndarray
    target_kps: np.ndarray
    threshold_px: np.ndarray
    groups: tuple[tuple[int, ...], ...] = ()
    flip_groups: tuple[tuple[int, ...], ...] = ()
    source_box: np.ndarray | None = None
    target_box: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class PairSet:
    """One split of one set."""

    name: str
    """`spair71k`, `pfpascal`, `ap10k`, or what a user's own set is called."""
    split: str
    pictures: tuple[Picture, ...]
    categories: tuple[Category, ...]
    alphas: tuple[float, ...] = ALPHAS
    skipped: dict[str, str] = field(default_factory=dict)
    """Pairs left out while reading -> why."""

    def __len__(self) -> int:
        return sum(map(len, self.categories))

    def missing_images(self) -> list[Path]:
        """The images that are not there: features can be scored without, not extracted or drawn."""
        return [picture.path for picture in self.pictures if not picture.path.is_file()]


class Album:
    """Pictures by name, in the order in which they were first met."""

    def __init__(self):
        self.pictures: list[Picture] = []
        self._index: dict[str, int] = {}

    def add(self, path: Path, name: str, width: int, height: int) -> int:
        """Index of the picture; LawError where it was met with another size or another file."""
        picture = Picture(path, name, width, height)
        index = self._index.setdefault(name, len(self.pictures))
        if index == len(self.pictures):
            self.pictures.append(picture)
        elif self.pictures[index] != picture:
            raise _conflict(self.pictures[index], picture)
        return index


def _conflict(old: Picture, new: Picture) -> LawError:
    if old.path != new.path:
        return LawError(
            f"{new.path}: its features would have the same file as those of {old.path}, since "
            "names count without suffix; rename one of the images"
        )
    return LawError(
        f"{new.path}: is {old.width} x {old.height} pixels in one annotation and {new.width} x "
        f"{new.height} in another; expected one size"
    )


@dataclass(frozen=True)
class Side:
    """One image of a pair: index of its picture, keypoints (float32 [S, 3], frame), its box."""

    picture: int
    kps: np.ndarray
    box: Sequence[float] | None = None


def build_category(
    name: str,
    pairs: Sequence[str],
    sides: Sequence[tuple[Side, Side]],
    slots: Sequence[int | str],
    pictures: Sequence[Picture],
    groups: tuple[tuple[int, ...], ...] = (),
    flip_groups: tuple[tuple[int, ...], ...] = (),
) -> Category:
    """A Category of `pairs` with the (source, target) of each; S `slots` name the rows of `kps`.

    Slots that no image of any of the pairs shows are left out.
    """
    source, target = zip(*sides, strict=True)
    source_kps = np.stack([side.kps for side in source])
    target_kps = np.stack([side.kps for side in target])
    used = np.flatnonzero((source_kps[..., 2] > 0).any(0) | (target_kps[..., 2] > 0).any(0))
    return Category(
        name=name,
        pairs=tuple(pairs),
        source=np.array([side.picture for side in source], np.int64),
        target=np.array([side.picture for side in target], np.int64),
        slots=tuple(slots[i] for i in used),
        source_kps=source_kps[:, used],
        target_kps=target_kps[:, used],
        threshold_px=np.array([_threshold(side, pictures) for side in target], np.float64),
        groups=groups,
        flip_groups=flip_groups,
        source_box=_boxes(source),
        target_box=_boxes(target),
    )


def _threshold(side: Side, pictures: Sequence[Picture]) -> float:
    if side.box is None:
        return float(ANNO)
    x1, y1, x2, y2 = side.box
    picture = pictures[side.picture]
    return max(y2 - y1, x2 - x1) * frame_scale(picture.width, picture.height)


def _boxes(sides: Sequence[Side]) -> np.ndarray | None:
    if any(side.box is None for side in sides):
        return None
    return np.array([side.box for side in sides], np.float32)


def draw_sample(items: Sequence, k: int) -> list:
    """All of `items`, or `k` > 0 of them WITH replacement, the reference's TEST_SAMPLE.

    The generator is NumPy's old one with seed 42, anew at every call, so that the pairs are the
    reference's own.
    """
    if not k:
        return list(items)
    chosen = np.random.RandomState(SAMPLE_SEED).choice(len(items), k)
    return [items[i] for i in chosen]
