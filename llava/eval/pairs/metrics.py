"""How many are right: one score matrix per item gives every accuracy that pair benchmarks report.

S[i, c] is the score of image i with caption c. A decision is right where the right score is
strictly greater than every other; a tie is counted and never right. Of a pair with images a, b and
captions x (of a), y (of b), as Winoground and What'sUp define them:

    text    S[a, x] > S[a, y]  and  S[b, y] > S[b, x]
    image   S[a, x] > S[b, x]  and  S[b, y] > S[a, y]
    group   text and image

`individual` are the decisions one by one, `pair` both of a pair, `set` all of an item with several
pairs. Where captions are chosen these are over each image's own choices, so that of two captions
`pair` equals `text`; where images are chosen `pair` equals `image`. A scorer that ignores the image
has 50 % individual and no pair at all, which `same_choice` shows: pairs whose images choose one and
the same caption, or whose captions one and the same image.

Letters in shapes: I images and C captions of an item.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llava.errors import LawError
from llava.eval.pairs.accuracies import ACCURACIES
from llava.eval.pairs.items import Benchmark, Item

OF_PAIR = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""Chance levels: among the 24 orders of four different scores, those that are right."""


@dataclass(frozen=True)
class Accuracy:
    """A share of decisions, as whole numbers."""

    right: int
    of: int
    stderr: float | None = None
    """Of the share, over items: decisions about one item go together. None where it is unknown."""
    chance: float | None = None
    """The share that scores drawn at random are right in."""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.of


@dataclass(frozen=True)
class Measures:
    """What a model got right on a benchmark."""

    accuracies: dict[str, Accuracy]
    """By name, those of ACCURACIES that the benchmark has."""
    by_axis: dict[str, dict[str, Accuracy]]
    """Axis -> individual, pair, same_choice; empty where the benchmark names no axes."""
    same_choice: Accuracy | None
    """Of pairs; None where there are none."""
    ties: int
    """Decisions among `individual` that were wrong since the right score was no greater."""


@dataclass(frozen=True)
class _Decision:
    """One choice: of a caption for an image, or of an image for a caption."""

    axis: str
    right: bool
    tied: bool
    chosen: int | None
    """None where the highest score is not the only one."""
    chance: float


@dataclass(frozen=True)
class _Outcome:
    """One thing that counts, and what it counts for."""

    name: str
    axis: str
    right: bool
    chance: float | None = None


def measure(benchmark: Benchmark, scores: Sequence[np.ndarray]) -> Measures:
    """Accuracies of [I, C] score matrices, one for each item, in order.

    LawError where a score that is needed is missing, NaN or infinite, or a shape is another.
    """
    if len(scores) != len(benchmark.items):
        raise LawError(f"{benchmark.name}: {len(scores)} matrices for {len(benchmark.items)} items")
    found = []
    ties = 0
    for item, scores_IC in zip(benchmark.items, scores, strict=True):
        _check(benchmark.name, item, scores_IC)
        outcomes, tied = _outcomes(benchmark, item, scores_IC)
        found.append(outcomes)
        ties += tied
    overall = {name: _accuracy(found, name) for name in ACCURACIES}
    axes = dict.fromkeys(one.axis for outcomes in found for one in outcomes if one.axis)
    by_axis = {
        axis: {
            name: accuracy
            for name in ("individual", "pair", "same_choice")
            if (accuracy := _accuracy(found, name, axis))
        }
        for axis in axes
    }
    return Measures(
        accuracies={name: accuracy for name, accuracy in overall.items() if accuracy},
        by_axis=by_axis,
        same_choice=_accuracy(found, "same_choice"),
        ties=ties,
    )


def _check(name: str, item: Item, scores_IC: np.ndarray) -> None:
    shape = (len(item.images), len(item.captions))
    if scores_IC.shape != shape:
        raise LawError(f"{name}, item {item.id}: scores {scores_IC.shape}, expected {shape}")
    bad = np.argwhere(item.needed & ~np.isfinite(scores_IC))
    if len(bad):
        image, caption = (int(i) for i in bad[0])
        raise LawError(
            f"{name}, item {item.id}: the score of {item.images[image].name} with "
            f"'{item.captions[caption]}' is {scores_IC[image, caption]}; expected a finite number: "
            "the model gives NaN or infinity, try float32"
        )


def _outcomes(
    benchmark: Benchmark, item: Item, scores_IC: np.ndarray
) -> tuple[list[_Outcome], int]:
    """(everything of an item that counts, ties)."""
    if benchmark.chooses == "images":
        asked = {pair: _images_chosen(item, scores_IC, pair) for pair in item.pairs}
        decisions = [decision for both in asked.values() for decision in both]
    else:
        decisions = [_caption_chosen(item, scores_IC, i) for i in range(len(item.images))]
        asked = {pair: tuple(decisions[i] for i in pair) for pair in item.pairs}
    outcomes = [_Outcome("individual", one.axis, one.right, one.chance) for one in decisions]
    for pair, both in asked.items():
        one, other = both
        axis = one.axis if one.axis == other.axis else ""
        chance = one.chance * other.chance
        same = one.chosen is not None and one.chosen == other.chosen
        outcomes += [
            _Outcome("pair", axis, one.right and other.right, chance),
            _Outcome("same_choice", axis, same),
            *_of_pair(item, scores_IC, pair),
        ]
    if len(item.pairs) > 1:
        chance = math.prod(one.chance for one in decisions)
        outcomes.append(_Outcome("set", "", all(one.right for one in decisions), chance))
    return outcomes, sum(one.tied for one in decisions)


def _caption_chosen(item: Item, scores_IC: np.ndarray, image: int) -> _Decision:
    choices = item.choices[image]
    scores = scores_IC[image, list(choices)]
    return _decide(scores, choices.index(item.right[image]), choices, item.axis(image))


def _images_chosen(
    item: Item, scores_IC: np.ndarray, pair: tuple[int, int]
) -> tuple[_Decision, _Decision]:
    """For the caption of each image of a pair, which of the two images it chooses."""
    first, second = (
        _decide(scores_IC[list(pair), item.right[image]], place, pair, item.axis(image))
        for place, image in enumerate(pair)
    )
    return first, second


def _decide(scores: np.ndarray, right: int, names: Sequence[int], axis: str) -> _Decision:
    """Between `names`, of which that at place `right` is the right one."""
    others = np.delete(scores, right).max()
    highest = np.flatnonzero(scores == scores.max())
    return _Decision(
        axis,
        right=bool(scores[right] > others),
        tied=bool(scores[right] == others),
        chosen=names[highest[0]] if len(highest) == 1 else None,
        chance=1 / len(names),
    )


def _of_pair(item: Item, scores_IC: np.ndarray, pair: tuple[int, int]) -> Iterator[_Outcome]:
    (ax, ay), (bx, by) = scores_IC[np.ix_(pair, [item.right[image] for image in pair])]
    right = {"text": ax > ay and by > bx, "image": ax > bx and by > ay}
    right["group"] = right["text"] and right["image"]
    for name, chance in OF_PAIR.items():
        yield _Outcome(name, "", bool(right[name]), chance)


def _accuracy(
    found: Iterable[Sequence[_Outcome]], name: str, axis: str | None = None
) -> Accuracy | None:
    """Of one name, over items; None where no item has it."""
    counts = []
    chances = []
    for outcomes in found:
        counted = [o for o in outcomes if o.name == name and axis in (None, o.axis)]
        if counted:
            counts.append((sum(o.right for o in counted), len(counted)))
            chances += [o.chance for o in counted if o.chance is not None]
    if not counts:
        return None
    right, of = (sum(column) for column in zip(*counts, strict=True))
    chance = math.fsum(chances) / len(chances) if chances else None
    return Accuracy(right, of, _stderr(counts), chance)


def _stderr(counts: Sequence[tuple[int, int]]) -> float | None:
    """Standard error of sum(right) / sum(of) over items (a ratio of totals, items as clusters).

    With one decision per item this is sqrt(p (1 - p) / (n - 1)). None for a single item, and where
    all items score alike: their spread is then unknown, not zero.
    """
    if len(counts) < 2:
        return None
    total = sum(of for _, of in counts)
    share = sum(right for right, _ in counts) / total
    squares = math.fsum((right - share * of) ** 2 for right, of in counts)
    error = math.sqrt(squares * len(counts) / (len(counts) - 1)) / total
    return error if error > 1e-12 else None
