"""MMVP: 150 pairs of images, each pair with one question whose answers are opposite.

`Questions.csv` has the columns `lndex` (so spelt), `Question`, `Options`, `Correct Answer`; rows
2k-1 and 2k go together, and image n is `n.jpg`. A file of statements (`Question ID`, `Type`,
`Statement`), one for every image, makes the same images scorable by what takes no questions.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.errors import LawError
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.readers.files import Row, check_images, csv_rows, image_inside, whole_number

COLUMNS = ("lndex", "Question", "Options", "Correct Answer")
CORRECTLY_SPELT = {"Index": "lndex"}
"""As copies of the file have it."""
STATEMENTS = ("Question ID", "Type", "Statement")
OPTIONS = re.compile(r"\(a\)\s*(?P<a>.+?)\s*\(b\)\s*(?P<b>.+?)\s*", re.IGNORECASE)
ANSWER = re.compile(r"\(?([ab])\)?", re.IGNORECASE)
SWAPPED = ((99, 100), (279, 280))
"""Pairs whose published labels are the wrong way round, as lmms-eval's data set corrects them."""


@dataclass(frozen=True)
class Asked:
    """A row of a file in MMVP's layout."""

    where: str
    number: int
    question: str
    options: tuple[str, str]
    right: int
    """Which of the options."""


@dataclass(frozen=True)
class Stated:
    """A row of a file of statements."""

    where: str
    number: int
    type: str
    statement: str


@dataclass(frozen=True)
class MMVP:
    """`kind: mmvp`; either `data` or `statements`."""

    name: str
    images: Path
    data: Path | None = None
    """`Questions.csv` as published, its labels uncorrected."""
    statements: Path | None = None
    """A statement for every image, in the published order."""
    labels: Literal["original", "corrected"] = "original"
    """`corrected`: the answers of images 99 and 100, 279 and 280 change places."""
    prefix: str = "a photo of "
    """What stands before a statement."""

    def __post_init__(self):
        if (self.data is None) == (self.statements is None):
            raise ValueError("give `data` (Questions.csv) or `statements`, one of the two")

    def read(self) -> Benchmark:
        """All pairs, in the file's order; LawError for a row or pair that is not as published."""
        if self.data:
            pairs = list(in_pairs(asked(self.data)))
            items = [asked_item(pair, _numbered(self.images, pair)) for pair in pairs]
        else:
            pairs = list(in_pairs(stated(self.statements)))
            items = [stated_item(pair, _numbered(self.images, pair), self.prefix) for pair in pairs]
        if self.labels == "corrected":
            items = self._corrected(pairs, items)
        check_images(self.name, [path for item in items for path in item.images])
        return Benchmark(self.name, tuple(items), protocol=self._protocol())

    def _protocol(self) -> str:
        form = "questions" if self.data else f"statements/prefix={self.prefix.strip()}"
        return f"{form}/labels={self.labels}"

    def _corrected(self, pairs: Sequence[Sequence], items: Sequence[Item]) -> list[Item]:
        numbers = [tuple(row.number for row in pair) for pair in pairs]
        missing = [pair for pair in SWAPPED if pair not in numbers]
        if missing:
            raise LawError(
                f"{self.name}: labels are to be corrected, and rows {missing[0]} are not there; "
                "take the published file, or `labels: original`"
            )
        return [
            _swapped(item) if pair in SWAPPED else item
            for pair, item in zip(numbers, items, strict=True)
        ]


def asked(path: Path) -> list[Asked]:
    """The rows of a file in MMVP's layout; LawError naming the row that has another form."""
    return [_asked(row) for row in csv_rows(path, COLUMNS, CORRECTLY_SPELT)]


def _asked(row: Row) -> Asked:
    options = OPTIONS.fullmatch(row.value["Options"])
    answer = ANSWER.fullmatch(row.value["Correct Answer"])
    if not options:
        raise LawError(f"{row.where}: Options '{row.value['Options']}'; expected '(a) ... (b) ...'")
    if not answer:
        raise LawError(
            f"{row.where}: Correct Answer '{row.value['Correct Answer']}'; expected (a) or (b)"
        )
    if not row.value["Question"]:
        raise LawError(f"{row.where}: Question is empty")
    return Asked(
        row.where,
        whole_number(row, "lndex"),
        row.value["Question"],
        (options["a"], options["b"]),
        "ab".index(answer[1].lower()),
    )


def stated(path: Path) -> list[Stated]:
    """The rows of a file of statements; LawError naming the row that has another form."""
    return [_stated(row) for row in csv_rows(path, STATEMENTS)]


def _stated(row: Row) -> Stated:
    if not row.value["Statement"]:
        raise LawError(f"{row.where}: Statement is empty")
    number = whole_number(row, "Question ID")
    return Stated(row.where, number, row.value["Type"], row.value["Statement"])


def in_pairs(rows: Sequence[Asked] | Sequence[Stated]) -> Iterator[tuple]:
    """Rows (1, 2), (3, 4), ...; LawError where a number is missing, twice or out of order."""
    last = 0
    for place in range(0, len(rows), 2):
        pair = tuple(rows[place : place + 2])
        numbers = [row.number for row in pair]
        odd = numbers[0] % 2 == 1 and numbers[0] > last
        last = numbers[-1]
        if not odd or numbers != [numbers[0], numbers[0] + 1]:
            raise LawError(
                f"{pair[0].where}: {' and '.join(map(str, numbers))} are no pair; expected an odd "
                "number and the next one, ascending, as 1 and 2: take the file as it was published"
            )
        yield pair


def asked_item(pair: tuple[Asked, Asked], images: tuple[Path, ...]) -> Item:
    """One question of two images; LawError where the rows ask different things."""
    first, second = pair
    if _plain(first.question, *first.options) != _plain(second.question, *second.options):
        raise LawError(
            f"{second.where}: asks '{second.question}' {second.options}, and its pair "
            f"'{first.question}' {first.options}; expected one question for both"
        )
    if first.right == second.right:
        raise LawError(f"{second.where}: has the same answer as its pair; expected the opposite")
    return Item(
        id=f"{first.number}-{second.number}",
        images=images,
        captions=first.options,
        right=(first.right, second.right),
        choices=((0, 1), (0, 1)),
        pairs=((0, 1),),
        question=first.question,
    )


def stated_item(
    pair: tuple[Stated, Stated], images: tuple[Path, ...], prefix: str, axis: str = ""
) -> Item:
    """Two images with a statement each; LawError where both say the same."""
    first, second = pair
    if first.statement == second.statement:
        raise LawError(f"{second.where}: says the same as its pair: '{second.statement}'")
    return Item(
        id=f"{first.number}-{second.number}",
        images=images,
        captions=tuple(prefix + row.statement for row in pair),
        right=(0, 1),
        choices=((0, 1), (0, 1)),
        pairs=((0, 1),),
        axes=(axis, axis) if axis else (),
    )


def _plain(*texts: str) -> list[str]:
    """Texts without what typing differs in."""
    return [" ".join(text.lower().split()).rstrip("?. ") for text in texts]


def _numbered(folder: Path, pair: tuple) -> tuple[Path, ...]:
    return tuple(image_inside(folder, f"{row.number}.jpg", row.where) for row in pair)


def _swapped(item: Item) -> Item:
    """The same with the other caption right of either image."""
    return Item(**{**vars(item), "right": item.right[::-1]})
