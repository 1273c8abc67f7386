"""The files of warps-mini: images and annotations under the names and keys of SPair-71k."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from C_score.warps_scenes import PHOTOS
from C_score.warps_views import View

NAME = "warps-mini"
WHAT = (
    "warps-mini tests geometric correspondence, the same scene under another view, "
    "not semantic correspondence between different objects."
)
FOLDERS = ("JPEGImages", "ImageAnnotation", "PairAnnotation", "Layout")
SPLITS = ("trn", "val", "test")
SLOTS = 30
"""Keypoint slots of an image annotation."""
FEWEST = 8
"""Pairs with fewer common points are left out."""
QUALITY = 95
"""Of the JPEG files."""
ZOOM = (1.25, 1.75)
"""Ratio of the two sizes of what a pair shares, from which its scale variation is 1 and 2."""


def write_scene(folder: Path, category: str, views: list[View], first_id: int) -> list[str]:
    """Writes one category; returns the names of its pairs, numbered from `first_id`."""
    for kind in ("JPEGImages", "ImageAnnotation"):
        (folder / kind / category).mkdir(parents=True)
    (folder / "PairAnnotation" / "test").mkdir(parents=True, exist_ok=True)
    for view in views:
        image_name = f"{category}_{view.name}"
        view.image.save(folder / f"JPEGImages/{category}/{image_name}.jpg", quality=QUALITY)
        _write(folder / f"ImageAnnotation/{category}/{image_name}.json", _image(category, view))
    names = []
    for source, target in itertools.permutations(views, 2):
        if np.sum(source.visible & target.visible) >= FEWEST:
            number = first_id + len(names)
            name = f"{number:06d}-{category}_{source.name}-{category}_{target.name}:{category}"
            pair = {"pair_id": number, **_pair(category, source, target)}
            _write(folder / f"PairAnnotation/test/{name}.json", pair)
            names.append(name)
    return names


def write_lists(folder: Path, pairs: list[str], about: dict) -> None:
    """Writes Layout, README.md and warps.json, which holds `about` and the digest of all files."""
    for split in SPLITS:
        (folder / "PairAnnotation" / split).mkdir(parents=True, exist_ok=True)
        for size in ("large", "small"):
            path = folder / "Layout" / size / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}\n" for name in pairs if split == "test"))
    credits = "".join(f"- {photo.name}: {photo.credit}\n" for photo in PHOTOS)
    (folder / "README.md").write_text(
        f"# {NAME}\n\n{WHAT}\nA PCK measured here is no PCK on SPair-71k.\n\n"
        f"{len(pairs)} pairs, all in the split test; trn and val are empty. The layout is that of "
        f"SPair-71k.\nA bounding box is the smallest that holds the points visible in its image.\n"
        f"\nThe photographs are those of scikit-image {about['scikit-image']}:\n\n{credits}",
        encoding="utf-8",
    )
    _write(folder / "warps.json", {**about, "pairs": len(pairs), "digest": digest(folder)})


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file of the set, warps.json and README.md apart."""
    found = hashlib.sha256()
    for path in sorted(path for name in FOLDERS for path in (folder / name).rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _image(category: str, view: View) -> dict:
    width, height = view.image.size
    points = dict(zip(map(str, range(SLOTS)), view.points, strict=False))
    return {
        "filename": f"{category}_{view.name}.jpg",
        "note": WHAT,
        "category": category,
        "image_width": width,
        "image_height": height,
        "image_depth": 3,
        "pose": "Unspecified",
        "azimuth_id": 0,
        "truncated": int(not view.visible.all()),
        "occluded": 0,
        "difficult": 0,
        "bndbox": box(view),
        "kps": {
            str(slot): _xy(points[str(slot)])
            if str(slot) in points and view.visible[slot]
            else None
            for slot in range(SLOTS)
        },
    }


def _pair(category: str, source: View, target: View) -> dict:
    both = np.flatnonzero(source.visible & target.visible)
    sides = [np.ptp(view.points[both], 0).max() / max(view.image.size) for view in (source, target)]
    return {
        "filename": f"{category}_{source.name}-{category}_{target.name}:{category}",
        "note": WHAT,
        "category": category,
        "src_imname": f"{category}_{source.name}.jpg",
        "trg_imname": f"{category}_{target.name}.jpg",
        "src_imsize": [*source.image.size, 3],
        "trg_imsize": [*target.image.size, 3],
        "src_bndbox": box(source),
        "trg_bndbox": box(target),
        "src_pose": "Unspecified",
        "trg_pose": "Unspecified",
        "src_kps": [_xy(point) for point in source.points[both]],
        "trg_kps": [_xy(point) for point in target.points[both]],
        "kps_ids": [str(slot) for slot in both],
        "mirror": 0,
        "viewpoint_variation": max(source.severity, target.severity),
        "scale_variation": int(np.searchsorted(ZOOM, max(sides) / min(sides))),
        "truncation": int(not source.visible.all()) + 2 * int(not target.visible.all()),
        "occlusion": 0,
    }


def box(view: View) -> list[int]:
    """[x1, y1, x2, y2]: the smallest box with whole corners that holds the visible points."""
    points = view.points[view.visible]
    return [
        *np.floor(points.min(0)).astype(int).tolist(),
        *np.ceil(points.max(0)).astype(int).tolist(),
    ]


def _xy(point: np.ndarray) -> list[float]:
    """Thousandths of a pixel are kept."""
    return [round(float(value), 3) for value in point]


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
