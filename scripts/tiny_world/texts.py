"""What can be said about a scene: a caption, questions with short answers, notes."""

import random

from tiny_world.scenes import COLOURS, PLACES, SHAPES, Scene, Thing

COUNTS = ("zero", "one", "two", "three")
ANSWERS = {
    "background": tuple(sorted(COLOURS)),
    "colour": tuple(sorted(COLOURS)),
    "count": COUNTS[1:],
    "place": PLACES,
    "shape": SHAPES,
}
"""All answers that there are, by what is asked for."""
Question = tuple[str, str]
"""(question, its one right answer)."""


def caption(scene: Scene) -> str:
    """The scene in a sentence, e.g. "a red cross top left, white background"."""
    return ", ".join([*(f"a {_name(thing)}" for thing in scene.things), _background(scene)])


def notes(scene: Scene, rng: random.Random) -> str:
    """The same facts in any order."""
    facts = [*map(_name, scene.things), _background(scene)]
    rng.shuffle(facts)
    return ", ".join(facts)


def questions(scene: Scene) -> dict[str, list[Question]]:
    """Everything that is asked about a scene, by what is asked for."""
    things = scene.things
    return {
        "colour": [(f"What colour is the {thing.shape}?", thing.colour) for thing in things],
        "shape": [(f"What shape is {thing.colour}?", thing.shape) for thing in things],
        "place": [(f"Where is the {thing.shape}?", thing.place) for thing in things],
        "count": [("How many shapes are there?", COUNTS[len(things)])],
        "background": [("What colour is the background?", scene.background)],
    }


def some_questions(scene: Scene, count: int, rng: random.Random) -> list[Question]:
    """`count` questions about a scene, each of another kind."""
    asked = questions(scene)
    return [rng.choice(asked[kind]) for kind in rng.sample(sorted(asked), count)]


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape} {thing.place}"


def _background(scene: Scene) -> str:
    return f"{scene.background} background"
