"""A worked example of A, C and the law with numbers small enough to follow by hand.

A as the published scores are computed: mean over the target's tokens of the largest cosine to any
CLIP token, after each side's projector. C: PCK at 0.1 of the larger side of the bounding box.
"""

from dataclasses import dataclass

import numpy as np

from AC_policy.estimators import ACRegressor
from AC_policy.features import describe, polynomial
from AC_policy.study import Task

TARGET_TOKENS = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
CLIP_TOKENS = np.array([[4.0, 3.0], [0.0, 1.0]])

SOURCE_FEATURE = np.array([2.0, 1.0])
TARGET_PATCHES = np.array([[1.0, 3.0], [4.0, 2.5], [0.5, -1.0], [-1.0, 1.0]])
PREDICTED_PX = np.array([[120.0, 80.0], [200.0, 140.0], [60.0, 150.0]])
TRUE_PX = np.array([[123.0, 84.0], [212.0, 145.0], [55.0, 143.0]])
BOX_PX = (100.0, 80.0)
ALPHA = 0.1


@dataclass(frozen=True)
class AlignmentExample:
    """A of one image: cosines [target tokens, CLIP tokens], the largest per row, their mean."""

    cosine: np.ndarray
    largest: np.ndarray
    score: float


@dataclass(frozen=True)
class CorrespondenceExample:
    """C of one pair: which patch a keypoint moves to, and which keypoints count as correct."""

    cosine: np.ndarray
    patch: int
    distance_px: np.ndarray
    threshold_px: float
    correct: np.ndarray
    score: float


@dataclass(frozen=True)
class LawExample:
    """The law at one representation, term by term."""

    representation: str
    a: float
    c: float
    a_scaled: float
    c_scaled: float
    formula: str
    terms: np.ndarray
    predicted: float
    measured: float


def alignment() -> AlignmentExample:
    """A of one image with three tokens against two of CLIP."""
    cosine = _unit(TARGET_TOKENS) @ _unit(CLIP_TOKENS).T
    largest = cosine.max(1)
    return AlignmentExample(cosine, largest, float(largest.mean()))


def correspondence() -> CorrespondenceExample:
    """C of one image pair with three keypoints."""
    cosine = _unit(TARGET_PATCHES) @ _unit(SOURCE_FEATURE)
    distance = np.linalg.norm(PREDICTED_PX - TRUE_PX, axis=1)
    threshold = ALPHA * max(BOX_PX)
    correct = distance <= threshold
    return CorrespondenceExample(
        cosine, int(cosine.argmax()), distance, threshold, correct, float(correct.mean())
    )


def law(task: Task, row: int) -> LawExample:
    """The published law on a task, taken apart at candidate `row`."""
    known = task.finetuned
    y = task.sign * task.performance[known]
    model = ACRegressor().fit(task.scores[known], y, candidates=task.scores)
    point = task.points()[row]
    coefficients = np.concatenate([[model.intercept_], model.coef_])
    terms = coefficients * np.concatenate([[1.0], polynomial(point)])
    return LawExample(
        representation=task.representations[row],
        a=float(task.measured_scores[row, 0]),
        c=float(task.measured_scores[row, 1]),
        a_scaled=float(point[0]),
        c_scaled=float(point[1]),
        formula=describe(coefficients),
        terms=terms,
        predicted=float(terms.sum()),
        measured=float(task.sign * task.performance[row]),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
