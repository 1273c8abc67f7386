"""Stories about two coloured shapes, for a language model that has read and seen nothing.

The scenes are those of `law pairs make-synthetic --apart`. They are told as an image could be: for
every cell the sum of some words' embeddings, what is in it and in which half of the picture it
lies. Nothing says which thing is left of which: that is to be read off a thing's own cell.
"""

import random
from collections.abc import Callable, Iterator

from llava.eval.pairs.shapes import CELLS, OBJECT_PAIRS, RELATIONS, Scene, all_captions, caption
from tiny_world.language_model import FORGOTTEN, Story

DESCRIBE = "Describe the figure."
"""What stage 2 asks."""
GROUND = "figure"
"""What is told of an empty cell; any word that is no shape's would do."""


def imagine_story(read: Callable[[str], list[int]], rng: random.Random) -> Story:
    """A scene, and what is true of it seen from either thing; `read` gives a text's ids."""
    first, second = rng.choice(OBJECT_PAIRS)
    scene = Scene.drawn(rng, first, second, rng.choice(list(RELATIONS)), apart=True)
    told = [
        [token for word in cell if rng.random() > FORGOTTEN for token in read(word)]
        for cell in _cells(scene)
    ]
    other_way = caption(second, RELATIONS[scene.relation].opposite, first)
    return Story(told, read(f"{scene.caption}\n") + read(f"{other_way}\n"))


def lines() -> list[str]:
    """Every text that there is about such scenes, for a tokenizer to learn from."""
    return [f"{DESCRIBE} {text}" for text in all_captions()] + all_captions()


def _cells(scene: Scene) -> Iterator[list[str]]:
    """What is in every cell of the picture, row by row, and where it lies."""
    names = dict(zip(scene.cells, (scene.first, scene.second), strict=True))
    for number in range(CELLS * CELLS):
        column, row = number % CELLS, number // CELLS
        across = "left" if 2 * column < CELLS else "right"
        down = "above" if 2 * row < CELLS else "below"
        yield [*names.get((column, row), GROUND).split(), across, down]
