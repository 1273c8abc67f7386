"""The candidates of one benchmark as `propose` sees them: those with an estimated A among them."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from AC_policy.estimate_a import estimate_a, with_uncertain_a
from AC_policy.features import min_max
from AC_policy.noise import result_noise
from AC_policy.policies import BayesOptions
from AC_policy.posterior import Posterior, posterior
from AC_policy.prior import Prior
from AC_policy.study import Study, Task
from llava import catalog
from llava.log import get_logger

logger = get_logger("policy")


@dataclass(frozen=True, eq=False)
class View:
    """Candidates of one benchmark, n of them, and what is known of each.

    Attributes:
        representations: measured ones by name, then those with an estimated A by name.
        measured: bool [n] whether A is.
        state: the posterior.
        merit: [n] what a run promises, larger is better.
        share: of the estimates, see `EstimatedA`.
    """

    representations: tuple[str, ...]
    measured: np.ndarray
    state: Posterior
    merit: np.ndarray
    share: float


def in_order(task: Task) -> Task:
    """The task with its candidates by name."""
    rows = sorted(range(len(task.representations)), key=task.representations.__getitem__)
    return replace(task.only(rows), unaligned=dict(sorted(task.unaligned.items())))


def known_names(study: Study, names: Collection[str]) -> set[str]:
    """Ids of `names`; one that is no candidate is said, since it may be misspelt."""
    ids = {catalog.representation_id(name) for name in names}
    tasks = study.tasks.values()
    known = {name for task in tasks for name in (*task.representations, *task.unaligned)}
    for name in sorted(ids - known):
        logger.warning("%s is to be left out, and is no candidate in any table", name)
    return ids


def view_of(
    task: Task,
    a: str,
    prior: Prior,
    options: BayesOptions,
    estimates: bool,
    barred: Collection[str] = (),
) -> View:
    """The candidates of a task, in the order of `in_order`.

    Args:
        task: one benchmark.
        a: which A score.
        prior: of the law's coefficients.
        options: constants of `bayes`.
        estimates: whether what has C and no A takes part.
        barred: what takes part in the scales of A and C, and is no candidate unless finetuned.
    """
    apart = list(task.unaligned) if estimates else []
    unknown = np.full(len(apart), np.nan)
    names = (*task.representations, *apart)
    c = np.concatenate([task.scores[:, 1], [task.unaligned[name] for name in apart]])
    measured_a = task.scores[:, 0]
    estimate = estimate_a(names, np.concatenate([measured_a, unknown]), a)
    # C of every candidate is known; A is scaled over what is measured, so no estimate moves it.
    points = np.column_stack([min_max(estimate.a_n, measured_a), min_max(c)])
    wide = replace(
        task,
        representations=names,
        scores=np.column_stack([estimate.a_n, c]),
        performance=np.concatenate([task.performance, unknown]),
        stderr=np.concatenate([task.stderr, unknown]),
        unaligned={},
    )
    certain = posterior(points, wide.performance, prior, result_noise(wide), options.scale_range)
    state = with_uncertain_a(certain, points, estimate, np.ptp(measured_a))
    kept = np.flatnonzero(wide.finetuned | ~np.isin(names, list(barred)))
    merit = _merit(state, certain, options.beta)
    return View(
        representations=tuple(names[i] for i in kept),
        measured=estimate.measured[kept],
        state=state.only(kept),
        merit=merit[kept],
        share=estimate.share,
    )


def _merit(state: Posterior, certain: Posterior, beta: float | None) -> np.ndarray:
    """[n] what a run promises, as `policies.propose` has it.

    Before the first run that is the mean; the standard deviation that an estimated A adds is added
    to it, since stage 1 takes it away for a part of what a finetuning run costs.
    """
    if beta is not None:
        return state.upper_bound(beta)
    if state.incumbent() is None:
        return state.mean + np.sqrt(np.maximum(state.std**2 - certain.std**2, 0.0))
    return state.expected_gain()
