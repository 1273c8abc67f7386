"""How much the constants of `bayes` matter: one changed at a time, and chosen without looking.

The nested evaluation chooses the constants for each benchmark on the other benchmarks only (their
priors never see it either), then backtests that benchmark with them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from AC_policy import metrics
from AC_policy.backtest import Backtest, backtest, finished_tasks
from AC_policy.policies import BayesOptions, Setting, bayes_states
from AC_policy.prior import MIN_BENCHMARKS
from AC_policy.study import Study, Task
from llava.errors import TableError
from llava.log import progress

VARIED = {
    "ridge": (0.001, 0.01, 0.1),
    "jitter": (0.001, 0.01, 0.1, 1.0),
    "noise": (None, 0.005, 0.02, 0.05),
    "scale_range": ((0.2, 20.0), (0.5, 10.0), (0.1, 50.0)),
    "beta": (None, 0.5, 1.0, 2.0),
    "tolerance": (0.005, 0.01, 0.02, 0.05),
}
"""Constant -> values around its default."""

GRID = {name: VARIED[name] for name in ("ridge", "jitter", "noise", "beta")}
"""What the nested evaluation chooses among; the others do not move the ranking much."""

CHOSEN_AT = (3, 4, 5)
"""Runs at which regret is averaged when constants are chosen."""
DRAWS = 4_000  # for the stopping step of each variant; a standard error of .001 on a regret


@dataclass(frozen=True)
class Variant:
    """Figures of `bayes`, mean over benchmarks, with one constant changed."""

    constant: str
    value: object
    default: bool
    recall_at_3: tuple[float, float, float]
    """After 3, 4 and 5 runs."""
    regret_top3: tuple[float, float, float]
    runs: float
    """Runs until it stops by itself."""
    regret: float
    """Of what is held then."""
    worst_regret: float


@dataclass(frozen=True)
class Nested:
    """One benchmark with constants chosen on the others."""

    benchmark: str
    constants: dict[str, object]
    recall_at_3: tuple[float, ...]
    """After 0 to max(CHOSEN_AT) runs."""
    regret_top3: tuple[float, ...]


def sensitivity(study: Study, seed: int = 0) -> list[Variant]:
    """`bayes` backtested with each constant of VARIED at each of its values."""
    default = BayesOptions(draws=DRAWS)
    chosen = [(name, value) for name, values in VARIED.items() for value in values]
    found = []
    results: dict[BayesOptions, Backtest] = {}  # each constant has the defaults among its values
    for name, value in progress(chosen, "sensitivity"):
        options = replace(default, **{name: value})
        if options not in results:
            results[options] = backtest(study, "bayes", Setting(seed=seed, bayes=options))
        result = results[options]
        stops = np.array([entry.stopped for entry in result.benchmarks.values()])
        found.append(
            Variant(
                constant=name,
                value=value,
                default=getattr(default, name) == value,
                recall_at_3=tuple(result.mean("recall_at_3")[list(CHOSEN_AT)].tolist()),
                regret_top3=tuple(result.mean("regret_top3")[list(CHOSEN_AT)].tolist()),
                runs=float(stops[:, 0].mean()),
                regret=float(stops[:, 1].mean()),
                worst_regret=float(stops[:, 1].max()),
            )
        )
    return found


def nested(study: Study) -> list[Nested]:
    """The nested evaluation on every finished benchmark; raises TableError with fewer than 4."""
    tasks = finished_tasks(study)
    needed = MIN_BENCHMARKS + 2
    if len(tasks) < needed:
        raise TableError(
            f"the nested evaluation needs {needed} finished benchmarks; found {len(tasks)}"
        )
    found = []
    for task in progress(tasks, "nested evaluation"):
        others = [other for other in tasks if other is not task]
        best = min(_grid(), key=lambda options: _mean_regret(others, options))
        recall, regret = _curves(task, others, best)
        constants = {name: getattr(best, name) for name in GRID}
        found.append(
            Nested(task.benchmark, constants, tuple(recall.tolist()), tuple(regret.tolist()))
        )
    return found


def _grid() -> Iterator[BayesOptions]:
    """Every combination, the defaults first so that ties fall to them."""
    default = BayesOptions()
    yield default
    for values in itertools.product(*GRID.values()):
        yield replace(default, **dict(zip(GRID, values, strict=True)))


def _mean_regret(tasks: Sequence[Task], options: BayesOptions) -> float:
    """Regret over `tasks` at CHOSEN_AT, each with the prior of the rest of them."""
    return float(
        np.mean(
            [
                _curves(task, [other for other in tasks if other is not task], options)[1][
                    list(CHOSEN_AT)
                ]
                for task in tasks
            ]
        )
    )


def _curves(task: Task, others: Sequence[Task], options: BayesOptions):
    """(recall@3, regret of the top 3) after 0 to max(CHOSEN_AT) runs."""
    regret = np.array(
        [
            metrics.top_regret(task.performance, state.mean[None], metrics.TOP)[0]
            for _, state in bayes_states(task, others, options, max(CHOSEN_AT))
        ]
    )
    return (regret == 0).astype(float), regret
