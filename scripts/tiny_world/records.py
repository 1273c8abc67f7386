"""Images and conversations about them, as training reads them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_world.scenes import Scene, draw, imagine
from tiny_world.texts import ANSWERS, caption, notes, questions, some_questions

INSTRUCTIONS = (
    "<image>\nDescribe the image.",
    "What is in this image?\n<image>",
    "<image>\nWrite a short caption.",
)
MOST_ROUNDS = 4
TEXT_ONLY = 0.06
"""Share of the instructions without an image; LLaVA's mixture has as much."""
Record = dict[str, Any]


def captions(
    images: Path, name: str, count: int, seed: int, held_out: bool = False
) -> list[Record]:
    """`count` images with one caption each; images are written to `images`/`name`."""
    rng = random.Random(f"{seed} {name}")  # noqa: S311

    def record(path: str) -> Record:
        scene = imagine(rng, held_out)
        _save(images / path, scene, rng)
        turns = [rng.choice(INSTRUCTIONS), caption(scene)]
        return {"image": path, "conversations": _alternating(turns)}

    return _numbered(name, count, record)


def instructions(
    images: Path, name: str, count: int, seed: int, held_out: bool = False
) -> list[Record]:
    """`count` conversations of several rounds; a few have their scene in words, and no image."""
    rng = random.Random(f"{seed} {name}")  # noqa: S311

    def record(path: str) -> Record:
        scene = imagine(rng, held_out)
        turns = _talk(scene, rng)
        if rng.random() < TEXT_ONLY:
            turns[0] = f"{notes(scene, rng)}\n{turns[0]}"
            return {"conversations": _alternating(turns)}
        _save(images / path, scene, rng)
        return {"image": path, "conversations": _shown(turns, rng)}

    return _numbered(name, count, record)


def both(
    images: Path, name: str, count: int, seed: int, most_rounds: int = MOST_ROUNDS
) -> tuple[list[Record], list[Record]]:
    """Captions and instructions about the same `count` images, which an encoder sees once."""
    rng = random.Random(f"{seed} {name}")  # noqa: S311
    scenes: dict[str, Scene] = {}

    def told(path: str) -> Record:
        scenes[path] = imagine(rng)
        _save(images / path, scenes[path], rng)
        turns = [rng.choice(INSTRUCTIONS), caption(scenes[path])]
        return {"image": path, "conversations": _alternating(turns)}

    def asked(path: str) -> Record:
        turns = _talk(scenes[path], rng, most_rounds)
        return {"image": path, "conversations": _shown(turns, rng)}

    return _numbered(name, count, told), _numbered(name, count, asked)


def quiz(images: Path, name: str, count: int, seed: int) -> list[Record]:
    """`count` questions, each about a held-out scene of its own, with all possible answers."""
    rng = random.Random(f"{seed} {name}")  # noqa: S311

    def record(path: str) -> Record:
        scene = imagine(rng, held_out=True)
        _save(images / path, scene, rng)
        kind = rng.choice(sorted(ANSWERS))
        question, answer = rng.choice(questions(scene)[kind])
        given = {"question": question, "answer": answer, "choices": ANSWERS[kind]}
        return {"image": path, "type": kind} | given

    return _numbered(name, count, record)


def mismatched(records: list[Record]) -> list[Record]:
    """The same texts, every one with the next record's image."""
    following = [*records[1:], *records[:1]]
    return [one | {"image": other["image"]} for one, other in zip(records, following, strict=True)]


def _talk(scene: Scene, rng: random.Random, most_rounds: int = MOST_ROUNDS) -> list[str]:
    """Questions about a scene with their answers, as turns."""
    asked = some_questions(scene, rng.randint(2, most_rounds), rng)
    return [text for round_ in asked for text in round_]


def _shown(turns: list[str], rng: random.Random) -> list[dict[str, str]]:
    """The conversation with its image before or behind the first question."""
    first = f"<image>\n{turns[0]}" if rng.random() < 0.5 else f"{turns[0]}\n<image>"
    return _alternating([first, *turns[1:]])


def _numbered(name: str, count: int, record: Callable[[str], Record]) -> list[Record]:
    names = [f"{name}/{number:06}" for number in range(count)]
    return [{"id": one} | record(f"{one}.png") for one in names]


def _alternating(turns: list[str]) -> list[dict[str, str]]:
    return [
        {"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(turns)
    ]


def _save(path: Path, scene: Scene, rng: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(scene, rng).save(path)
