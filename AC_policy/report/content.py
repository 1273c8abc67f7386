"""What the report shows, computed once: every number of the page comes from here."""

import importlib.metadata
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from AC_policy import backtest as backtests
from AC_policy.law import LawFit, fit_law
from AC_policy.paper import paper_study
from AC_policy.policies import REPLAYS, BayesOptions, Setting
from AC_policy.recommend import Recommendation, recommend
from AC_policy.report.correspondence import Correspondence
from AC_policy.report.correspondence import read as read_correspondence
from AC_policy.study import Study, Task
from llava import __version__, catalog
from llava.errors import TableError, UsageError
from llava.log import progress

PACKAGES = ("numpy", "scipy", "scikit-learn", "matplotlib")


@dataclass(frozen=True)
class Content:
    """Everything on the page; in the place of what a study is too small for, the reason."""

    study: Study
    task: Task
    """The benchmark of the large figures."""
    fit: LawFit | str
    backtests: dict[str, backtests.Backtest] | str
    lent: bool
    """Whether the paper's benchmarks teach the prior, too."""
    recommendations: list[Recommendation]
    unranked: dict[str, str]
    """Benchmark -> why there is no recommendation for it."""
    at_stop: Recommendation | str
    """For `task`: what the policy knew when it stopped, or knows now."""
    sensitivity: dict | None
    correspondence: Correspondence | None
    versions: dict[str, str]
    made: str


def gather(
    study: Study,
    benchmark: str = "",
    paper: str = "prior",
    trials: int = 1000,
    cost: str = "paper",
    sensitivity: Path | None = None,
    correspondence: Path | None = None,
    seed: int = 0,
) -> Content:
    """Fits, backtests and recommends on every benchmark of the study.

    Args:
        benchmark: of the large figures; default: the study's first.
        paper: `prior` lends the paper's benchmarks to the prior, see `recommend`.
        trials: runs of the random policies.
        cost: name of a cost model.
        sensitivity: file that `law policy sensitivity --json` wrote.
        correspondence: folder with what `law c-score` left, see correspondence.py.
        seed: of everything that is drawn.
    """
    varied = _read_sensitivity(sensitivity) if sensitivity else None
    measured = read_correspondence(correspondence) if correspondence else None
    task = study.task(benchmark) if benchmark else next(iter(study.tasks.values()))
    lent = list(paper_study().tasks.values()) if paper == "prior" else []
    answers, unranked = [], {}
    for name, entry in progress(list(study.tasks.items()), "recommendations"):
        try:
            answers.append(
                recommend(study, name, paper, cost=cost, replay=entry.finished, seed=seed)
            )
        except TableError as error:
            unranked[name] = str(error)
    return Content(
        study=study,
        task=task,
        fit=_try(lambda: fit_law(study, seed=seed)),
        backtests=_try(lambda: _backtests(study, Setting(trials=trials, seed=seed), lent)),
        lent=bool(lent),
        recommendations=answers,
        unranked=unranked,
        at_stop=_try(lambda: _at_stop(study, task, paper, cost, seed)),
        sensitivity=varied,
        correspondence=measured,
        versions={
            "law": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _try(compute):
    """What `compute` gives, or why the study is too small for it, which the page then says."""
    try:
        return compute()
    except TableError as error:
        return str(error)


def _backtests(study: Study, setting: Setting, lent: list[Task]) -> dict[str, backtests.Backtest]:
    return {policy: backtests.backtest(study, policy, setting, lent=lent) for policy in REPLAYS}


def _at_stop(study: Study, task: Task, paper: str, cost: str, seed: int) -> Recommendation:
    """The ranking at the policy's own stop, where `task` is finished; else the ranking now."""
    if not task.finished:
        return recommend(study, task.benchmark, paper, cost=cost, rank_anyway=True, seed=seed)
    replay = recommend(study, task.benchmark, paper, cost=cost, replay=True, seed=seed).replay
    run = [task.representations.index(step.finetuned) for step in replay if step.finetuned]
    shown = Study(
        {**study.tasks, task.benchmark: task.hide(run)},
        study.a,
        study.protocols,
        study.sources,
        study.left_out,
    )
    return recommend(shown, task.benchmark, paper, cost=cost, rank_anyway=True, seed=seed)


def _read_sensitivity(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            "variants": list(found["variants"]),
            "nested": list(found["nested"]),
            "held_out": dict(found["held_out"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not what `law policy sensitivity --json {path}` writes ({error})"
        ) from error


def constants() -> BayesOptions:
    """The constants that the report's bayes runs with."""
    return BayesOptions()


def display(representation: str | None) -> str:
    """A representation's short name."""
    return catalog.display_representation(representation) if representation else "-"
