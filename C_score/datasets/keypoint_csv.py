"""A user's own keypoints: one CSV, one row for every keypoint of a pair.

    category,source,target,keypoint,source_x,source_y,target_x,target_y
        [,target_x1,target_y1,target_x2,target_y2]

Images are paths relative to the file, coordinates pixels of the image as stored (an orientation in
its EXIF data is not applied). Rows of one category, source and target make a pair; a point that an
image does not show has both of its cells blank. With the four box columns the threshold is the
longer side of the target's box, without them the whole frame. Images are opened for their size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from C_score.datasets.frame import to_frame
from C_score.datasets.pairs import Album, Category, PairSet, Side, build_category, draw_sample
from C_score.datasets.parsing import Box, check_split, choose, image_size, inside
from C_score.datasets.table import Row, number, read_table
from llava.errors import LawError

SPLIT = "test"
"""A file has one split; it goes by the default's name."""
COLUMNS = (
    *("category", "source", "target", "keypoint"),
    *("source_x", "source_y", "target_x", "target_y"),
)
BOX = ("target_x1", "target_y1", "target_x2", "target_y2")
REMEDY = "docs/correspondence_data.md shows the format"

Point = tuple[float, float]
Size = tuple[int, int]


def read(data: Path, split: str, categories: Sequence[str] | None, sample: int) -> PairSet:
    """The pairs of the file, sorted by category, in the file's order inside of each."""
    check_split(split, [SPLIT])
    if data.is_dir():
        raise LawError(f"{data}: is a folder; expected a CSV file; {REMEDY}")
    header, rows = read_table(data, COLUMNS, BOX, REMEDY)
    boxed = [name for name in BOX if name in header]
    if boxed and len(boxed) < len(BOX):
        missing = [name for name in BOX if name not in header]
        raise LawError(f"{data}, line 1: no column '{missing[0]}'; expected all of {','.join(BOX)}")
    reader = _Reader(data, with_box=bool(boxed))
    for row in rows:
        reader.add(row)
    chosen = choose(sorted({pair.category for pair in reader.pairs}), categories, data)
    read = [reader.category(name, sample) for name in chosen]
    return PairSet(data.stem, SPLIT, tuple(reader.album.pictures), tuple(read))


@dataclass(frozen=True)
class _Pair:
    """What the rows of one pair say: keypoint -> (source, target), None where not visible."""

    category: str
    source: str
    target: str
    line: int
    box: Box | None
    points: dict[str, tuple[Point | None, Point | None]]


class _Reader:
    """Gathers rows into pairs, then pairs into categories."""

    def __init__(self, path: Path, with_box: bool):
        self.path, self.with_box = path, with_box
        self.album = Album()
        self._sizes: dict[str, Size] = {}
        self._pairs: dict[tuple[str, str, str], _Pair] = {}

    @property
    def pairs(self) -> Iterable[_Pair]:
        """In the order of their first rows."""
        return self._pairs.values()

    def add(self, row: Row) -> None:
        """One row of the file."""
        line, cells = row
        where = f"{self.path}, line {line}"
        for name in COLUMNS[:4]:
            if not cells[name]:
                raise LawError(f"{where}: {name} is blank")
        key = cells["category"], cells["source"], cells["target"]
        box = _box(cells, where) if self.with_box else None
        pair = self._pairs.setdefault(key, _Pair(*key, line, box, {}))
        if pair.box != box:
            raise LawError(
                f"{where}: the box is {box}, but {pair.box} on line {pair.line}, of the same pair; "
                "expected one box for all rows of a pair"
            )
        if cells["keypoint"] in pair.points:
            raise LawError(
                f"{where}: keypoint '{cells['keypoint']}' stands there already for this pair, "
                f"which begins on line {pair.line}"
            )
        pair.points[cells["keypoint"]] = tuple(
            _point(cells, side, self._size(cells[side], where), where)
            for side in ("source", "target")
        )

    def category(self, name: str, sample: int) -> Category:
        """The Category of all pairs of that name."""
        pairs = draw_sample([pair for pair in self.pairs if pair.category == name], sample)
        slots = list(dict.fromkeys(keypoint for pair in pairs for keypoint in pair.points))
        names = [_pair_name(pair) for pair in pairs]
        sides = [(self._side(pair, 0, slots), self._side(pair, 1, slots)) for pair in pairs]
        return build_category(name, names, sides, slots, self.album.pictures)

    def _side(self, pair: _Pair, which: int, slots: Sequence[str]) -> Side:
        image = (pair.source, pair.target)[which]
        width, height = self._sizes[image]
        picture = self.album.add(self.path.parent / image, _stem(image), width, height)
        kps = np.zeros((len(slots), 3), np.float32)
        for row, slot in enumerate(slots):
            point = pair.points.get(slot, (None, None))[which]
            if point is not None:
                kps[row] = *point, 1
        return Side(picture, to_frame(kps, width, height), pair.box if which else None)

    def _size(self, image: str, where: str) -> Size:
        if image not in self._sizes:
            parts = inside(image, where)
            self._sizes[image] = image_size(self.path.parent.joinpath(*parts), where)
        return self._sizes[image]


def _pair_name(pair: _Pair) -> str:
    """As SPair-71k writes it, with the pair's first line as number; '/' becomes '--'."""
    images = f"{_stem(pair.source)}-{_stem(pair.target)}".replace("/", "--")
    return f"{pair.line:06d}-{images}:{pair.category}"


def _stem(image: str) -> str:
    return str(Path(image).with_suffix("")) if Path(image).suffix else image


def _point(cells: dict[str, str], side: str, size: Size, where: str) -> Point | None:
    """x, y in pixels, or None where both cells are blank."""
    texts = [cells[f"{side}_{axis}"] for axis in "xy"]
    if not any(texts):
        return None
    values = []
    for axis, text, limit in zip("xy", texts, size, strict=True):
        value = number(text, where, f"{side}_{axis}")
        if not 0 <= value <= limit:
            raise LawError(
                f"{where}: {side}_{axis} is {text}, outside of {cells[side]}, which is {size[0]} x "
                f"{size[1]} pixels; expected 0 to {limit}"
            )
        values.append(value)
    return values[0], values[1]


def _box(cells: dict[str, str], where: str) -> Box:
    x1, y1, x2, y2 = (number(cells[name], where, name) for name in BOX)
    if x2 <= x1 or y2 <= y1:
        raise LawError(
            f"{where}: the target's box {x1:g}, {y1:g}, {x2:g}, {y2:g} has no area; expected "
            "target_x1 < target_x2 and target_y1 < target_y2"
        )
    return x1, y1, x2, y2
