"""Makes AP-10K's pairs: COCO files in, one annotation per image and one file per pair out.

    python -m C_score.datasets.prepare_ap10k DIR [--crowd FILE]

DIR is the unpacked ap-10k: annotations/ap10k-{train,val,test}-split1.json and data/<12 digits>.jpg.
Images go to JPEGImages/<family>/<species>/ as hard links (copies where links cannot be had).

The rules of splits and pairs stand in ap10k_pairs.py. They are GeoAware-SC's, but there the order
of a folder listing decides which images and pairs are taken; here every machine makes the same
files. So they are not those that the published numbers used, which no two machines share either.

An image of several animals is left out: its keypoints belong to one of them, and a match on another
would count as wrong. `--crowd` leaves out the images of a list besides (GeoAware-SC's
ap-10k_is_crowd.txt: one image number a line). `ap10k_prepared.json` records what was done.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from C_score.datasets.ap10k import KEYPOINTS, REMEDY, SPLITS
from C_score.datasets.ap10k_pairs import MIN_COMMON, SEED, Animal, draw_pairs
from C_score.datasets.parsing import Record, read_record
from llava.errors import LawError
from llava.files import write_json
from llava.log import get_logger, progress

logger = get_logger("ap10k")

SOURCES = tuple(f"annotations/ap10k-{part}-split1.json" for part in ("train", "val", "test"))
RECORD = "ap10k_prepared.json"
MADE = ("JPEGImages", "ImageAnnotation", "PairAnnotation")


def prepare(folder: Path, crowd: Path | None = None) -> dict[str, int]:
    """Pairs per split; does nothing where `folder` is prepared already.

    What is made is made aside and moved into place when it is whole; a killed run is taken up.
    """
    aside = folder / ".prepare.partial"
    if not (folder / RECORD).exists():
        foreign = [name for name in MADE if (folder / name).exists()]
        if not (aside / RECORD).exists():
            if foreign:
                raise LawError(
                    f"{folder / foreign[0]}: is there already and was not made by this command; "
                    "it can be scored as it is, or move it away and call again"
                )
            _make(folder, aside, crowd)
        for name in (*MADE, RECORD):
            if (aside / name).exists():
                (aside / name).replace(folder / name)
    shutil.rmtree(aside, ignore_errors=True)
    return read_record(folder / RECORD, REMEDY).values["pairs"]


def _make(folder: Path, aside: Path, crowd: Path | None) -> None:
    animals, left_out = read_animals(folder, _crowd_list(crowd))
    if not animals:
        raise LawError(f"{folder}: no image shows {MIN_COMMON} or more keypoints; {REMEDY}")
    shutil.rmtree(aside, ignore_errors=True)
    for animal in progress(animals, "images"):
        _place(folder / "data" / f"{animal.image}.jpg", aside / f"JPEGImages/{animal.below}.jpg")
        _write_json(aside / f"ImageAnnotation/{animal.below}.json", animal.record)
    counts = dict.fromkeys(SPLITS, 0)
    for split, category, source, target in progress(draw_pairs(animals), "pairs"):
        _write_json(
            aside / f"PairAnnotation/{split}/{source.image}-{target.image}:{category}.json",
            {
                "src_json_path": f"ImageAnnotation/{source.below}.json",
                "trg_json_path": f"ImageAnnotation/{target.below}.json",
            },
        )
        counts[split] += 1
    write_json(  # last, and whole or not at all: it says that the rest is complete
        aside / RECORD,
        {"seed": SEED, "images": len(animals), "pairs": counts, "left_out": left_out},
    )


def read_animals(folder: Path, crowd: set[int]) -> tuple[list[Animal], dict[str, str]]:
    """(animals sorted by place, image file -> why it is left out)."""
    images, kinds, by_image = {}, {}, defaultdict(list)
    for name in SOURCES:
        coco = read_record(folder / name, REMEDY)
        for image in _entries(coco, "images", "id", "file_name", "width", "height"):
            images[image.values["id"]] = image
        for kind in _entries(coco, "categories", "id", "name", "supercategory"):
            kinds[kind.values["id"]] = kind
        for animal in _entries(coco, "annotations", "image_id", "category_id", "keypoints", "bbox"):
            by_image[animal.values["image_id"]].append(animal)
    found, left_out = [], {}
    for key in sorted(images):
        image, animals = images[key], by_image[key]
        why = _unfit(animals, key in crowd)
        if why:
            left_out[str(image.values["file_name"])] = why
        else:
            found.append(_animal(animals[0], image, kinds))
    found.sort(key=lambda animal: animal.below)
    for one, other in itertools.pairwise(found):
        if one.below == other.below:
            raise LawError(f"{folder}: two images are called {one.below}.jpg; {REMEDY}")
    return found, left_out


def _unfit(animals: Sequence[Record], in_list: bool) -> str | None:
    """Why an image with these annotations is left out; None where it is not."""
    if len(animals) != 1:
        return f"{len(animals)} animals"
    if in_list or animals[0].values.get("iscrowd"):
        return "crowd"
    *_, w, h = animals[0].numbers("bbox", 4, "four numbers x, y, width, height in pixels")
    if w <= 0 or h <= 0:
        return "a box without area"
    shown = _visible(animals[0]).bit_count()
    return None if shown >= MIN_COMMON else f"{shown} keypoints"


def _animal(record: Record, image: Record, kinds: dict[int, Record]) -> Animal:
    key = record.values["category_id"]
    if key not in kinds:
        raise record.wrong("category_id", "the id of one of the file's categories")
    family, species = (kinds[key].text(name, "a name") for name in ("supercategory", "name"))
    file = image.text("file_name", "a name such as 000000000001.jpg")
    for part in (family, species, file):
        if "/" in part or "\\" in part or part.startswith("."):
            raise LawError(f"{image.path}: {part!r} is no plain name; {REMEDY}")
    stem = Path(file).stem
    return Animal(
        stem,
        family,
        species,
        _visible(record),
        {
            "image": stem,
            "name": species,
            "supercategory": family,
            "width": image.side("width", image.values["width"]),
            "height": image.side("height", image.values["height"]),
            "bbox": record.values["bbox"],
            "keypoints": record.values["keypoints"],
            "num_keypoints": _visible(record).bit_count(),
        },
    )


def _visible(record: Record) -> int:
    """Bit i is set where keypoint i shows."""
    expected = f"{KEYPOINTS} times x, y, v"
    flat = record.numbers("keypoints", 3 * KEYPOINTS, expected)
    return sum(1 << i for i, v in enumerate(flat[2::3]) if v > 0)


def _entries(coco: Record, key: str, *needed: str) -> Iterator[Record]:
    """The objects of the list `key`, each with the keys `needed`."""
    value = coco.values.get(key)
    if not isinstance(value, list):
        raise coco.wrong(key, "a list, as in COCO's keypoint files")
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise LawError(f"{coco.path}: {key}[{i}] is no object; {REMEDY}")
        record = Record(coco.path, entry, f"{REMEDY} ({key}[{i}])")
        for name in needed:
            if name not in entry or (name.endswith("id") and type(entry[name]) is not int):
                raise record.wrong(name, f"it in every entry of '{key}', ids as whole numbers")
        yield record


def _crowd_list(path: Path | None) -> set[int]:
    """Image numbers of a list, one a line."""
    if path is None:
        return set()
    try:
        lines = path.read_text(encoding="utf-8").split()
        return {int(line.removesuffix(".jpg").removesuffix(".json")) for line in lines}
    except (OSError, ValueError) as error:
        raise LawError(f"{path}: expected a list of image numbers, one a line: {error}") from error


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise LawError(f"{source}: no such image, but the annotations name it; {REMEDY}") from None
    except OSError:  # another device, or a file system without links
        shutil.copy2(source, target)


def _write_json(path: Path, value: dict) -> None:
    """Plain write: the folder it stands in is moved into place when everything is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m C_score.datasets.prepare_ap10k")
    parser.add_argument("folder", type=Path, help="the unpacked ap-10k")
    parser.add_argument("--crowd", type=Path, help="list of image numbers to leave out")
    arguments = parser.parse_args(argv)
    try:
        pairs = prepare(arguments.folder, arguments.crowd)
    except LawError as error:
        logger.error("%s", error)
        return error.exit_code
    except OSError as error:
        logger.error("%s: cannot be written: %s", error.filename, error.strerror)
        return 1
    logger.info("%s: pairs %s", arguments.folder, ", ".join(f"{k} {n}" for k, n in pairs.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
