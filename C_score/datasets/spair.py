"""SPair-71k (Min et al., 2019), and any set in its layout.

    DIR/JPEGImages/<category>/<image>.jpg         not opened here: sizes stand in the annotations
        ImageAnnotation/<category>/<image>.json   kps: id -> [x, y] or null
        PairAnnotation/{trn,val,test}/<id>-<source>-<target>:<category>.json

A pair's common keypoints are those that both images' annotations show; boxes and sizes are the
pair's own. A set with other categories than SPair-71k's goes by the name of its folder and has no
keypoint groups.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from C_score.datasets.frame import to_frame
from C_score.datasets.groups import groups_of, table_categories, table_row
from C_score.datasets.pairs import Album, Category, PairSet, Side, build_category, draw_sample
from C_score.datasets.parsing import (
    Box,
    Record,
    check_split,
    choose,
    pairs_by_category,
    read_record,
    set_folder,
    subfolders,
)
from llava.errors import LawError
from llava.log import progress

NAME = "spair71k"
SPLITS = ("trn", "val", "test")
REMEDY = "`bash C_score/data/prepare_spair.sh` fetches and checks the set"


def read(data: Path, split: str, categories: Sequence[str] | None, sample: int) -> PairSet:
    """The pairs of one split, sorted by category and file name."""
    check_split(split, SPLITS)
    set_folder(data, "ImageAnnotation", REMEDY)
    found = subfolders(data / "ImageAnnotation")
    folder = data / "PairAnnotation" / split
    names = pairs_by_category(folder, REMEDY)
    strange = sorted(set(names) - set(found))
    if strange:
        raise LawError(
            f"{folder}: has pairs of '{strange[0]}', of which {data / 'ImageAnnotation'} has no "
            f"folder; {REMEDY}"
        )
    chosen = choose(found, categories, data / "ImageAnnotation")
    for category in chosen:
        if category not in names:
            raise LawError(
                f"{folder}: no pair of category '{category}', which "
                f"{data / 'ImageAnnotation' / category} announces; expected files "
                f"*:{category}.json; {REMEDY}, or leave the category out by naming the others"
            )
    name = _set_name(data, found)
    album = Album()
    reader = _Reader(data, folder, name, album)
    todo = [(category, draw_sample(names[category], sample)) for category in chosen]
    read = [reader.category(*item) for item in progress(todo, f"reading {name} {split}")]
    return PairSet(name, split, tuple(album.pictures), tuple(read))


def _set_name(data: Path, categories: Sequence[str]) -> str:
    if set(categories) <= set(table_categories(NAME)):
        return NAME
    folder = data.resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("-") or "own"


class _Reader:
    """Reads categories; an image's annotation is opened once, however many pairs show it."""

    def __init__(self, data: Path, folder: Path, name: str, album: Album):
        self.data, self.folder, self.name, self.album = data, folder, name, album

    def category(self, category: str, pairs: Sequence[str]) -> Category:
        """All of `pairs`, which are file stems."""
        annotations: dict[str, dict[int, Sequence[float]]] = {}
        records = [read_record(self.folder / f"{pair}.json", REMEDY) for pair in pairs]
        for record in records:
            if record.text("category", f"'{category}'") != category:
                raise record.wrong("category", f"'{category}', as in the file's name")
            for image in (_image_name(record, "src"), _image_name(record, "trg")):
                if image not in annotations:
                    annotations[image] = self._keypoints(category, Path(image).stem)
        slots = sorted({slot for kps in annotations.values() for slot in kps})
        tables = {image: _array(kps, slots) for image, kps in annotations.items()}
        framed: dict[int, np.ndarray] = {}
        sides = [
            (
                self._side(record, "src", category, tables, framed),
                self._side(record, "trg", category, tables, framed),
            )
            for record in records
        ]
        return build_category(
            category,
            pairs,
            sides,
            slots,
            self.album.pictures,
            groups_of(table_row(self.name, "geo_aware", category)),
            groups_of(table_row(self.name, "flip", category)),
        )

    def _side(self, record: Record, side: str, category: str, tables: dict, framed: dict) -> Side:
        image = _image_name(record, side)
        size = record.values.get(f"{side}_imsize")
        if not isinstance(size, list) or len(size) not in (2, 3):
            raise record.wrong(f"{side}_imsize", "[width, height, channels]")
        width, height = (record.side(f"{side}_imsize", value) for value in size[:2])
        path = self.data / "JPEGImages" / category / image
        picture = self.album.add(path, f"{category}/{path.stem}", width, height)
        if picture not in framed:
            framed[picture] = to_frame(tables[image], width, height)
        return Side(picture, framed[picture], _box(record, f"{side}_bndbox"))

    def _keypoints(self, category: str, stem: str) -> dict[int, Sequence[float] | None]:
        """id -> [x, y] in pixels, or None where the image does not show the point."""
        path = self.data / "ImageAnnotation" / category / f"{stem}.json"
        record = read_record(path, REMEDY)
        expected = 'id -> [x, y] or null, as in {"0": [12, 40], "1": null}'
        kps = record.values.get("kps")
        if not isinstance(kps, dict):
            raise record.wrong("kps", expected)
        points = Record(path, kps, REMEDY)
        for key, point in kps.items():
            if not key.isdecimal() or not key.isascii():
                raise points.wrong(key, "only whole numbers as keypoint ids in 'kps'")
            if point is not None:
                points.numbers(key, 2, f"[x, y] in pixels or null for keypoint {key}")
        return {int(key): point for key, point in kps.items()}


def _image_name(record: Record, side: str) -> str:
    name = record.text(f"{side}_imname", "the name of an image file")
    if "/" in name or "\\" in name or name.startswith(".") or not Path(name).suffix:
        raise record.wrong(f"{side}_imname", "a file name such as 2008_000045.jpg, no folders")
    return name


def _box(record: Record, key: str) -> Box:
    x1, y1, x2, y2 = record.numbers(key, 4, "four numbers x1, y1, x2, y2 in pixels")
    if x2 <= x1 or y2 <= y1:
        raise record.wrong(key, "a box with an area: x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def _array(kps: dict[int, Sequence[float] | None], slots: Sequence[int]) -> np.ndarray:
    """float32 [S, 3] x, y in pixels, v; zeros for a slot that `kps` lacks or has as None."""
    found = np.zeros((len(slots), 3), np.float32)
    for row, slot in enumerate(slots):
        point = kps.get(slot)
        if point is not None:
            found[row] = *point, 1
    return found
