"""COCO-spatial and GQA-spatial: one image, a true caption and a false one.

A JSON list of `[image id, true caption, false caption]`, as amitakamath/whatsup_vlms publishes it:
"A photo of a dog on the left", "A photo of a dog to the left of a cat". There are no pairs of
images, hence individual accuracies only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.errors import LawError
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.readers.files import Row, check_images, image_inside, json_rows

NAMES = {"coco": "{:012d}.jpg", "gqa": "{}.jpg"}
"""Whose images -> what the file of an image id is called: COCO's val2017, Visual Genome's."""
AXES = {
    "left/right": {"left", "right"},
    "top/bottom": {"top", "bottom"},
    "above/below": {"above", "below"},
    "front/behind": {"front", "behind", "back"},
}
"""Words that true and false caption differ in."""


@dataclass(frozen=True)
class Spatial:
    """`kind: spatial`."""

    name: str
    data: Path
    images: Path
    whose: Literal["coco", "gqa"]
    """Whose images, which says how their files are called."""

    def read(self) -> Benchmark:
        """All questions, in the file's order; LawError for a record that is not as published."""
        items = tuple(
            _item(number, row, self.images, NAMES[self.whose], self.whose)
            for number, row in enumerate(json_rows(self.data))
        )
        check_images(self.name, [path for item in items for path in item.images])
        return Benchmark(self.name, items, protocol="two-way")


def _item(number: int, row: Row, folder: Path, name: str, whose: str) -> Item:
    value = row.value if isinstance(row.value, list) else []
    if len(value) != 3 or not all(isinstance(text, str) for text in value[1:]):
        raise LawError(f"{row.where}: expected [image id, true caption, false caption]")
    image, true, false = value
    if true == false:
        raise LawError(f"{row.where}: both captions are '{true}'")
    if isinstance(image, float) and image.is_integer():
        image = int(image)  # as pandas writes a column that has gaps
    digits = str(image).isdecimal() and not isinstance(image, bool)
    if not (digits or (whose == "gqa" and isinstance(image, str) and image)):
        raise LawError(f"{row.where}: image id {image!r}; expected a number, as 139")
    file = name.format(int(image) if whose == "coco" else image)
    return Item(
        id=f"{number}_{image}",
        images=(image_inside(folder, file, row.where),),
        captions=(true, false),
        right=(0,),
        choices=((0, 1),),
        axes=(_axis(true, false),),
    )


def _axis(true: str, false: str) -> str:
    """In what respect two captions differ; empty for one that is not among AXES."""
    sides = [set(text.lower().rstrip(".").split()) for text in (true, false)]
    differing = sides[0] ^ sides[1]
    return next((axis for axis, words in AXES.items() if len(differing & words) > 0), "")
