"""What needs no finetuning at all, beside which every policy stands."""

from collections.abc import Iterable, Sequence

from AC_policy import metrics
from AC_policy.features import min_max
from AC_policy.prior import learn_prior
from AC_policy.study import Task
from llava.errors import TableError


def baselines(
    tasks: Iterable[Task], lent: Sequence[Task] = ()
) -> dict[str, dict[str, dict[str, float]]]:
    """Rankings that need no finetuning: A + C, A, C, the law transferred, and chance."""
    tasks = list(tasks)
    found: dict[str, dict] = {"A+C": {}, "A": {}, "C": {}, "transferred law": {}, "chance": {}}
    transferred = True
    for task in tasks:
        a, c = min_max(task.scores).T
        scores = {"A+C": a + c, "A": a, "C": c}
        try:
            prior = learn_prior([*(other for other in tasks if other is not task), *lent])
            scores["transferred law"] = prior.score(task.points())
        except TableError:
            transferred = False
        for name, score in scores.items():
            regret = float(metrics.top_regret(task.performance, score[None], metrics.TOP)[0])
            tau = float(metrics.weighted_tau(task.performance, score[None])[0])
            found[name][task.benchmark] = {
                "recall_at_3": float(regret == 0),
                "regret_top3": regret,
                "weighted_tau": tau,
            }
        recall, regret = metrics.random_top_regret(task.performance, metrics.TOP)
        found["chance"][task.benchmark] = {
            "recall_at_3": recall,
            "regret_top3": regret,
            "weighted_tau": 0.0,
        }
    if not transferred:
        del found["transferred law"]
    return found
