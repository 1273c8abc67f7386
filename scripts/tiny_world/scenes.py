"""Scenes: one to three coloured shapes in the quarters of an image, no two of a kind or colour."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 64
"""Of an image, pixels."""
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
SHAPES = ("cross", "square", "triangle")
PLACES = ("top left", "top right", "bottom left", "bottom right")
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Thing:
    """One shape: its colour, its kind, the quarter that it lies in."""

    colour: str
    shape: str
    place: str


@dataclass(frozen=True)
class Scene:
    """What is in an image; things in reading order."""

    background: str
    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        """Whether no text and no image of training may show it."""
        return zlib.crc32(repr(self).encode()) % HELD_OUT_ONE_IN == 0


def imagine(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene at random, of those held out or of the others; every count equally likely."""
    count = rng.randint(1, len(SHAPES))
    while True:
        background, *colours = rng.sample(sorted(COLOURS), count + 1)
        shapes = rng.sample(SHAPES, count)
        places = sorted(rng.sample(PLACES, count), key=PLACES.index)
        scene = Scene(background, tuple(map(Thing, colours, shapes, places)))
        if scene.held_out == held_out:
            return scene


@dataclass(frozen=True)
class Drawn:
    """A thing where an image has it: its centre and half its width, pixels."""

    thing: Thing
    x: int
    y: int
    radius: int

    @property
    def points(self) -> dict[str, tuple[int, int]]:
        """Spots that every shape of its kind has, all of its colour: name -> (x, y)."""
        x, y, radius = self.x, self.y, self.radius
        left, right, top, bottom = x - radius, x + radius, y - radius, y + radius
        ends = {"top": (x, top), "right": (right, y), "bottom": (x, bottom), "left": (left, y)}
        lower = {"bottom left": (left, bottom), "bottom right": (right, bottom)}
        upper = {"top left": (left, top), "top right": (right, top)}
        outer = {"cross": ends, "square": upper | lower, "triangle": {"top": (x, top)} | lower}
        return {"middle": (x, y)} | outer[self.thing.shape]


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The RGB image of a scene, SIDE x SIDE; `rng` moves and sizes the shapes a little."""
    return paint(scene.background, [_near_the_middle(thing, rng) for thing in scene.things])


def paint(background: str, things: Sequence[Drawn]) -> Image.Image:
    """The RGB image, SIDE x SIDE, of things on a background; later ones lie above."""
    image = Image.new("RGB", (SIDE, SIDE), COLOURS[background])
    pen = ImageDraw.Draw(image)
    for drawn in things:
        _draw_shape(pen, drawn)
    return image


def corner(place: str) -> tuple[int, int]:
    """The upper left pixel (x, y) of a quarter."""
    row, column = divmod(PLACES.index(place), 2)
    return column * SIDE // 2, row * SIDE // 2


def _near_the_middle(thing: Thing, rng: random.Random) -> Drawn:
    """Almost as large as its quarter, and almost in the middle of it."""
    left, top = corner(thing.place)
    quarter = SIDE // 4
    radius = quarter - rng.randint(1, 3)
    x = left + quarter + rng.randint(-1, 1)
    y = top + quarter + rng.randint(-1, 1)
    return Drawn(thing, x, y, radius)


def _draw_shape(pen: ImageDraw.ImageDraw, drawn: Drawn) -> None:
    x, y, radius = drawn.x, drawn.y, drawn.radius
    fill = COLOURS[drawn.thing.colour]
    left, right, top, bottom = x - radius, x + radius, y - radius, y + radius
    if drawn.thing.shape == "square":
        pen.rectangle((left, top, right, bottom), fill)
    elif drawn.thing.shape == "cross":
        arm = radius // 3
        pen.rectangle((left, y - arm, right, y + arm), fill)
        pen.rectangle((x - arm, top, x + arm, bottom), fill)
    else:
        pen.polygon([(x, top), (left, bottom), (right, bottom)], fill)
