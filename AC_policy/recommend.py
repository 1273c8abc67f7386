"""What to finetune next, when to stop and how sure that is, from a study's scores and runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from AC_policy.calibration import GAUSSIAN, Bounds, bounds_after
from AC_policy.noise import result_noise
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions, bayes_states, may_stop, propose
from AC_policy.posterior import Odds, Posterior, posterior
from AC_policy.prior import learn_prior
from AC_policy.study import Study, Task
from AC_policy.trust import Trust, judge
from llava.costs import Savings, savings
from llava.errors import UsageError

TOP = 3


@dataclass(frozen=True)
class Candidate:
    """One row of the ranking; `low` and `high` bound an 80 % interval, None where unknown.

    Of a finetuned row it is the noise of its result, of another the calibrated prediction.
    """

    representation: str
    rank: int
    finetuned: bool
    measured: float | None
    predicted: float | None
    low: float | None
    high: float | None
    p_best: float
    p_top3: float
    a: float
    c: float


@dataclass(frozen=True)
class ReplayStep:
    """What the policy would have said after `k` runs."""

    k: int
    finetuned: str | None
    """The run just made."""
    held: str | None
    p_best_held: float | None
    expected_regret: float | None
    true_regret: float | None
    stop: bool


@dataclass(frozen=True)
class Recommendation:
    """The answer of `law policy recommend` for one benchmark."""

    benchmark: str
    unit: str
    k: int
    n: int
    trust: Trust
    ranking: list[Candidate] | None
    """None where the law fails and a ranking was not asked for all the same."""
    next: str | None
    """Representation to finetune next; None where to stop or where nothing is ranked."""
    stop: bool
    take: str | None
    """The best representation finetuned so far."""
    take_ties: list[str]
    """Other finetuned ones within its noise."""
    noise: float | None
    """Standard deviation of its result, in `unit`."""
    interval_errors: int
    """Errors on finished benchmarks that the intervals were learned from; 0: Gaussian intervals."""
    expected_regret: float | None
    """Of stopping now, as a fraction of the range that the candidates' performances span."""
    tolerance: float
    savings: Savings
    prior_from: tuple[str, ...]
    scale: str
    protocols: dict[str, list[str]]
    replay: list[ReplayStep] | None


def recommend(
    study: Study,
    benchmark: str,
    paper: str = "prior",
    options: BayesOptions | None = None,
    scale: str = "candidates",
    cost: str = "paper",
    rank_anyway: bool = False,
    replay: bool = False,
    seed: int = 0,
) -> Recommendation:
    """Recommends on one benchmark of a study.

    Args:
        paper: `prior` lends the paper's benchmarks to the prior; `off` and `join` (the paper's
            rows are in the study already) do not.
        options: constants of `bayes`, the tolerance of its stopping rule among them.
        scale: A and C min-max over all `candidates` or over the `finetuned` rows.
        cost: name of a cost model.
        rank_anyway: rank also where the law fails its test on this study.
        replay: add what the policy would have said run by run, where all are finetuned.

    Raises:
        UsageError: unknown benchmark or cost model, `replay` on an unfinished benchmark.
        TableError: too few finished benchmarks to learn a prior from.
    """
    options = options or BayesOptions()
    task = study.task(benchmark)
    own = [other for other in study.tasks.values() if other is not task]
    lent = list(paper_study().tasks.values()) if paper == "prior" else []
    if replay and not task.finished:
        raise UsageError(
            f"{task.benchmark}: --replay needs every candidate finetuned; "
            f"{int(task.finetuned.sum())} of {len(task.performance)} are"
        )
    k, n = int(task.finetuned.sum()), len(task.performance)
    if scale == "finetuned" and k < 2:
        raise UsageError(f"--scale finetuned needs 2 finetuned rows; {task.benchmark} has {k}")
    trust = judge(task, own, lent, options, scale, seed)
    prior = learn_prior([*own, *lent], scale, options.ridge, options.jitter, options.noise)
    noise = result_noise(task)
    state = posterior(task.points(scale), task.performance, prior, noise, options.scale_range)
    odds = state.simulate(options.draws, np.random.default_rng(seed), TOP)
    held = state.incumbent()
    bounds = bounds_after([*own, *lent], options, k)
    ranked = trust.verdict != "fails" or rank_anyway
    stop = may_stop(state, odds.regret, options.tolerance) if ranked else task.finished
    following = propose(state, options.beta) if ranked and not stop else None
    names = task.representations
    return Recommendation(
        benchmark=task.benchmark,
        unit=task.unit,
        k=k,
        n=n,
        trust=trust,
        ranking=_ranking(task, state, odds, bounds) if ranked else None,
        next=None if following is None else names[following],
        stop=stop,
        take=None if held is None else names[held],
        take_ties=_ties(task, held, noise),
        noise=None if held is None else float(noise[held]),
        interval_errors=bounds.errors,
        expected_regret=odds.regret if ranked and k else None,
        tolerance=options.tolerance,
        savings=savings(cost, n, k),
        prior_from=prior.benchmarks,
        scale=scale,
        protocols=study.protocols,
        replay=_replay(task, [*own, *lent], options, seed) if replay else None,
    )


def _ranking(task: Task, state: Posterior, odds: Odds, bounds: Bounds) -> list[Candidate]:
    predicted = low = high = np.full(len(task.performance), np.nan)
    if state.scaled:
        predicted, std = state.performance()
        low = predicted + np.where(state.finetuned, GAUSSIAN.low, bounds.low) * std
        high = predicted + np.where(state.finetuned, GAUSSIAN.high, bounds.high) * std
        if task.unit == "percent":
            low, high = (np.clip(bound, *_PERCENT[task.sign]) for bound in (low, high))
        if task.sign < 0:
            low, high = high, low
    order = np.argsort(-state.mean, kind="stable")
    return [
        Candidate(
            representation=task.representations[i],
            rank=rank,
            finetuned=bool(task.finetuned[i]),
            measured=_number(task.sign * task.performance[i]),
            predicted=_number(task.sign * predicted[i]),
            low=_number(task.sign * low[i]),
            high=_number(task.sign * high[i]),
            p_best=float(odds.best[i]),
            p_top3=float(odds.among_top[i]),
            a=float(task.measured_scores[i, 0]),
            c=float(task.measured_scores[i, 1]),
        )
        for rank, i in enumerate(order, 1)
    ]


_PERCENT = {1: (0.0, 100.0), -1: (-100.0, 0.0)}
"""Limits of a percentage, oriented so that higher is better."""


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ties(task: Task, held: int | None, noise: np.ndarray) -> list[str]:
    """Finetuned candidates whose result lies within the noise of the best one's."""
    if held is None:
        return []
    close = task.performance[held] - task.performance <= noise[held]
    return [task.representations[i] for i in np.flatnonzero(close) if i != held]


def _replay(
    task: Task, others: Sequence[Task], options: BayesOptions, seed: int
) -> list[ReplayStep]:
    """Steps up to the first at which the policy stops."""
    regret_of = (task.performance.max() - task.performance) / np.ptp(task.performance)
    steps = []
    for order, state in bayes_states(task, others, options, len(task.performance)):
        odds = state.simulate(options.draws, np.random.default_rng(seed), TOP)
        held = state.incumbent()
        stop = may_stop(state, odds.regret, options.tolerance)
        names = task.representations
        steps.append(
            ReplayStep(
                k=len(order),
                finetuned=names[order[-1]] if order else None,
                held=None if held is None else names[held],
                p_best_held=None if held is None else float(odds.best[held]),
                expected_regret=_number(odds.regret),
                true_regret=None if held is None else float(regret_of[held]),
                stop=stop,
            )
        )
        if stop:
            break
    return steps
