"""Small pictures of two coloured shapes, one beside or above the other, cut into cells.

A picture is a uniform ground and two cells with a shape in each. The two pictures of a pair hold
the same two cells with their places changed, so that a bag of patches, which knows what stands in a
picture and not where, cannot tell them apart: with patches of a cell's side this holds exactly.
"""

import random
from dataclasses import dataclass
from itertools import permutations

from PIL import Image, ImageDraw

CELL_PX = 8
CELLS = 4
"""Along a side."""
SIDE_PX = CELL_PX * CELLS

Colour = tuple[int, int, int]

SHAPES: dict[str, Colour] = {
    "red circle": (220, 40, 40),
    "blue square": (50, 70, 220),
    "green triangle": (40, 180, 60),
    "yellow cross": (230, 210, 40),
}
"""The things that are shown, each of one form and colour, in sRGB."""

SHADE = 24
"""By how much a channel of a shape's colour varies, either way."""
DARKEST, LIGHTEST = 0, 63
"""Grey levels of a ground: darker than every shape."""


@dataclass(frozen=True)
class Relation:
    """Where the first of two things is, seen from the second."""

    axis: str
    words: str
    opposite: str
    """Name of the relation that is true once the two change places."""
    first: bool
    """Whether the first thing's cell has the smaller coordinate."""


RELATIONS = {
    "left": Relation("left/right", "to the left of", "right", True),
    "right": Relation("left/right", "to the right of", "left", False),
    "above": Relation("above/below", "above", "below", True),
    "below": Relation("above/below", "below", "above", False),
}

OBJECT_PAIRS = tuple(permutations(SHAPES, 2))
"""The 12 ordered pairs of things."""


def caption(first: str, relation: str, second: str) -> str:
    """What is true of a picture, e.g. `A red circle to the left of a blue square.`"""
    return f"A {first} {RELATIONS[relation].words} a {second}."


def all_captions() -> list[str]:
    """The 48 captions that there are, in a fixed order."""
    return [caption(one, name, other) for one, other in OBJECT_PAIRS for name in RELATIONS]


@dataclass(frozen=True)
class Scene:
    """Two things on their cells; equal scenes give equal pictures."""

    first: str
    second: str
    relation: str
    line: int
    """Row of the cells for left and right, column for above and below."""
    places: tuple[int, int]
    """Cells along that line, ascending."""
    ground: int
    """Grey level."""
    inks: tuple[Colour, Colour]
    boxes: tuple[tuple[int, int, int], tuple[int, int, int]]
    """(left, top, side less one) of a shape inside of its cell, in pixels."""

    @classmethod
    def drawn(
        cls, rng: random.Random, first: str, second: str, relation: str, apart: bool = False
    ) -> "Scene":
        """A scene whose places, colours and sizes are drawn; `apart`: things in opposite halves."""
        inks = tuple(_shade(rng, SHAPES[name]) for name in (first, second))
        return cls(
            first,
            second,
            relation,
            line=rng.randrange(CELLS),
            places=_places(rng, apart),
            ground=rng.randint(DARKEST, LIGHTEST),
            inks=inks,
            boxes=(_box(rng), _box(rng)),
        )

    @property
    def caption(self) -> str:
        """What is true of it."""
        return caption(self.first, self.relation, self.second)

    @property
    def swapped(self) -> "Scene":
        """The same cells with their places changed, of which the opposite relation is true."""
        return Scene(**{**vars(self), "relation": RELATIONS[self.relation].opposite})

    @property
    def cells(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(column, row) of the first thing's cell and of the second's."""
        relation = RELATIONS[self.relation]
        one, other = self.places if relation.first else self.places[::-1]
        if relation.axis == "left/right":
            return (one, self.line), (other, self.line)
        return (self.line, one), (self.line, other)

    def picture(self) -> Image.Image:
        """RGB, SIDE_PX x SIDE_PX."""
        picture = Image.new("RGB", (SIDE_PX, SIDE_PX), (self.ground,) * 3)
        things = zip((self.first, self.second), self.inks, self.boxes, self.cells, strict=True)
        for name, ink, box, (column, row) in things:
            picture.paste(_cell(name, ink, box, self.ground), (column * CELL_PX, row * CELL_PX))
        return picture


def _places(rng: random.Random, apart: bool) -> tuple[int, int]:
    """Two cells along a line, ascending."""
    if apart:
        return rng.randrange(CELLS // 2), rng.randrange(CELLS // 2, CELLS)
    one, other = sorted(rng.sample(range(CELLS), 2))
    return one, other


def _shade(rng: random.Random, colour: Colour) -> Colour:
    return tuple(min(255, max(0, channel + rng.randint(-SHADE, SHADE))) for channel in colour)


def _box(rng: random.Random) -> tuple[int, int, int]:
    """Six to eight pixels wide, wholly inside of the cell."""
    spare = rng.randint(0, 2)
    return rng.randint(0, spare), rng.randint(0, spare), CELL_PX - 1 - spare


def _cell(name: str, ink: Colour, box: tuple[int, int, int], ground: int) -> Image.Image:
    cell = Image.new("RGB", (CELL_PX, CELL_PX), (ground,) * 3)
    draw = ImageDraw.Draw(cell)
    left, top, size = box
    right, bottom, third = left + size, top + size, (size + 1) // 3
    match name.split()[1]:
        case "circle":
            draw.ellipse((left, top, right, bottom), fill=ink)
        case "square":
            draw.rectangle((left, top, right, bottom), fill=ink)
        case "triangle":
            draw.polygon([(left, bottom), (right, bottom), (left + size // 2, top)], fill=ink)
        case "cross":
            draw.rectangle((left + third, top, right - third, bottom), fill=ink)
            draw.rectangle((left, top + third, right, bottom - third), fill=ink)
    return cell
