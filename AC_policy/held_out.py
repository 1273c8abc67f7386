"""How the policy carries to representations that its prior has never seen.

A backtest learns each benchmark's prior from other benchmarks of the same models. Here the
candidates are split as well: the prior comes from some of them on the other benchmarks, the policy
chooses among the rest. Beside it stand finetuning in the order of A + C, and in random order.
"""

from dataclasses import dataclass

import numpy as np

from AC_policy import metrics
from AC_policy.backtest import finished_tasks
from AC_policy.features import min_max
from AC_policy.policies import BayesOptions, Setting, replay_bayes
from AC_policy.prior import MIN_ROWS
from AC_policy.study import Study, Task
from llava.errors import TableError
from llava.log import progress

SPLITS = 60
MIN_UNSEEN = 5
DRAWS = 2_000  # for the stopping step of each split; a standard error of .001 on a regret


@dataclass(frozen=True)
class HeldOut:
    """Mean over splits and benchmarks; regret is of the best finetuned after 1, 2, ... runs."""

    splits: int
    seen: int
    """Candidates that teach the prior, on the other benchmarks."""
    unseen: int
    """Candidates that the policy chooses among."""
    regret: dict[str, list[float]]
    """`bayes`, `A+C`, `random` -> after 1 to unseen - 1 runs."""
    stops: float
    """Runs after which bayes stops by itself."""
    regret_then: float


def held_out(
    study: Study, splits: int = SPLITS, seed: int = 0, options: BayesOptions | None = None
) -> HeldOut:
    """Splits the candidates at random, and replays the policies on those not seen.

    Raises:
        TableError: fewer than MIN_ROWS + MIN_UNSEEN candidates that all benchmarks share.
    """
    options = options or BayesOptions(draws=DRAWS)
    tasks = finished_tasks(study)
    names = tasks[0].representations
    if any(task.representations != names for task in tasks) or len(names) < MIN_ROWS + MIN_UNSEEN:
        raise TableError(
            f"this needs {MIN_ROWS + MIN_UNSEEN} candidates that are finetuned on every finished "
            f"benchmark"
        )
    rng = np.random.default_rng(seed)
    unseen = len(names) - MIN_ROWS
    regrets: dict[str, list[np.ndarray]] = {"bayes": [], "A+C": [], "random": []}
    stops = []
    for _ in progress(range(splits), "held-out candidates"):
        order = rng.permutation(len(names))
        for task in tasks:
            others = [other.only(order[:MIN_ROWS]) for other in tasks if other is not task]
            own = task.only(order[MIN_ROWS:])
            if np.ptp(own.performance) == 0:
                continue
            replay = replay_bayes(own, others, Setting(bayes=options))
            by_sum = np.argsort(-min_max(own.scores).sum(1), kind="stable")
            for name, chosen in (
                ("bayes", replay.orders[0]),
                ("A+C", by_sum),
                ("random", rng.permutation(unseen)),
            ):
                regrets[name].append(_held_regret(own, chosen))
            stops.append((replay.stopped, regrets["bayes"][-1][replay.stopped - 1]))
    runs, then = np.mean(stops, 0)
    return HeldOut(
        splits=splits,
        seen=MIN_ROWS,
        unseen=unseen,
        regret={name: np.mean(rows, 0)[:-1].tolist() for name, rows in regrets.items()},
        stops=float(runs),
        regret_then=float(then),
    )


def _held_regret(task: Task, order: np.ndarray) -> np.ndarray:
    """[n] regret of the best one held after each run."""
    return np.minimum.accumulate(metrics.normalised_regret(task.performance)[order])
