"""How sure a benchmark's number is: its standard error over the questions that were asked.

lmms-eval gives one where it takes a plain mean. Of its other aggregations some are means all the
same, of shares of right answers or of images' scores, and their errors follow from the logged
answers. What it prints as `_stderr_clt` beside them is the spread of something else (of MME: of
single answers, as if the sum over categories were a share) and is not taken. An error is given only
where the number itself can be made of the same values.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava.results import UNITS

CLOSE = 1e-5
"""lmms-eval rounds MMMU's share to five places."""
ALONE = "a single question has no spread"
ALIKE = "all questions score alike, so their spread is unknown, not zero"
VARIANTS = 1_000_000
"""MMBench numbers the further orders of question q's options q + 1000000, q + 2000000, ..."""


@dataclass(frozen=True)
class Spread:
    """What a number is the mean of, and its standard error in the number's unit."""

    n: int
    stderr: float | None
    how: str
    """How the error was computed, or why there is none."""


Values = Sequence[Any]
"""What every document that counts scored, as the task logged it."""


def spread(kind: str, values: Values, value: float, unit: str) -> Spread:
    """The spread of `value`, made of `values` in the way `kind` (catalog.Benchmark.spread)."""
    found = KINDS[kind](values, value, UNITS[unit][1])
    return found if found.stderr != 0 else replace(found, stderr=None, how=ALIKE)


def of_mean(values: Values, value: float, scale: float) -> Spread:
    """A plain mean over documents."""
    if not all(isinstance(one, int | float) for one in values):
        return Spread(len(values), None, "the documents' values are no numbers")
    if not math.isclose(math.fsum(values) / len(values), value, rel_tol=CLOSE, abs_tol=1e-9):
        return Spread(len(values), None, "the value is no mean of the documents' values")
    if len(values) < 2:
        return Spread(len(values), None, ALONE)
    return Spread(len(values), _stderr(values), "deviation of the documents' values / sqrt(n)")


def of_share(values: Values, value: float, scale: float) -> Spread:
    """The share of documents that are right: the same as a mean of zeros and ones."""
    return _binary(len(values), value, scale, "documents")


def of_circular(values: Values, value: float, scale: float) -> Spread:
    """The share of questions that are right in every order of their options."""
    questions = sum(int(one["index"]) < VARIANTS for one in values)
    return _binary(questions, value, scale, "questions, each in all orders of its options")


def of_mme(values: Values, value: float, scale: float) -> Spread:
    """A sum over categories of means over images; an image scores its two answers and both."""
    images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in values:
        images[one["category"]][one["question_id"]].append(one["score"])
    scores = {
        category: [100 * sum(both) / len(both) + 100 * (sum(both) == 2) for both in asked.values()]
        for category, asked in images.items()
    }
    n = sum(map(len, scores.values()))
    total = sum(sum(one) / len(one) for one in scores.values())
    if not math.isclose(total, value, rel_tol=CLOSE, abs_tol=1e-9):
        return Spread(n, None, "the value is no sum of the categories' means")
    alone = sorted(category for category, one in scores.items() if len(one) < 2)
    if alone:
        return Spread(n, None, f"a single image in {', '.join(alone)}")
    variance = math.fsum(_stderr(one) ** 2 for one in scores.values())
    return Spread(n, math.sqrt(variance), "images within categories; n counts images")


def of_groups(values: Values, value: float, scale: float) -> Spread:
    """The share of groups of documents all of which are right, such as the images of a pair."""
    groups: dict[str, bool] = {}
    for one in values:
        groups[one["group"]] = groups.get(one["group"], True) and one["right"]
    if not math.isclose(sum(groups.values()) / len(groups), value * scale, abs_tol=1e-9):
        return Spread(len(groups), None, "the value is no share of groups that are right")
    return _binary(len(groups), value, scale, "groups")


KINDS: Mapping[str, Callable[[Values, float, float], Spread]] = {
    "mean": of_mean,
    "share": of_share,
    "circular": of_circular,
    "mme": of_mme,
    "groups": of_groups,
}


def _binary(n: int, value: float, scale: float, of: str) -> Spread:
    share = value * scale
    right = share * n
    if n < 2:
        return Spread(n, None, ALONE)
    if not math.isclose(right, round(right), abs_tol=CLOSE * n) or not 0 <= share <= 1:
        return Spread(n, None, f"the value is no share of {n} {of}")
    return Spread(n, math.sqrt(share * (1 - share) / (n - 1)) / scale, f"share of n {of}")


def _stderr(values: Sequence[float]) -> float:
    """Of the mean of two values or more."""
    n = len(values)
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (n - 1) / n)
