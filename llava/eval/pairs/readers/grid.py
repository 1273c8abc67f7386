"""Any benchmark of images and captions, one item a line: Winoground, NaturalBench, SugarCrepe.

    {"id": "7", "images": ["a.png", "b.png"], "captions": ["old man, young dog", "..."]}

Image i goes with caption i unless `right` lists other captions; it chooses among all captions
unless `choices` says among which; two images are a pair, of more `pairs` says which. `axis` is a
text or one for every image; `question` makes the captions answers. An item of one image and two
captions (SugarCrepe) has the true caption first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.config import build
from llava.errors import ConfigError, LawError
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.readers.files import Row, check_images, image_inside, json_lines


@dataclass(frozen=True)
class Line:
    """One line of the file."""

    images: list[str]
    captions: list[str]
    id: str | int = ""
    """Default: the number of the item, from 0."""
    right: list[int] | None = None
    choices: list[list[int]] | None = None
    pairs: list[tuple[int, int]] | None = None
    axis: str | list[str] = ""
    question: str = ""


@dataclass(frozen=True)
class Grid:
    """`kind: grid`."""

    name: str
    data: Path
    """JSONL."""
    images: Path | None = None
    """Folder of the images; default: that of the file."""
    chooses: Literal["captions", "images"] = "captions"
    """What is chosen among."""
    protocol: str = ""
    """What else the numbers depend on, e.g. the version of the data."""

    def read(self) -> Benchmark:
        """All items, in the file's order; LawError naming the line that cannot be meant."""
        folder = self.images or self.data.parent
        items, seen = [], set()
        for number, row in enumerate(json_lines(self.data)):
            item = _item(number, row, folder)
            if item.id in seen:
                raise LawError(f"{row.where}: id {item.id} stands there twice")
            seen.add(item.id)
            items.append(item)
        if not items:
            raise LawError(f"{self.data}: holds no items")
        check_images(self.name, [path for item in items for path in item.images])
        return Benchmark(self.name, tuple(items), self.chooses, self.protocol)


def _item(number: int, row: Row, folder: Path) -> Item:
    try:
        line = build(Line, row.value)
        count = len(line.images)
        right = list(range(count)) if line.right is None else line.right
        everything = [list(range(len(line.captions)))] * count
        choices = everything if line.choices is None else line.choices
        pairs = _pairs(count, right) if line.pairs is None else line.pairs
        return Item(
            id=str(number if line.id == "" else line.id),
            images=tuple(image_inside(folder, name, row.where) for name in line.images),
            captions=tuple(line.captions),
            right=tuple(right),
            choices=tuple(map(tuple, choices)),
            pairs=tuple(map(tuple, pairs)),
            axes=_axes(line, count),
            question=line.question,
        )
    except ConfigError as error:
        raise LawError(f"{row.where}: {error}") from None
    except LawError as error:
        where = "" if str(error).startswith(row.where) else f"{row.where}: "
        raise LawError(f"{where}{error}") from None


def _pairs(count: int, right: Sequence[int]) -> list[tuple[int, int]]:
    """Two images that different captions are true of are a pair; of more nothing is assumed."""
    return [(0, 1)] if count == 2 and len(set(right)) == 2 else []


def _axes(line: Line, count: int) -> tuple[str, ...]:
    if isinstance(line.axis, str):
        return (line.axis,) * count if line.axis else ()
    return tuple(line.axis)
