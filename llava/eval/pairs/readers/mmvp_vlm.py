"""MMVP-VLM: 9 visual patterns with 15 pairs each; a statement chooses between two images.

`Questions.csv` has the columns `Question ID`, `Type`, `Statement`; rows 2k-1 and 2k go together,
and image n is `<Type>/<n>.jpg`. A file of questions in MMVP's layout makes the same images
answerable; then an image chooses between the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.errors import LawError
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.readers.files import check_images, image_inside
from llava.eval.pairs.readers.mmvp import (
    Asked,
    Stated,
    asked,
    asked_item,
    in_pairs,
    stated,
    stated_item,
)
from llava.log import get_logger

logger = get_logger("pairs")


@dataclass(frozen=True)
class MMVPVLM:
    """`kind: mmvp_vlm`."""

    name: str
    data: Path
    images: Path
    questions: Path | None = None
    """Questions with the same numbers, in MMVP's layout."""
    prefix: str = "a photo of "
    """What stands before a statement."""

    def read(self) -> Benchmark:
        """All pairs, in the file's order; LawError for a row or pair that is not as published."""
        pairs = [_of_one_type(pair) for pair in in_pairs(stated(self.data))]
        files = [self._images(pair) for pair in pairs]
        if self.questions:
            items = self._asked(pairs, files)
        else:
            items = [
                stated_item(pair, images, self.prefix, pair[0].type)
                for pair, images in zip(pairs, files, strict=True)
            ]
        check_images(self.name, [path for item in items for path in item.images])
        if self.questions:
            return Benchmark(self.name, tuple(items), protocol="questions")
        protocol = f"statements/prefix={self.prefix.strip()}"
        return Benchmark(self.name, tuple(items), "images", protocol)

    def _images(self, pair: tuple[Stated, Stated]) -> tuple[Path, ...]:
        return tuple(
            image_inside(self.images, f"{row.type}/{row.number}.jpg", row.where) for row in pair
        )

    def _asked(
        self, pairs: Sequence[tuple[Stated, Stated]], files: Sequence[tuple[Path, ...]]
    ) -> list[Item]:
        numbers = [row.number for pair in pairs for row in pair]
        rows = _renumbered(asked(self.questions), numbers)
        questions = {pair[0].number: pair for pair in in_pairs(rows)}
        items = []
        for pair, images in zip(pairs, files, strict=True):
            if pair[0].number not in questions:
                raise LawError(
                    f"{self.questions}: no question {pair[0].number}; expected one for every row "
                    f"of {self.data}"
                )
            item = asked_item(questions[pair[0].number], images)
            items.append(replace(item, axes=(pair[0].type,) * 2))
        return items


def _renumbered(rows: Sequence[Asked], numbers: Sequence[int]) -> list[Asked]:
    """The questions; one whose number no statement has gets that of the statement in its place.

    The paper's file has 277 and 278 where 225 and 226 belong.
    """
    if len(rows) != len(numbers):
        return list(rows)
    known = {row.number for row in rows}
    found = []
    for row, number in zip(rows, numbers, strict=True):
        if row.number not in numbers and number not in known:
            logger.warning(
                "%s: is numbered %d; taken for %d by its place", row.where, row.number, number
            )
            row = replace(row, number=number)
        found.append(row)
    return found


def _of_one_type(pair: tuple[Stated, Stated]) -> tuple[Stated, Stated]:
    first, second = pair
    if first.type != second.type or not first.type:
        raise LawError(
            f"{second.where}: Type '{second.type}', and of its pair '{first.type}'; expected one "
            "pattern for both"
        )
    return pair
