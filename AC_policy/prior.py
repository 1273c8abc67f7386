"""What finished benchmarks say about the law's coefficients before a new benchmark is measured.

For each finished benchmark: min-max performance is regressed (ridge) on the degree-2 features of
min-max A and C. The mean and covariance of those coefficient vectors are the prior of a new
benchmark's, and their mean residual variance is the part of performance that A and C leave open.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from AC_policy.features import FEATURES, design, min_max
from AC_policy.study import Task
from llava.errors import TableError

MIN_ROWS = 8
"""Finetuned rows before a benchmark teaches the prior: six coefficients and some residual."""
MIN_BENCHMARKS = 2
"""Benchmarks before their coefficients have a spread."""

RIDGE = 0.01
"""Ridge of each benchmark's regression; features and performance lie in [0, 1]. This and JITTER
come from a prototype that was tried on the paper's table; the nested evaluation does without."""
JITTER = 0.01
"""Added variance of every coefficient, so that no direction is taken as known."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Gaussian prior of the law's coefficients, on min-max A, C and performance.

    Attributes:
        mean: [6] in the order of FEATURES.
        cov: [6, 6].
        noise: variance of a representation's performance around the law.
        benchmarks: the benchmarks that it was learned from.
    """

    mean: np.ndarray
    cov: np.ndarray
    noise: float
    benchmarks: tuple[str, ...]

    def score(self, points: np.ndarray) -> np.ndarray:
        """[n] expected min-max performance at (A, C) points [n, 2] in the unit square."""
        return design(points) @ self.mean


def usable(task: Task) -> bool:
    """Whether the task can teach a prior."""
    known = task.performance[task.finetuned]
    return len(known) >= MIN_ROWS and np.ptp(known) > 0


def learn_prior(
    tasks: Iterable[Task],
    scale: str = "candidates",
    ridge: float = RIDGE,
    jitter: float = JITTER,
    noise: float | None = None,
) -> Prior:
    """The prior that finished benchmarks give.

    Args:
        tasks: benchmarks with at least MIN_ROWS finetuned candidates; others are passed over.
        scale: A and C min-max over `candidates` or over the `finetuned` ones.
        ridge: of each benchmark's regression.
        jitter: variance added to every coefficient.
        noise: variance around the law; default: the mean residual variance of the regressions.

    Raises:
        TableError: fewer than MIN_BENCHMARKS usable benchmarks.
    """
    tasks = [task for task in tasks if usable(task)]
    if len(tasks) < MIN_BENCHMARKS:
        raise TableError(
            f"the law's prior needs {MIN_BENCHMARKS} finished benchmarks with {MIN_ROWS} or more "
            f"finetuned representations; found {len(tasks)}. Add the paper's with --paper prior"
        )
    fits = [_coefficients(*task.known_points(scale), ridge) for task in tasks]
    coefficients = np.array([w for w, _ in fits])
    return Prior(
        mean=coefficients.mean(0),
        cov=np.cov(coefficients.T) + jitter * np.eye(len(FEATURES)),
        noise=float(np.mean([variance for _, variance in fits])) if noise is None else noise,
        benchmarks=tuple(task.benchmark for task in tasks),
    )


def _coefficients(points: np.ndarray, y: Sequence[float], ridge: float):
    """(ridge coefficients [6], residual variance per degree of freedom)."""
    x, target = design(points), min_max(np.asarray(y))
    w = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ target)
    return w, float(((target - x @ w) ** 2).sum() / (len(x) - x.shape[1]))
