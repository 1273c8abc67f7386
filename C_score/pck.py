"""Percentage of correct keypoints: hits, their two averages, and the error of each.

Letters in shapes: S representations, P pairs, Q keypoints, A alphas.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from C_score.datasets.frame import ANNO
from C_score.datasets.pairs import Category

Average = Literal["image", "keypoint"]
Threshold = Literal["bbox", "image"]


def limits(category: Category, alphas: tuple[float, ...], threshold: Threshold) -> np.ndarray:
    """float64 [P, A] pixels of the 840 frame: an error below is a hit.

    alpha is taken in float32 as the reference does, the side in float64.
    """
    side_P = category.threshold_px if threshold == "bbox" else np.full(len(category), float(ANNO))
    return side_P[:, None] * np.asarray(alphas, np.float32).astype(np.float64)


def hits(
    predicted_SQ2: np.ndarray, true_Q2: np.ndarray, limit_QA: np.ndarray, counted_Q: np.ndarray
) -> np.ndarray:
    """bool [A, S, Q]: counted, and the prediction is nearer to the truth than the limit."""
    difference = predicted_SQ2.astype(np.float64) - true_Q2
    error_SQ = np.hypot(difference[..., 0], difference[..., 1])
    return (error_SQ < limit_QA.T[:, None]) & counted_Q


@dataclass(frozen=True)
class Sums:
    """What both averages and their errors are made of; adds up over categories.

    A pair has h hits among its m points; only pairs with m > 0 count.
    """

    pairs: int
    points: int
    points2: float
    """Sum of m * m."""
    pck_SA: np.ndarray
    """Sum of h / m."""
    pck2_SA: np.ndarray
    hits_SA: np.ndarray
    """Sum of h."""
    hits2_SA: np.ndarray
    cross_SA: np.ndarray
    """Sum of h * m."""

    @classmethod
    def of(cls, hits_SPA: np.ndarray, points_P: np.ndarray) -> "Sums":
        """From the hits of every pair and the number of its points."""
        scored = points_P > 0
        m_P1 = points_P[scored, None].astype(np.float64)
        h_SPA = hits_SPA[:, scored].astype(np.float64)
        pck_SPA = h_SPA / m_P1
        return cls(
            pairs=int(scored.sum()),
            points=int(points_P.sum()),
            points2=float((m_P1**2).sum()),
            pck_SA=pck_SPA.sum(1),
            pck2_SA=(pck_SPA**2).sum(1),
            hits_SA=h_SPA.sum(1),
            hits2_SA=(h_SPA**2).sum(1),
            cross_SA=(h_SPA * m_P1).sum(1),
        )

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def mean(self, average: Average) -> np.ndarray | None:
        """float64 [S, A] PCK, a fraction; None where there is nothing to average.

        `image`: the mean over pairs of their own PCK. `keypoint`: all points alike.
        """
        if not self.pairs:
            return None
        if average == "image":
            return self.pck_SA / self.pairs
        return self.hits_SA / self.points

    def stderr(self, average: Average) -> np.ndarray | None:
        """float64 [S, A] standard error of the mean, pairs taken as independent draws.

        For `keypoint` that of a ratio of sums over pairs, so points of one pair may go together.
        None below two pairs. Pairs share images, so the true error is larger.
        """
        n = self.pairs
        if n < 2:
            return None
        if average == "image":
            squares_SA = self.pck2_SA - self.pck_SA**2 / n
            scale = n
        else:
            p_SA = self.hits_SA / self.points
            squares_SA = self.hits2_SA - 2 * p_SA * self.cross_SA + p_SA**2 * self.points2
            scale = self.points
        return np.sqrt(np.maximum(squares_SA, 0) * n / (n - 1)) / scale
