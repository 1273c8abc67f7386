"""How well A and C explain performance: R² in sample, left out, and under permutation (Table 3).

Every figure in sample stands beside its leave-one-out R² and the 95th percentile of the same R²
when performance is shuffled among the representations.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from AC_policy.features import polynomial
from AC_policy.study import Study, Task
from llava import catalog
from llava.errors import TableError
from llava.log import get_logger

logger = get_logger("policy")

MIN_ROWS = 3
RANK_TOLERANCE = 1e-6
"""Relative singular value taken as zero, as scikit-learn's LinearRegression has it from 1.7 on.
Centring leaves 2e-15 in directions that are not there; of all sets of 2 to 6 of the paper's
settings one has a real direction below it (8e-7), and would be predicted 200 ranges away."""
NULL_QUANTILE = 0.95
SHUFFLE_BUDGET = 2_000_000  # shuffled numbers per benchmark: a long table needs fewer draws
MIN_DRAWS = 40

FEATURE_SETS = {
    "random_linear": ("random", 1),
    "A_linear": ("A", 1),
    "C_linear": ("C", 1),
    "AC_linear": ("AC", 1),
    "random_degree2": ("random", 2),
    "A_degree2": ("A", 2),
    "C_degree2": ("C", 2),
    "AC_degree2": ("AC", 2),
}
"""Rows of Table 3. Random columns: one where linear, two where of degree 2, as published."""


@dataclass(frozen=True)
class Fit:
    """R² of one feature set on one benchmark (or their mean over a group)."""

    r2: float
    r2_loo: float
    """1 - PRESS / total sum of squares; NaN where leaving a row out leaves nothing to fit on."""
    null_p95: float
    """95th percentile of `r2` with performance shuffled; of random columns: of their own draws."""
    loo_null_p95: float
    """The same of `r2_loo`."""


@dataclass(frozen=True)
class LawFit:
    """Fits of a study: `benchmarks[task][feature set]` and `groups[group][feature set]`."""

    benchmarks: dict[str, dict[str, Fit]]
    groups: dict[str, dict[str, Fit]]
    rows: dict[str, int]
    """Benchmark -> finetuned representations that were fitted on."""
    draws: dict[str, int]
    """Benchmark -> shuffles behind its null."""
    scale: str


def fit_law(study: Study, scale: str = "candidates", draws: int = 1000, seed: int = 0) -> LawFit:
    """Fits every feature set of Table 3 on every benchmark of the study.

    Args:
        study: at least MIN_ROWS finetuned representations on some benchmark.
        scale: A and C min-max over all `candidates` or over the `finetuned` ones.
        draws: shuffles of performance, and draws of random columns.
        seed: of both.

    Raises:
        TableError: too few rows everywhere, or performance that does not vary.
    """
    tasks = study.measured(MIN_ROWS)
    if not tasks:
        most = max((int(task.finetuned.sum()) for task in study.tasks.values()), default=0)
        raise TableError(
            f"a fit needs at least {MIN_ROWS} finetuned representations with A and C on one "
            f"benchmark; the most here is {most}"
        )
    for name, task in study.tasks.items():
        if task not in tasks:
            logger.warning("%s: fewer than %d finetuned rows, not fitted", name, MIN_ROWS)
    nulls = _Nulls(draws, seed)
    fits = {task.benchmark: _fit_task(task, scale, nulls) for task in tasks}
    _add_random(fits, tasks, nulls)
    return LawFit(
        benchmarks={
            task.benchmark: {key: fits[task.benchmark][key][0] for key in FEATURE_SETS}
            for task in tasks
        },
        groups=_groups(fits),
        rows={task.benchmark: int(task.finetuned.sum()) for task in tasks},
        draws={task.benchmark: nulls.count(int(task.finetuned.sum())) for task in tasks},
        scale=scale,
    )


class _Nulls:
    """Shuffles and random columns; benchmarks of one size share them, so groups have a null too."""

    def __init__(self, draws: int, seed: int):
        self.draws, self.seed = draws, seed
        self._orders: dict[int, np.ndarray] = {}

    def count(self, rows: int) -> int:
        return min(self.draws, max(MIN_DRAWS, SHUFFLE_BUDGET // rows))

    def orders(self, rows: int) -> np.ndarray:
        """Permutations [D, rows]."""
        if rows not in self._orders:
            rng = np.random.default_rng([self.seed, rows, 0])
            straight = np.tile(np.arange(rows, dtype=np.int32), (self.count(rows), 1))
            self._orders[rows] = rng.permuted(straight, axis=1)
        return self._orders[rows]

    def uniform(self, rows: int) -> Iterator[np.ndarray]:
        """Uniform columns [rows, 2], one draw after another."""
        rng = np.random.default_rng([self.seed, rows, 1])
        for _ in range(self.count(rows)):
            yield rng.random((rows, 2))


def _fit_task(task: Task, scale: str, nulls: _Nulls) -> dict[str, tuple[Fit, np.ndarray]]:
    """Feature set of A and C -> (fit, its null's R² [D])."""
    points, y = task.known_points(scale)
    if np.ptp(y) == 0:
        raise TableError(
            f"{task.benchmark}: all {len(y)} performances are {y[0]:g} {task.unit}; "
            f"a law needs performance that differs"
        )
    shuffled = y[nulls.orders(len(y))]
    columns = {"A": points[:, :1], "C": points[:, 1:], "AC": points}
    found = {}
    for name, (scores, degree) in FEATURE_SETS.items():
        if scores != "random":
            features = polynomial(columns[scores], degree)
            r2, loo = r_squared(features, y)
            null_r2, null_loo = r_squared(features, shuffled)
            fit = Fit(float(r2), float(loo), _p95(null_r2), _p95(null_loo))
            found[name] = fit, null_r2
    return found


def _add_random(fits: dict, tasks: list[Task], nulls: _Nulls) -> None:
    """Mean over draws of random columns; the published rows of Table 3 are single draws.

    Benchmarks of one size share the columns, so each draw is decomposed once for all of them.
    """
    by_rows: dict[int, list[Task]] = {}
    for task in tasks:
        by_rows.setdefault(int(task.finetuned.sum()), []).append(task)
    for rows, alike in by_rows.items():
        y = np.stack([task.performance[task.finetuned] for task in alike])
        for name, (scores, degree) in FEATURE_SETS.items():
            if scores == "random":
                drawn = [
                    r_squared(polynomial(columns[:, :degree], degree), y)
                    for columns in nulls.uniform(rows)
                ]
                r2, loo = np.moveaxis(np.array(drawn), 0, -1)
                for index, task in enumerate(alike):
                    fit = Fit(
                        float(r2[index].mean()),
                        float(loo[index].mean()),
                        _p95(r2[index]),
                        _p95(loo[index]),
                    )
                    fits[task.benchmark][name] = fit, r2[index]


def _p95(values: np.ndarray) -> float:
    return float(np.quantile(values, NULL_QUANTILE)) if np.isfinite(values).all() else np.nan


def r_squared(features: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R² in sample, leave-one-out R²) of least squares with intercept, for y [n] or [D, n].

    Leaving a row out needs no refit: its residual grows by 1 / (1 - leverage). Where a leverage is
    1 the row alone carries a direction, and those rows are refitted without it (minimum norm).
    """
    centred = features - features.mean(0)
    basis = _basis(centred)
    deviation = y - y.mean(-1, keepdims=True)
    total = (deviation**2).sum(-1)
    residual = deviation - (deviation @ basis) @ basis.T
    left = 1.0 - 1.0 / len(centred) - (basis**2).sum(1)
    refit = left < 1e-9
    press = residual / np.where(refit, 1.0, left)
    for row in np.flatnonzero(refit):
        press[..., row] = _left_out(features, y, row)
    return 1.0 - (residual**2).sum(-1) / total, 1.0 - (press**2).sum(-1) / total


def _basis(centred: np.ndarray) -> np.ndarray:
    """Orthonormal columns [n, rank] of the space that centred features [n, f] span."""
    q, r = np.linalg.qr(centred)
    u, singular, _ = np.linalg.svd(r)
    return q @ u[:, singular > RANK_TOLERANCE * singular.max(initial=0.0)]


def _left_out(features: np.ndarray, y: np.ndarray, row: int) -> np.ndarray:
    """Error of predicting row `row` from all others, minimum norm; y [..., n]."""
    rest = np.arange(len(features)) != row
    mean, centre = features[rest].mean(0), y[..., rest].mean(-1, keepdims=True)
    solve = np.linalg.pinv(features[rest] - mean, rcond=RANK_TOLERANCE)
    predicted = centre[..., 0] + (y[..., rest] - centre) @ solve.T @ (features[row] - mean)
    return y[..., row] - predicted


def _groups(fits: dict[str, dict[str, tuple[Fit, np.ndarray]]]) -> dict[str, dict[str, Fit]]:
    """Mean over each group's benchmarks; shuffles are joint where they share their size."""
    members: dict[str, list[str]] = {}
    for name in fits:
        members.setdefault(catalog.group(name), []).append(name)
    return {group: _mean(fits, names) for group, names in members.items()}


def _mean(fits: dict, names: Iterable[str]) -> dict[str, Fit]:
    found = {}
    for key in FEATURE_SETS:
        parts = [fits[name][key] for name in names]
        sizes = {len(null) for _, null in parts}
        null = np.mean([null for _, null in parts], 0) if len(sizes) == 1 else np.array([np.nan])
        values = np.array([[f.r2, f.r2_loo, f.loo_null_p95] for f, _ in parts]).mean(0)
        found[key] = Fit(float(values[0]), float(values[1]), _p95(null), float(values[2]))
    return found
