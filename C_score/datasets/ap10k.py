"""AP-10K (Yu et al., 2021) with the pairs of GeoAware-SC's layout, from prepare_ap10k.sh.

    DIR/JPEGImages/<family>/<species>/<image>.jpg
        ImageAnnotation/<family>/<species>/<image>.json   bbox x, y, w, h; keypoints 17 x (x, y, v)
        PairAnnotation/<split>/<source>-<target>:<category>.json

The category is a species; a family in the splits `*_cross_species`, `all` in `*_cross_family`.
A category without pairs in a split is one with too few images for it, and no error. A point that is
labelled but hidden (v = 1) counts as visible, like one that shows (v = 2); the reference halves its
coordinates.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from C_score.datasets.frame import to_frame
from C_score.datasets.groups import groups_of, table_row
from C_score.datasets.pairs import Album, PairSet, Side, build_category, draw_sample
from C_score.datasets.parsing import (
    Record,
    check_split,
    choose,
    inside,
    pairs_by_category,
    read_record,
    set_folder,
)
from llava.log import progress

NAME = "ap10k"
SPLITS = (
    "trn",
    "val",
    "test",
    "val_cross_species",
    "test_cross_species",
    "val_cross_family",
    "test_cross_family",
)
KEYPOINTS = 17
"""AP-10K's skeleton: eyes, nose, neck, root of tail, and three points of each leg."""
REMEDY = "`bash C_score/data/prepare_ap10k.sh` unpacks the set and makes its pairs"


def read(data: Path, split: str, categories: Sequence[str] | None, sample: int) -> PairSet:
    """The pairs of one split, sorted by category and file name."""
    check_split(split, SPLITS)
    set_folder(data, "ImageAnnotation", REMEDY)
    folder = data / "PairAnnotation" / split
    names = pairs_by_category(folder, REMEDY)
    chosen = choose(sorted(names), categories, folder)
    images = _Images(data)
    read = []
    for category in progress(chosen, f"reading {NAME} {split}"):
        pairs = draw_sample(names[category], sample)
        records = [read_record(folder / f"{pair}.json", REMEDY) for pair in pairs]
        sides = [
            (images.side(r, "src_json_path"), images.side(r, "trg_json_path")) for r in records
        ]
        geo, flip = (groups_of(table_row(NAME, kind, category)) for kind in ("geo_aware", "flip"))
        slots = range(KEYPOINTS)
        read.append(build_category(category, pairs, sides, slots, images.album.pictures, geo, flip))
    return PairSet(NAME, split, tuple(images.album.pictures), tuple(read))


class _Images:
    """Image annotations of one set, each opened once."""

    def __init__(self, data: Path):
        self.data = data
        self.album = Album()
        self._sides: dict[tuple[str, ...], Side] = {}

    def side(self, record: Record, key: str) -> Side:
        """The image that `key` of a pair's record names."""
        parts = _below_annotations(record, key)
        if parts not in self._sides:
            self._sides[parts] = self._read(parts)
        return self._sides[parts]

    def _read(self, parts: tuple[str, ...]) -> Side:
        record = read_record(self.data.joinpath("ImageAnnotation", *parts), REMEDY)
        width, height = (record.side(key, record.values.get(key)) for key in ("width", "height"))
        x, y, w, h = record.numbers("bbox", 4, "four numbers x, y, width, height in pixels")
        if w <= 0 or h <= 0:
            raise record.wrong("bbox", "a box with an area: width and height above 0")
        name = "/".join(parts).removesuffix(".json")
        path = self.data.joinpath("JPEGImages", *parts).with_suffix(".jpg")
        picture = self.album.add(path, name, width, height)
        return Side(picture, to_frame(_keypoints(record), width, height), (x, y, x + w, y + h))


def _below_annotations(record: Record, key: str) -> tuple[str, ...]:
    """The parts of the path below ImageAnnotation; what stands before was the maker's folder."""
    path = record.text(key, "the path of an image's annotation")
    _, found, below = path.rpartition("ImageAnnotation/")
    if not found or not below.endswith(".json"):
        raise record.wrong(key, "a path .../ImageAnnotation/<family>/<species>/<image>.json")
    return inside(below, f"{record.path}: '{key}'")


def _keypoints(record: Record) -> np.ndarray:
    """float32 [17, 3] x, y in pixels, v in {0, 1}."""
    expected = f"{KEYPOINTS} times x, y, v with v 0 (not labelled), 1 (hidden) or 2 (visible)"
    flat = record.numbers("keypoints", 3 * KEYPOINTS, expected)
    kps = np.array(flat, np.float32).reshape(KEYPOINTS, 3)
    if not np.isin(kps[:, 2], (0, 1, 2)).all():
        raise record.wrong("keypoints", expected)
    kps[:, 2] = kps[:, 2] > 0
    return kps
