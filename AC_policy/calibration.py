"""Intervals that hold what they promise, from the policy's own errors on finished benchmarks.

The policy runs where the best candidates are, so the performance of the poor ones is a guess far
outside of what it saw, and its Gaussian intervals would be too narrow there. It is therefore
replayed on every finished benchmark; the quantiles of its standardised errors there, after the same
number of runs, are the bounds here (a split-conformal interval over benchmarks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from AC_policy.policies import BayesOptions, bayes_states
from AC_policy.prior import MIN_BENCHMARKS
from AC_policy.study import Task

LEVELS = (0.1, 0.9)
"""Quantiles of the interval: 80 % between them."""


@dataclass(frozen=True)
class Bounds:
    """An interval as mean + low std to mean + high std; `errors` behind it, 0 where Gaussian."""

    low: float
    high: float
    errors: int


GAUSSIAN = Bounds(float(ndtri(LEVELS[0])), float(ndtri(LEVELS[1])), 0)


def replayed_errors(
    tasks: Sequence[Task], options: BayesOptions, runs: int, only: Task | None = None
) -> dict[int, list[np.ndarray]]:
    """Runs k -> per benchmark the standardised errors of what was not yet run after k runs.

    Each finished benchmark, or `only` one of them, is replayed with the prior of all the others.
    """
    found: dict[int, list[np.ndarray]] = {}
    for task in [only] if only else tasks:
        others = [other for other in tasks if other is not task]
        if not task.finished or len(others) < MIN_BENCHMARKS:
            continue
        for order, state in bayes_states(task, others, options, min(runs, task.last_open)):
            if state.scaled:
                mean, std = state.performance()
                open_n = ~state.finetuned
                errors = ((task.performance - mean) / std)[open_n]
                found.setdefault(len(order), []).append(errors)
    return found


def bounds_after(tasks: Sequence[Task], options: BayesOptions, runs: int) -> Bounds:
    """Bounds after `runs` runs, learned on the finished ones of `tasks`."""
    return bounds_from(replayed_errors(tasks, options, runs).get(runs, []))


def bounds_from(errors: Sequence[np.ndarray]) -> Bounds:
    """Bounds from standardised errors; they always hold the prediction itself."""
    if len(errors) < MIN_BENCHMARKS:
        return GAUSSIAN
    pooled = np.concatenate(errors)
    low, high = np.quantile(pooled, LEVELS)
    return Bounds(min(float(low), 0.0), max(float(high), 0.0), len(pooled))
