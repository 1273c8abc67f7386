"""Files of pair benchmarks in their published formats, with pictures of one colour."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

WORDS = {
    "left": ("left_of", "to the left of"),
    "right": ("right_of", "to the right of"),
    "on": ("on", "on"),
    "under": ("under", "under"),
    "in-front": ("in-front_of", "in front of"),
    "behind": ("behind", "behind"),
}
A = ("left", "right", "on", "under")
B = ("left", "right", "in-front", "behind")
OBJECTS = (("beer-bottle", "armchair"), ("mug", "coffee-table"), ("one-coco-can", "on-switch"))


def picture(path: Path, number: int = 0) -> None:
    """A file of 24 x 24 pixels whose colour goes by a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (number * 37 % 256, number * 91 % 256, 128)).save(path)


def whatsup(
    folder: Path, name: str, relations: Sequence[str] = A, objects: Sequence = OBJECTS
) -> tuple[Path, Path]:
    """(JSON, folder of images) of a set for every pair of objects; the right caption is first."""
    records = []
    for number, (one, other) in enumerate(objects):
        said = {
            relation: f"A {one.replace('-', ' ')} {WORDS[relation][1]} a {other.replace('-', ' ')}"
            for relation in relations
        }
        for place, relation in enumerate(relations):
            file = f"{one}_{WORDS[relation][0]}_{other}.jpeg"
            picture(folder / name / file, 4 * number + place)
            options = [said[relation], *(said[r] for r in relations if r != relation)]
            records.append({"image_path": f"data/{name}/{file}", "caption_options": options})
    path = folder / f"{name}_dataset.json"
    path.write_text(json.dumps(records))
    return path, folder / name


def table(path: Path, head: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([head, *rows])
    return path


def mmvp_questions(path: Path, pairs: int) -> Path:
    """`Questions.csv` of MMVP's layout; the odd row's answer is (a) in every other pair."""
    rows = []
    for pair in range(pairs):
        question, options = f"Is door {pair} open or closed?", "(a) Open (b) Closed"
        answers = ("(a)", "(b)") if pair % 2 == 0 else ("(b)", "(a)")
        rows += [[2 * pair + 1 + i, question, options, answers[i]] for i in (0, 1)]
    return table(path, ["lndex", "Question", "Options", "Correct Answer"], rows)


def mmvp(folder: Path, pairs: int = 3) -> tuple[Path, Path]:
    """(Questions.csv, folder of images) of MMVP."""
    for number in range(1, 2 * pairs + 1):
        picture(folder / "MMVP Images" / f"{number}.jpg", number)
    return mmvp_questions(folder / "Questions.csv", pairs), folder / "MMVP Images"


def statements(path: Path, pairs: int, types: Sequence[str] = ("Unknown",)) -> Path:
    """`Question ID,Type,Statement`; as many pairs of one type as divide evenly."""
    rows = []
    for pair in range(pairs):
        kind = types[pair * len(types) // pairs]
        rows += [
            [2 * pair + 1 + i, kind, f"door {pair} that is {('open', 'closed')[i]}"] for i in (0, 1)
        ]
    return table(path, ["Question ID", "Type", "Statement"], rows)


TYPES = ("Orientation and Direction", "Color and Appearance")


def mmvp_vlm(folder: Path, pairs: int = 4, types: Sequence[str] = TYPES) -> tuple[Path, Path]:
    """(Questions.csv, folder of images) of MMVP-VLM."""
    for pair in range(pairs):
        for number in (2 * pair + 1, 2 * pair + 2):
            kind = types[pair * len(types) // pairs]
            picture(folder / "MLLM_VLM Images" / kind / f"{number}.jpg", number)
    return statements(folder / "Questions.csv", pairs, types), folder / "MLLM_VLM Images"
