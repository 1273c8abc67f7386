"""The question that goes with an image when it is embedded: what its captions differ in.

Captions such as "A cup to the left of a plate" are taken apart into two objects and a side; from
what the choices of an image have in common the question is made, never from which of them is right.
"""

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml
from llava.eval.pairs.items import Item

FILE = Path(__file__).with_name("questions.yaml")
BETWEEN = "Is the {first} {one} or {other} the {second}?"
OF_ONE = "Is the {first} {one} or {other}?"
ANYWHERE = "Where is the {first} relative to the {second}?"
ANYWHERE_OF_ONE = "Where is the {first}?"
"""Where the choices are of several axes, as in a four-way choice; the wording is ours."""
ARTICLE = re.compile(r"(?:a photo of )?(?:(?:a|an|the) )?", re.IGNORECASE)


@dataclass(frozen=True)
class Axis:
    """One respect in which captions differ."""

    axis: str
    """What it is called here."""
    sides: tuple[tuple[str, ...], ...]
    """How captions put either side."""
    alternatives: tuple[str, ...]
    """How the question puts them, of two objects."""
    alone: tuple[str, ...]
    """How the question puts them, of one object."""


@dataclass(frozen=True)
class Relation:
    """What a caption says of where its objects are."""

    first: str
    second: str
    """Empty in a caption of one object."""
    axis: str
    side: int


@functools.cache
def axes() -> dict[str, Axis]:
    """The axes by name, as `questions.yaml` lists them."""
    found = [build(Axis, one, f"{FILE.name}: axis {i}") for i, one in enumerate(read_yaml(FILE))]
    return {one.axis: one for one in found}


@functools.cache
def _phrases() -> list[tuple[re.Pattern, str, int]]:
    """(pattern of a whole caption, axis, side), the longest phrases first: `on the left` is no
    `on`."""
    phrases = [
        (phrase, axis.axis, side)
        for axis in axes().values()
        for side, known in enumerate(axis.sides)
        for phrase in known
    ]
    phrases.sort(key=lambda one: -len(one[0]))
    caption = r"(.+?) (?:is |are )?{}(?: (.+?))?\.?"
    return [
        (re.compile(caption.format(re.escape(phrase)), re.IGNORECASE), axis, side)
        for phrase, axis, side in phrases
    ]


def relation(caption: str) -> Relation | None:
    """The objects of a caption and how they stand; None where it says nothing of the kind."""
    for pattern, axis, side in _phrases():
        if found := pattern.fullmatch(caption.strip()):
            first, second = (_object(text) for text in found.groups())
            return Relation(first, second, axis, side) if first else None
    return None


def _object(text: str | None) -> str:
    """Without article, and without a full stop."""
    text = (text or "").strip()
    return text[ARTICLE.match(text).end() :]


def question(item: Item, image: int, seed: int = 0) -> str:
    """What is asked about an image of an item; empty where the captions do not tell.

    An item's own question comes first. Images of pairs get the alternatives in the published order;
    for a single image (COCO-spatial and GQA-spatial) the published code draws the order, and here
    `seed` and the item's id do.
    """
    if item.question:
        return item.question
    found = [relation(item.captions[choice]) for choice in item.choices[image]]
    if not found or any(one is None for one in found):
        return ""
    objects = {(one.first.casefold(), one.second.casefold()) for one in found}
    if len(objects) > 1:
        return ""
    first, second, names = found[0].first, found[0].second, {one.axis for one in found}
    if len(names) > 1:
        return (ANYWHERE if second else ANYWHERE_OF_ONE).format(first=first, second=second)
    axis = axes()[names.pop()]
    one, other = _ordered(axis.alternatives if second else axis.alone, item, seed)
    template = BETWEEN if second else OF_ONE
    return template.format(first=first, second=second, one=one, other=other)


def _ordered(alternatives: Sequence[str], item: Item, seed: int) -> list[str]:
    """Both alternatives, in the published order for pairs and in a drawn one for single images."""
    drawn = list(alternatives)
    if not item.pairs:
        random.Random(f"{seed} {item.id}").shuffle(drawn)  # noqa: S311
    return drawn
