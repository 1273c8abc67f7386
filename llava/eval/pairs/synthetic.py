"""`law pairs make-synthetic`: left/right and above/below pairs that any machine makes in seconds.

What is in the pictures says shapes.py. Written below a folder: `pairs.jsonl`, the benchmark, in the
form that readers/grid.py reads; `questions.jsonl`, the same with questions whose answers are left
and right, above and below; `captions.txt`, every caption that there is; and, where training data is
asked for, `train.json` (captions, for stage 1) and `talks.json` (questions, for stage 2), both in
LLaVA's form. Image names in all of them are relative to the folder. The same numbers give the same
bytes. No training picture is one of the benchmark's.
"""

import argparse
import io
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llava.errors import LawError, UsageError
from llava.eval.pairs.flags.vqa import QUESTION
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.shapes import (
    CELL_PX,
    OBJECT_PAIRS,
    RELATIONS,
    SIDE_PX,
    Scene,
    all_captions,
    caption,
)
from llava.files import read_json, write_bytes, write_json, write_text
from llava.log import progress

NAME = "synthetic"
VERSION = 1
"""Goes up when the same numbers give other pictures or texts."""
SAME = ("pairs", "seed", "apart", "version")
"""What makes a folder's pictures another set."""
PAIR_RELATIONS = ("left", "above")
"""Of a pair's first image; the second has the opposite."""


def main(argv: list[str], prog: str = "law pairs make-synthetic") -> None:
    """Makes the folder, and prints the file that `grid` benchmarks name as their `data`."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--n", type=int, default=48, metavar="PAIRS", help="default: 48")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument(
        "--train", type=int, default=0, metavar="IMAGES", help="also training data of so many"
    )
    parser.add_argument(
        "--apart",
        action="store_true",
        help="the two things in opposite halves, so that the place of one says where the other is",
    )
    arguments = parser.parse_args(argv)
    make_synthetic(
        arguments.out, arguments.n, arguments.seed, arguments.train, apart=arguments.apart
    )
    print(arguments.out / "pairs.jsonl")


def make_synthetic(
    out: Path, pairs: int, seed: int, train: int = 0, apart: bool = False
) -> Benchmark:
    """Writes `pairs` pairs, and data of `train` training images, below `out`.

    Things, axes and relations are balanced in every 24 pairs and every 48 training images. With
    `apart` one thing lies in each half of the picture, which is easier: where a thing is, seen from
    the other, follows from its own cell. Raises UsageError for numbers that cannot be meant and
    LawError where `out` holds another such set.
    """
    if pairs < 1 or train < 0 or seed < 0:
        raise UsageError(
            f"{pairs} pairs, {train} training images, seed {seed}; expected a pair or more, and "
            "numbers that are not negative"
        )
    facts = {"version": VERSION, "pairs": pairs, "seed": seed, "train": train, "apart": apart}
    _claim(out, facts)
    tests = list(islice(_balanced(PAIR_RELATIONS, _draws("pairs", seed), apart), pairs))
    items = [_write_pair(out, number, scene) for number, scene in enumerate(tests)]
    _write_lines(out / "pairs.jsonl", [_record(item, out) for item in items])
    questions = [
        _record(item, out) | _question(scene) for item, scene in zip(items, tests, strict=True)
    ]
    _write_lines(out / "questions.jsonl", questions)
    write_text(out / "captions.txt", "".join(f"{text}\n" for text in all_captions()))
    if train:
        seen = {_png(image) for scene in tests for image in (scene, scene.swapped)}
        fresh = (
            scene
            for scene in _balanced(tuple(RELATIONS), _draws("train", seed), apart)
            if _png(scene) not in seen
        )
        _write_training(out, train, fresh)
    return Benchmark(NAME, tuple(items))


def where_question(first: str, relation: str, second: str) -> tuple[str, str]:
    """(question, its answer), e.g. `Where is the red circle, left or right of the ...?`, `Left`."""
    one, other = RELATIONS[relation].axis.split("/")
    last = RELATIONS[other].words.removeprefix("to the ")  # `right of`, `below`
    return f"Where is the {first}, {one} or {last} the {second}?", relation.capitalize()


def _claim(out: Path, facts: dict[str, int]) -> None:
    """Writes what the folder holds before anything else: pictures of two sets never mix.

    More training data of the same seed may follow later: its first pictures are the same.
    """
    path = out / "synthetic.json"
    if path.exists():
        found = read_json(path)
        if any(found.get(key) != facts[key] for key in SAME):
            raise LawError(
                f"{out}: holds a synthetic set of {_told(found)}; asked for {_told(facts)}. Give "
                "another folder, or remove this one"
            )
        facts = facts | {"train": facts["train"] or found.get("train", 0)}
    write_json(path, facts | {"side_px": SIDE_PX, "cell_px": CELL_PX})


def _told(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {facts.get(key)}" for key in SAME)


def _draws(what: str, seed: int) -> random.Random:
    return random.Random(f"{what} {seed}")  # draws of a benchmark, no secret  # noqa: S311


def _balanced(relations: Sequence[str], rng: random.Random, apart: bool) -> Iterator[Scene]:
    """Scenes without end: each pair of things in each relation, in an order drawn anew."""
    kinds = [(one, other, name) for one, other in OBJECT_PAIRS for name in relations]
    while True:
        rng.shuffle(kinds)
        for one, other, name in kinds:
            yield Scene.drawn(rng, one, other, name, apart)


def _write_pair(out: Path, number: int, scene: Scene) -> Item:
    paths = tuple(out / "images" / f"pair_{number:05}_{side}.png" for side in (0, 1))
    for path, one in zip(paths, (scene, scene.swapped), strict=True):
        write_bytes(path, _png(one))
    return Item(
        id=f"pair_{number:05}",
        images=paths,
        captions=(scene.caption, scene.swapped.caption),
        right=(0, 1),
        choices=((0, 1), (0, 1)),
        pairs=((0, 1),),
        axes=(RELATIONS[scene.relation].axis,) * 2,
    )


def _record(item: Item, out: Path) -> dict[str, Any]:
    """One line of a grid file."""
    return {
        "id": item.id,
        "images": [path.relative_to(out).as_posix() for path in item.images],
        "captions": list(item.captions),
        "axis": item.axis(0),
    }


def _question(scene: Scene) -> dict[str, Any]:
    question, answer = where_question(scene.first, scene.relation, scene.second)
    opposite = RELATIONS[scene.relation].opposite.capitalize()
    return {"question": question, "captions": [answer, opposite]}


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def _write_training(out: Path, count: int, scenes: Iterator[Scene]) -> None:
    """One caption per image; and per image a yes, a no, and where the first thing is."""
    captions, talks = [], []
    for number, scene in enumerate(progress(islice(scenes, count), "training images", count)):
        name = f"train_{number:05}"
        image = f"images/{name}.png"
        write_bytes(out / image, _png(scene))
        captions.append(_talk(name, image, "", scene.caption))
        wrong = caption(scene.first, RELATIONS[scene.relation].opposite, scene.second)
        talks += [
            _talk(f"{name}_yes", image, QUESTION.format(scene.caption), "Yes"),
            _talk(f"{name}_no", image, QUESTION.format(wrong), "No"),
            _talk(
                f"{name}_where",
                image,
                *where_question(scene.first, scene.relation, scene.second),
            ),
        ]
    write_json(out / "train.json", captions)
    write_json(out / "talks.json", talks)


def _talk(name: str, image: str, question: str, answer: str) -> dict[str, Any]:
    """A record as LLaVA's training data has them."""
    asked = f"<image>\n{question}" if question else "<image>"
    return {
        "id": name,
        "image": image,
        "conversations": [
            {"from": "human", "value": asked},
            {"from": "gpt", "value": answer},
        ],
    }


def _png(scene: Scene) -> bytes:
    data = io.BytesIO()
    scene.picture().save(data, "PNG")
    return data.getvalue()
