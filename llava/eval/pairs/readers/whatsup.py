"""What'sUp A and B: an object left or right of another, on or under it (A), in front or behind (B).

A JSON list of `{"image_path": ..., "caption_options": [four captions, the right one first]}`, as
amitakamath/whatsup_vlms publishes it. What an image shows says its name:
`beer-bottle_left_of_armchair.jpeg`. The four images of two objects are one item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from llava.errors import LawError
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.readers.files import Row, check_images, image_inside, json_rows

PHRASES = {
    "to the left of": "left",
    "to the right of": "right",
    "on": "on",
    "under": "under",
    "in front of": "in-front",
    "in-front of": "in-front",
    "behind": "behind",
}
"""What stands between two objects -> the relation, as names of images say it."""
AXES = {
    "left/right": ("left", "right"),
    "on/under": ("on", "under"),
    "front/behind": ("in-front", "behind"),
}
"""The two relations of an axis, each the opposite of the other."""
AXIS_OF = {relation: axis for axis, both in AXES.items() for relation in both}
ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class _Photo:
    """One record."""

    where: str
    path: Path
    objects: tuple[str, str]
    relation: str
    captions: dict[str, str]
    """Relation -> caption, the four options."""


@dataclass(frozen=True)
class WhatsUp:
    """`kind: whatsup`."""

    name: str
    data: Path
    images: Path
    """Folder; of a record's `image_path` the last part is taken."""
    choices: Literal["two", "four"] = "two"
    """Captions to choose among: the right relation and its opposite (the paper's main setting), or
    all four."""

    def read(self) -> Benchmark:
        """All sets, in the file's order; LawError for a record or set that is not as published."""
        sets: dict[tuple[str, str], dict[str, _Photo]] = {}
        for row in json_rows(self.data):
            photo = _photo(row, self.images)
            found = sets.setdefault(photo.objects, {})
            if photo.relation in found:
                raise LawError(
                    f"{photo.where}: a second image of '{photo.relation}' for "
                    f"{' and '.join(photo.objects)}; the first is "
                    f"{found[photo.relation].path.name}"
                )
            found[photo.relation] = photo
        items = tuple(_item(objects, found, self.choices) for objects, found in sets.items())
        check_images(self.name, [path for item in items for path in item.images])
        return Benchmark(self.name, items, protocol=f"{self.choices}-way")


def _photo(row: Row, folder: Path) -> _Photo:
    value = row.value if isinstance(row.value, dict) else {}
    name, options = value.get("image_path"), value.get("caption_options")
    texts = isinstance(options, list) and all(isinstance(text, str) for text in options)
    if not isinstance(name, str) or not texts or len(options) != 4:
        raise LawError(
            f"{row.where}: expected `image_path` and `caption_options`, a list of four captions"
        )
    path = image_inside(folder, PurePosixPath(name).name, row.where)
    objects, relation = _shown(path.stem, row.where)
    relations = _relations(options, row.where)
    if relations[0] != relation:
        raise LawError(
            f"{row.where}: the first caption, which is the right one, says '{relations[0]}' and "
            f"the image's name '{relation}'"
        )
    return _Photo(row.where, path, objects, relation, dict(zip(relations, options, strict=True)))


def _shown(stem: str, where: str) -> tuple[tuple[str, str], str]:
    """(objects, relation) by an image's name, whose objects have `-` for blanks."""
    parts = stem.split("_")
    between = [part for part in parts[2:-1] if part]  # `behind_` may have a line of its own
    if len(parts) < 3 or parts[1] not in AXIS_OF or between not in ([], ["of"]):
        raise LawError(
            f"{where}: image '{stem}': expected <object>_<relation>_<object>, the relation one of "
            "left_of, right_of, on, under, in-front_of, behind"
        )
    return (parts[0], parts[-1]), parts[1]


def _relations(options: Sequence[str], where: str) -> list[str]:
    """The relation that each caption states: what it does not share with the others."""
    words = [text.rstrip(". ").split() for text in options]
    while len({tuple(one[:1]) for one in words}) == 1 and all(words):
        words = [one[1:] for one in words]
    while len({tuple(one[-1:]) for one in words}) == 1 and all(words):
        words = [one[:-1] for one in words]
    phrases = [
        " ".join(one[:-1] if one and one[-1].lower() in ARTICLES else one).lower() for one in words
    ]
    for phrase, option in zip(phrases, options, strict=True):
        if phrase not in PHRASES:
            raise LawError(
                f"{where}: '{option}' differs from the other captions in '{phrase}'; expected one "
                f"of {', '.join(PHRASES)}"
            )
    if len(set(phrases)) != len(phrases):
        raise LawError(f"{where}: two captions state the same relation")
    return [PHRASES[phrase] for phrase in phrases]


def _item(objects: tuple[str, str], found: dict[str, _Photo], choices: str) -> Item:
    """A set: the two images of each of its axes, side by side."""
    axes = list(dict.fromkeys(AXIS_OF[relation] for relation in found))
    wanted = [relation for axis in AXES if axis in axes for relation in AXES[axis]]
    missing = [relation for relation in wanted if relation not in found]
    if missing or len(wanted) != 4:
        any_photo = next(iter(found.values()))
        raise LawError(
            f"{any_photo.where}: the set of {' and '.join(objects)} has {', '.join(found)} and "
            f"lacks {', '.join(missing) or 'an axis'}; expected four images, two of each of two "
            "axes: add what is missing, or take the set out of the file"
        )
    photos = [found[relation] for relation in wanted]
    captions = list(dict.fromkeys(text for photo in photos for text in photo.captions.values()))

    def place(photo: _Photo, relation: str) -> int:
        """Where the caption of a photo is that states a relation."""
        if relation not in photo.captions:
            raise LawError(f"{photo.where}: no caption states '{relation}'")
        return captions.index(photo.captions[relation])

    ways = {
        relation: AXES[AXIS_OF[relation]] if choices == "two" else tuple(photo.captions)
        for relation, photo in zip(wanted, photos, strict=True)
    }
    return Item(
        id="_".join(objects),
        images=tuple(photo.path for photo in photos),
        captions=tuple(captions),
        right=tuple(place(photo, photo.relation) for photo in photos),
        choices=tuple(
            tuple(place(photo, relation) for relation in ways[photo.relation]) for photo in photos
        ),
        pairs=((0, 1), (2, 3)),
        axes=tuple(AXIS_OF[relation] for relation in wanted),
    )
