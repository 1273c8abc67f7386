"""The policies as a backtest replays them: what each would have ranked after every finetuning run.

A replay holds, for every number k of runs from 0 to n, the rankings that the policy gives. Trials
that have finetuned the same set share their ranking, so each set is fitted once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from AC_policy.features import min_max, polynomial
from AC_policy.law import RANK_TOLERANCE
from AC_policy.noise import result_noise
from AC_policy.posterior import SCALE_RANGE, Posterior, posterior
from AC_policy.prior import JITTER, RIDGE, learn_prior
from AC_policy.regions import sample_orders
from AC_policy.study import Task
from llava.errors import UsageError

DRAWS = 20_000
"""Samples behind P(best) and the expected regret: a standard error below 0.4 % on a chance."""
TOLERANCE = 0.01
"""Expected regret, as a fraction of the candidates' range, at which `bayes` stops."""


@dataclass(frozen=True)
class Step:
    """Rankings after k runs: trial t has `scores[which[t]]`; None where the policy has none yet."""

    scores: np.ndarray | None
    which: np.ndarray


@dataclass(frozen=True)
class Replay:
    """What a policy does on one benchmark.

    Attributes:
        orders: [T, n] the order in which each trial finetunes.
        steps: n + 1 entries, after 0 to n runs.
        hit_needs_training: a run counts as a success only when the best setting itself was
            finetuned (Table 1's Random row).
        stopped: runs after which the policy stops by its own rule, None where it has no rule.
        regret: [n + 1] expected regret that the stopping rule compares, where there is one.
    """

    orders: np.ndarray
    steps: list[Step]
    hit_needs_training: bool = False
    stopped: int | None = None
    regret: np.ndarray | None = None


@dataclass(frozen=True)
class BayesOptions:
    """Constants of `bayes`, fixed beforehand; each says where it comes from where it is defined."""

    ridge: float = RIDGE
    jitter: float = JITTER
    noise: float | None = None
    """Variance around the law; None: the mean residual variance of the prior's benchmarks."""
    scale_range: tuple[float, float] = SCALE_RANGE
    beta: float | None = None
    """Next run by mean + beta standard deviations; None: by expected gain, which needs none."""
    tolerance: float = TOLERANCE
    draws: int = DRAWS

    def __post_init__(self):
        low, high = self.scale_range
        for name, value, fits, expected in (
            ("ridge", self.ridge, self.ridge > 0, "more than 0"),
            ("jitter", self.jitter, self.jitter > 0, "more than 0"),
            ("noise", self.noise, self.noise is None or self.noise > 0, "more than 0, or null"),
            ("scale_range", self.scale_range, 0 < low < high, "two growing numbers above 0"),
            ("beta", self.beta, self.beta is None or self.beta >= 0, "0 or more, or null"),
            ("tolerance", self.tolerance, 0 <= self.tolerance < 1, "a fraction from 0 to below 1"),
            ("draws", self.draws, self.draws >= 100, "100 or more"),
        ):
            if not fits:
                raise UsageError(f"{name} is {value}; expected {expected}")


@dataclass(frozen=True)
class Setting:
    """What a replay is run with."""

    trials: int = 1000
    seed: int = 0
    scale: str = "candidates"
    bayes: BayesOptions = field(default_factory=BayesOptions)


def replay_paper(task: Task, others: Sequence[Task], setting: Setting) -> Replay:
    """The published policy: region sampling, least squares on degree 2, top of the predictions."""
    points, y = task.points(), task.performance
    orders = sample_orders(points, setting.trials, _rng(task, setting))
    return Replay(orders, _steps(orders, _paper_scores(task.scores, points, y, setting.scale)))


def replay_random(task: Task, others: Sequence[Task], setting: Setting) -> Replay:
    """Random order; ranks by what was measured, the rest behind it at random."""
    rng = _rng(task, setting)
    orders = rng.permuted(np.tile(np.arange(len(task.performance)), (setting.trials, 1)), axis=1)
    y = task.performance
    behind = y.min() - 1 - rng.random((setting.trials, len(y)))
    steps, scores = [Step(behind, np.arange(setting.trials))], behind
    for k in range(len(y)):
        scores = scores.copy()
        scores[np.arange(setting.trials), orders[:, k]] = y[orders[:, k]]
        steps.append(Step(scores, np.arange(setting.trials)))
    return Replay(orders, steps, hit_needs_training=True)


def replay_bayes(task: Task, others: Sequence[Task], setting: Setting) -> Replay:
    """`bayes`: one trial, since nothing in it is drawn but the chances of its stopping rule."""
    if setting.scale != "candidates":
        raise UsageError(
            "bayes ranks before anything is finetuned, so it scales A and C over the candidates; "
            "drop --scale finetuned or take --policy paper"
        )
    options, n = setting.bayes, len(task.performance)
    steps, regrets, stopped = [], [], None
    for order, state in bayes_states(task, others, options, n):
        steps.append(Step(state.mean[None], np.zeros(1, np.int64)))
        odds = state.simulate(options.draws, np.random.default_rng(setting.seed))
        regrets.append(odds.regret)
        if stopped is None and may_stop(state, odds.regret, options.tolerance):
            stopped = len(order)
    return Replay(np.array([order]), steps, stopped=stopped, regret=np.array(regrets))


def bayes_states(
    task: Task, others: Sequence[Task], options: BayesOptions, runs: int
) -> Iterator[tuple[list[int], Posterior]]:
    """(candidates finetuned so far, posterior) after 0 to `runs` runs that `bayes` proposes."""
    prior = learn_prior(others, "candidates", options.ridge, options.jitter, options.noise)
    points, order = task.points(), []
    for _ in range(runs + 1):
        shown = task.hide(order)
        state = posterior(
            points, shown.performance, prior, result_noise(shown), options.scale_range
        )
        yield list(order), state
        following = propose(state, options.beta)
        if following is not None:
            order.append(following)


def propose(state: Posterior, beta: float | None = None) -> int | None:
    """The candidate to finetune next, None where all are."""
    if state.finetuned.all():
        return None
    merit = state.expected_gain() if beta is None else state.upper_bound(beta)
    return int(np.argmax(np.where(state.finetuned, -np.inf, merit)))


def may_stop(state: Posterior, regret: float, tolerance: float) -> bool:
    """Stop when all are finetuned, or two runs fixed the scale and the rest promises too little."""
    return bool(state.finetuned.all() or (state.scaled and regret <= tolerance))


REPLAYS: dict[str, Callable[[Task, Sequence[Task], Setting], Replay]] = {
    "paper": replay_paper,
    "bayes": replay_bayes,
    "random": replay_random,
}


def _rng(task: Task, setting: Setting) -> np.random.Generator:
    """A stream of its own for every benchmark, whatever others are replayed beside it."""
    return np.random.default_rng([setting.seed, *task.benchmark.encode()])


def _steps(orders: np.ndarray, scores: Callable[[np.ndarray], np.ndarray]) -> list[Step]:
    """Steps of trials whose ranking depends only on the set finetuned, from the second run on."""
    trials, n = orders.shape
    steps = [Step(None, np.zeros(trials, np.int64))] * 2
    for k in range(2, n + 1):
        sets, which = np.unique(np.sort(orders[:, :k], axis=1), axis=0, return_inverse=True)
        steps.append(Step(scores(sets), which.reshape(-1)))
    return steps


def _paper_scores(raw: np.ndarray, points: np.ndarray, y: np.ndarray, scale: str):
    """Sets [U, k] -> predictions [U, n] of the law fitted on each set."""
    shared = polynomial(points)[None]

    def scores(sets: np.ndarray) -> np.ndarray:
        if scale == "candidates":
            return predict(shared, sets, y)
        own = np.stack([polynomial(min_max(raw, raw[rows])) for rows in sets])
        return predict(own, sets, y)

    return scores


def predict(features: np.ndarray, sets: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[U, n] least squares with intercept on each set of rows [U, k], minimum norm below full rank.

    `features` [U or 1, n, f]; centred as scikit-learn's LinearRegression centres.
    """
    rows = np.broadcast_to(np.arange(len(features))[:, None], sets.shape)
    chosen, target = features[rows, sets], y[sets]
    mean, centre = chosen.mean(1, keepdims=True), target.mean(1, keepdims=True)
    solve = np.linalg.pinv(chosen - mean, rcond=RANK_TOLERANCE)
    weights = solve @ (target - centre)[..., None]
    return ((features - mean) @ weights)[..., 0] + centre
