"""Scenes: one to three coloured shapes in the quarters of an image, no two of a kind or colour."""

import random
import zlib
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


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """The RGB image of a scene, SIDE x SIDE; `rng` moves and sizes the shapes a little."""
    image = Image.new("RGB", (SIDE, SIDE), COLOURS[scene.background])
    pen = ImageDraw.Draw(image)
    half = SIDE // 2
    for thing in scene.things:
        row, column = divmod(PLACES.index(thing.place), 2)
        radius = half // 2 - rng.randint(1, 3)
        x = column * half + half // 2 + rng.randint(-1, 1)
        y = row * half + half // 2 + rng.randint(-1, 1)
        _draw_shape(pen, thing, x, y, radius)
    return image


def _draw_shape(pen: ImageDraw.ImageDraw, thing: Thing, x: int, y: int, radius: int) -> None:
    fill = COLOURS[thing.colour]
    left, right, top, bottom = x - radius, x + radius, y - radius, y + radius
    if thing.shape == "square":
        pen.rectangle((left, top, right, bottom), fill)
    elif thing.shape == "cross":
        arm = radius // 3
        pen.rectangle((left, y - arm, right, y + arm), fill)
        pen.rectangle((x - arm, top, x + arm, bottom), fill)
    else:
        pen.polygon([(x, top), (left, bottom), (right, bottom)], fill)
