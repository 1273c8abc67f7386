"""Pairs of scenes with the spots that correspond: a CSV of keypoints, as the C score reads it.

A shape of one scene is looked for in another that has the same shape in another quarter and of
another size. The spots are its middle and its corners or ends, which the drawing knows exactly.
"""

import csv
import io
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.files import write_text
from tiny_world.scenes import SHAPES, SIDE, Drawn, Scene, Thing, corner, imagine, paint

SMALLEST, LARGEST = SIDE // 8, SIDE // 4 - 1
"""Half the width of a shape, pixels."""
COLUMNS = ("category", "source", "target", "keypoint")
PLACES = ("source_x", "source_y", "target_x", "target_y")


@dataclass(frozen=True)
class View:
    """An image of a held-out scene: its path, and its shapes by their kind."""

    path: str
    shapes: dict[str, Drawn]


def save_correspondence(folder: Path, images: int, pairs: int, seed: int) -> Path:
    """Writes `images` images and `folder`/pairs.csv with `pairs` pairs of each kind of shape."""
    rng = random.Random(f"{seed} correspondence")  # noqa: S311
    views = [_view(folder, f"images/{number:04}.png", rng) for number in range(images)]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*COLUMNS, *PLACES])
    for kind in SHAPES:
        for source, target in rng.sample(list(_fitting(views, kind)), pairs):
            there = target.shapes[kind].points
            for name, point in source.shapes[kind].points.items():
                writer.writerow([kind, source.path, target.path, name, *point, *there[name]])
    path = folder / "pairs.csv"
    write_text(path, lines.getvalue())
    return path


def _view(folder: Path, path: str, rng: random.Random) -> View:
    scene: Scene = imagine(rng, held_out=True)
    drawn = [_anywhere(thing, rng) for thing in scene.things]
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    paint(scene.background, drawn).save(folder / path)
    return View(path, {one.thing.shape: one for one in drawn})


def _anywhere(thing: Thing, rng: random.Random) -> Drawn:
    """Of any size, wherever it fits into its quarter."""
    left, top = corner(thing.place)
    radius = rng.randint(SMALLEST, LARGEST)
    x, y = (edge + rng.randint(radius, SIDE // 2 - 1 - radius) for edge in (left, top))
    return Drawn(thing, x, y, radius)


def _fitting(views: list[View], kind: str) -> Iterator[tuple[View, View]]:
    """Pairs of images that both show the shape, of one colour and in different quarters."""
    showing = [view for view in views if kind in view.shapes]
    for source, target in itertools.permutations(showing, 2):
        one, other = source.shapes[kind].thing, target.shapes[kind].thing
        if one.colour == other.colour and one.place != other.place:
            yield source, target
