"""PF-Pascal (Ham et al., 2017) with the pair lists of cnngeometric (Rocco et al., 2017).

    DIR/JPEGImages/<image>.jpg                    opened for their size
        Annotations/<category>/<image>.mat        read for the split trn only
        {train,val,test}_pairs_pf_pascal.csv      source_image, target_image, class, XA, YA, XB, YB

There are no boxes: thresholds are fractions of the whole frame. The lists of val and test hold only
points that both images show, so a keypoint's id is its place in the pair's list and means nothing
across pairs; there are no keypoint groups.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from C_score.datasets.frame import to_frame
from C_score.datasets.pairs import Album, Category, PairSet, Side, build_category, draw_sample
from C_score.datasets.parsing import check_split, choose, image_size, inside, set_folder
from C_score.datasets.table import Row, number, read_table
from llava.errors import LawError
from llava.log import progress

NAME = "pfpascal"
FILES = {"trn": "train", "val": "val", "test": "test"}
ALPHAS = (0.10, 0.05, 0.15)
"""The reference's; its logs call the third one 0.01."""
CATEGORIES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
]
"""PASCAL VOC's 20 classes; the column `class` counts them from 1."""
REMEDY = "`bash C_score/data/prepare_pfpascal.sh` fetches and checks the set"


def read(data: Path, split: str, categories: Sequence[str] | None, sample: int) -> PairSet:
    """The pairs of one split, sorted by category, in the file's order inside of each."""
    check_split(split, list(FILES))
    set_folder(data, "JPEGImages", REMEDY)
    path = data / f"{FILES[split]}_pairs_pf_pascal.csv"
    rows = _rows(path, with_points=split != "trn")
    found = [category for category in CATEGORIES if category in rows]
    reader = _Reader(data, path, split)
    read = []
    for category in progress(choose(found, categories, path), f"reading {NAME} {split}"):
        chosen = draw_sample(rows[category], sample)
        read.append(reader.category(category, chosen))
    return PairSet(NAME, split, tuple(reader.album.pictures), tuple(read), ALPHAS)


class _Reader:
    """Reads categories of one pair list."""

    def __init__(self, data: Path, path: Path, split: str):
        self.data, self.path, self.split = data, path, split
        self.album = Album()
        self._sizes: dict[Path, tuple[int, int]] = {}

    def category(self, category: str, rows: Sequence[Row]) -> Category:
        """All of `rows`."""
        points = [
            (self._points(category, row, "A"), self._points(category, row, "B")) for row in rows
        ]
        slots = max((len(kps) for pair in points for kps in pair), default=0)
        pairs, sides = [], []
        for (line, cells), kps in zip(rows, points, strict=True):
            names = [_below_images(cells[key], self._where(line)) for key in _IMAGES]
            pairs.append(f"{line:06d}-{'-'.join(Path(n[-1]).stem for n in names)}:{category}")
            sides.append(
                tuple(self._side(n, k, slots, line) for n, k in zip(names, kps, strict=True))
            )
        return build_category(category, pairs, sides, range(slots), self.album.pictures)

    def _side(self, parts: tuple[str, ...], kps: np.ndarray, slots: int, line: int) -> Side:
        path = self.data.joinpath("JPEGImages", *parts)
        if path not in self._sizes:
            self._sizes[path] = image_size(path, self._where(line))
        name = "/".join(parts).removesuffix(path.suffix)
        picture = self.album.add(path, name, *self._sizes[path])
        padded = np.zeros((slots, 3), np.float32)
        padded[: len(kps)] = kps
        return Side(picture, to_frame(padded, *self._sizes[path]))

    def _points(self, category: str, row: Row, side: str) -> np.ndarray:
        """float32 [S, 3] x, y in pixels, v of image A (source) or B (target)."""
        line, cells = row
        if self.split == "trn":
            image = cells[_IMAGES["AB".index(side)]]
            stem = Path(_below_images(image, self._where(line))[-1]).stem
            return _mat_points(self.data / "Annotations" / category / f"{stem}.mat")
        lists = {column: self._list(line, column, cells) for column in _POINTS}
        if len({len(values) for values in lists.values()}) > 1:
            counts = ", ".join(f"{column} {len(values)}" for column, values in lists.items())
            raise LawError(
                f"{self._where(line)}: lists of different lengths ({counts}); expected one x and "
                "one y of every point in both images"
            )
        x, y = lists[f"X{side}"], lists[f"Y{side}"]
        return np.array([x, y, [1.0] * len(x)], np.float32).T

    def _list(self, line: int, column: str, cells: dict[str, str]) -> list[float]:
        texts = cells[column].strip(";")
        where = self._where(line)
        return [number(text, where, column) for text in texts.split(";")] if texts else []

    def _where(self, line: int) -> str:
        return f"{self.path}, line {line}"


_IMAGES = ("source_image", "target_image")
_POINTS = ("XA", "YA", "XB", "YB")


def _rows(path: Path, with_points: bool) -> dict[str, list[Row]]:
    """category -> its rows."""
    needed = [*_IMAGES, "class", *(_POINTS if with_points else ())]
    found: dict[str, list[Row]] = {}
    for line, cells in read_table(path, needed, None, REMEDY)[1]:
        category = _category(cells["class"], f"{path}, line {line}")
        found.setdefault(category, []).append((line, cells))
    return found


def _category(text: str, where: str) -> str:
    try:
        place = float(text)
    except ValueError:
        place = math.nan
    if not (place.is_integer() and 1 <= place <= len(CATEGORIES)):
        raise LawError(f"{where}: class is {text!r}; expected 1 to {len(CATEGORIES)}")
    return CATEGORIES[int(place) - 1]


def _below_images(name: str, where: str) -> tuple[str, ...]:
    """The parts of an image's name below JPEGImages; what stands before is the set's own folder."""
    _, found, below = name.rpartition("JPEGImages/")
    if not found or not Path(below).suffix:
        raise LawError(
            f"{where}: image is {name!r}; expected PF-dataset-PASCAL/JPEGImages/<image>.jpg"
        )
    return inside(below, where)


def _mat_points(path: Path) -> np.ndarray:
    """float32 [S, 3] x, y in pixels, v, from the matrix `kps` [S, 2]; NaN where not visible."""
    import scipy.io

    try:
        with open(path, "rb") as handle:
            kps = scipy.io.loadmat(handle, variable_names=["kps"])["kps"].astype(np.float64)
    except FileNotFoundError:
        raise LawError(f"{path}: no such file; {REMEDY}") from None
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise LawError(f"{path}: no matrix `kps` can be read: {error!r}; {REMEDY}") from error
    if kps.ndim != 2 or kps.shape[1] != 2 or np.isinf(kps).any():
        raise LawError(f"{path}: `kps` has shape {kps.shape}; expected S x 2, x and y or NaN")
    visible = ~np.isnan(kps).any(1)
    return np.column_stack([np.where(visible[:, None], kps, 0), visible]).astype(np.float32)
