"""How often a policy would have found the best representation, replayed on finished benchmarks.

First hit is the published figure: the best setting was in the top 3 at *some* step up to k, which
nobody can see without knowing the answer. Recall and regret at fixed k are what a user gets.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from AC_policy import metrics
from AC_policy.baselines import baselines
from AC_policy.calibration import GAUSSIAN, bounds_from, replayed_errors
from AC_policy.noise import tie_band
from AC_policy.paper import is_paper, published_policy
from AC_policy.policies import REPLAYS, BayesOptions, Replay, Setting
from AC_policy.prior import MIN_BENCHMARKS
from AC_policy.study import Study, Task
from llava import catalog
from llava.errors import TableError, UsageError, unknown_name
from llava.log import get_logger

logger = get_logger("policy")

CURVES = (
    "first_hit",
    "recall_at_3",
    "recall_at_1",
    "regret_top3",
    "regret_top3_ties",
    "regret_held",
    "weighted_tau",
)
MIN_CANDIDATES = 5


@dataclass(frozen=True)
class BenchmarkBacktest:
    """One benchmark: every curve is an array [n + 1] over k = 0 to n finetuning runs.

    Attributes:
        best: the representation that is best in truth.
        curves: name in CURVES -> mean over trials; NaN where the policy gives no ranking.
            `regret_held` is of the best representation finetuned so far, `regret_top3` of the best
            of the three ranked first, `regret_top3_ties` with ties inside the noise band.
        largest_regret: [n + 1] over trials, of the best of the top 3.
        stopped: (runs, regret of what is held then) where the policy stops by itself.
        order: the order of finetuning, where there is one trial.
        expected_regret: [n + 1] what the stopping rule compares, where there is one.
        noise_band: fraction of the range inside which results tie.
    """

    best: str
    curves: dict[str, np.ndarray]
    largest_regret: np.ndarray
    stopped: tuple[int, float] | None
    order: list[str] | None
    expected_regret: np.ndarray | None
    noise_band: float


@dataclass(frozen=True)
class Backtest:
    """A policy replayed on every finished benchmark of a study."""

    policy: str
    setting: Setting
    tasks: list[Task]
    benchmarks: dict[str, BenchmarkBacktest]
    lent: Sequence[Task] = ()

    @functools.cached_property
    def baselines(self) -> dict[str, dict[str, dict[str, float]]]:
        """Ranking without finetuning -> benchmark -> recall_at_3, regret_top3, weighted_tau."""
        return baselines(self.tasks, self.lent)

    @functools.cached_property
    def coverage(self) -> dict[int, tuple[float, float]] | None:
        """Runs k -> share of the not yet finetuned inside their 80 % interval.

        Calibrated on the other benchmarks as in use, and Gaussian as the model has it. Only `bayes`
        gives intervals.
        """
        if self.policy != "bayes":
            return None
        return _coverage(self.tasks, self.setting.bayes, self.lent)

    def mean(self, curve: str) -> np.ndarray:
        """Mean over benchmarks [shortest n + 1]."""
        curves = [result.curves[curve] for result in self.benchmarks.values()]
        length = min(map(len, curves))
        return np.mean([values[:length] for values in curves], 0)


def backtest(
    study: Study,
    policy: str,
    setting: Setting | None = None,
    noise_band: float | None = None,
    lent: Sequence[Task] = (),
) -> Backtest:
    """Replays `policy` (`paper`, `bayes` or `random`) on every benchmark that is finished.

    For `bayes` each benchmark's prior comes from the others of the study, never from itself.

    Args:
        study: its finished benchmarks are replayed.
        policy: `paper`, `bayes` or `random`.
        setting: trials, seed, scale, and the constants of `bayes`.
        noise_band: fraction of the range inside which results tie; default: the noise of each
            benchmark's best result, see `tie_band`.
        lent: benchmarks from elsewhere that teach the prior, too.

    Raises:
        UsageError: unknown policy.
        TableError: no benchmark on which all of at least MIN_CANDIDATES candidates are finetuned.
    """
    if policy not in REPLAYS:
        raise UsageError(unknown_name("policy", policy, REPLAYS))
    setting = setting or Setting()
    if setting.trials < 1:
        raise UsageError(f"--trials is {setting.trials}; expected 1 or more")
    tasks = finished_tasks(study)
    found = {}
    for task in tasks:
        others = [*(other for other in tasks if other is not task), *lent]
        band = tie_band(task) if noise_band is None else noise_band
        found[task.benchmark] = _score(task, REPLAYS[policy](task, others, setting), band)
    return Backtest(policy, setting, tasks, found, lent)


def finished_tasks(study: Study) -> list[Task]:
    """The benchmarks whose truth is known for every candidate."""
    tasks = []
    for name, task in study.tasks.items():
        n, k = len(task.performance), int(task.finetuned.sum())
        if k < n:
            logger.warning("%s: %d of %d candidates finetuned, not backtested", name, k, n)
        elif n < MIN_CANDIDATES or np.ptp(task.performance) == 0:
            logger.warning("%s: %d candidates, too few or all equal, not backtested", name, n)
        else:
            tasks.append(task)
    if not tasks:
        raise TableError(
            f"a backtest needs a benchmark on which at least {MIN_CANDIDATES} candidates, and all "
            f"of them, are finetuned; none of {', '.join(study.tasks)} is"
        )
    return tasks


def _score(task: Task, replay: Replay, noise_band: float) -> BenchmarkBacktest:
    truth = task.performance
    regret_of = metrics.normalised_regret(truth)
    trials, n = replay.orders.shape
    curves = {name: np.full(n + 1, np.nan) for name in CURVES}
    largest = np.full(n + 1, np.nan)
    held = np.minimum.accumulate(regret_of[replay.orders], axis=1)
    curves["regret_held"][1:] = held.mean(0)
    hit_so_far = np.zeros(trials, bool)
    for k, step in enumerate(replay.steps):
        hit = np.zeros(trials, bool)
        if step.scores is not None:
            regret = metrics.top_regret(truth, step.scores, metrics.TOP)[step.which]
            tied = metrics.with_ties(regret, noise_band)
            first = regret_of[metrics.top(step.scores, 1)[:, 0]][step.which]
            tau = metrics.weighted_tau(truth, step.scores)[step.which]
            hit = regret == 0
            curves["recall_at_3"][k] = hit.mean()
            curves["recall_at_1"][k] = (first == 0).mean()
            curves["regret_top3"][k] = regret.mean()
            curves["regret_top3_ties"][k] = tied.mean()
            curves["weighted_tau"][k] = tau.mean()
            largest[k] = regret.max()
        if k and (step.scores is None or replay.hit_needs_training):
            hit = held[:, k - 1] == 0
        elif replay.hit_needs_training:
            hit = np.zeros(trials, bool)
        hit_so_far |= hit
        curves["first_hit"][k] = hit_so_far.mean()
    stopped = None
    if replay.stopped is not None:
        stopped = replay.stopped, float(held[0, replay.stopped - 1])
    return BenchmarkBacktest(
        best=task.representations[int(truth.argmax())],
        curves=curves,
        largest_regret=largest,
        stopped=stopped,
        order=[task.representations[i] for i in replay.orders[0]] if trials == 1 else None,
        expected_regret=replay.regret,
        noise_band=noise_band,
    )


def _coverage(
    tasks: list[Task], options: BayesOptions, lent: Sequence[Task]
) -> dict[int, tuple[float, float]] | None:
    """Coverage of 80 % intervals whose bounds never saw the benchmark they are judged on."""
    every = [*tasks, *lent]
    if len(every) < MIN_BENCHMARKS + 2:
        return None
    longest = max(task.last_open for task in tasks)
    inside: dict[int, list[tuple[float, float]]] = {}
    for task in tasks:
        others = [other for other in every if other is not task]
        learned = replayed_errors(others, options, longest)
        mine = replayed_errors(every, options, task.last_open, only=task)
        for k, (errors,) in mine.items():
            shares = [
                float(((errors >= bounds.low) & (errors <= bounds.high)).mean())
                for bounds in (bounds_from(learned.get(k, [])), GAUSSIAN)
            ]
            inside.setdefault(k, []).append(tuple(shares))
    return {k: tuple(np.mean(shares, 0).tolist()) for k, shares in sorted(inside.items())}


def to_json(result: Backtest, study: Study) -> dict:
    """What `law policy backtest --json` writes; curves are lists over k = 0 to n."""
    published = published_policy() if is_paper(study) else {}
    benchmarks = {}
    for name, entry in result.benchmarks.items():
        benchmarks[name] = {
            "display": catalog.display_benchmark(name),
            "best": entry.best,
            "k": list(range(len(entry.largest_regret))),
            **entry.curves,
            "largest_regret_top3": entry.largest_regret,
            "expected_regret": entry.expected_regret,
            "stopped": entry.stopped
            and {"finetunings": entry.stopped[0], "regret": entry.stopped[1]},
            "order": entry.order,
            "noise_band": entry.noise_band,
        }
        if name in published:
            k = int(published[name][0])
            benchmarks[name]["table1"] = {
                "finetunings": k,
                "published_first_hit": published[name][1] / 100,
                "first_hit": entry.curves["first_hit"][k],
                "recall_at_3": entry.curves["recall_at_3"][k],
            }
    mean = {curve: result.mean(curve) for curve in CURVES}
    return {
        "policy": result.policy,
        "a": study.a,
        "protocols": study.protocols,
        "scale": result.setting.scale,
        "trials": 1 if result.policy == "bayes" else result.setting.trials,
        "seed": result.setting.seed,
        "constants": vars(result.setting.bayes) if result.policy == "bayes" else None,
        "benchmarks": benchmarks,
        "mean": {"k": list(range(len(mean["first_hit"]))), **mean},
        "baselines": {
            name: {"benchmarks": rows, "mean": _mean_rows(rows.values())}
            for name, rows in result.baselines.items()
        },
        "coverage_80": result.coverage
        and {
            "k": list(result.coverage),
            "calibrated": [calibrated for calibrated, _ in result.coverage.values()],
            "gaussian": [gaussian for _, gaussian in result.coverage.values()],
        },
        "random_row": _random_row(result, published),
    }


def _random_row(result: Backtest, published: dict) -> dict | None:
    """Table 1's Random row beside ours, where the random policy is replayed."""
    if result.policy != "random" or "random" not in published:
        return None
    runs, percent = published["random"]
    ours = result.mean("first_hit")[int(runs)]
    return {"finetunings": int(runs), "published_first_hit": percent / 100, "first_hit": ours}


def _mean_rows(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(rows)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
