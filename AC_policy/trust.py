"""Whether the transferred law holds on a study's own benchmarks, before anything is ranked by it.

On each benchmark with enough finetuned rows every row is predicted from the others, with the prior
of the other benchmarks. The leave-one-out R² is compared with its null: the same with performance
shuffled among the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from AC_policy.policies import BayesOptions
from AC_policy.posterior import left_out
from AC_policy.prior import learn_prior
from AC_policy.study import Task
from llava.errors import TableError

MIN_ROWS = 5
"""4 rows have 24 orders, so that even a perfect law could not reach LEVEL with certainty."""
LEVEL = 0.05
SHUFFLES = 999


@dataclass(frozen=True)
class LawTest:
    """The law on one benchmark: it holds where its left-out R² beats its null at LEVEL."""

    benchmark: str
    n: int
    r2_loo: float
    null_p95: float
    p_value: float
    prior_from: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the law predicts left-out rows better than chance."""
        return self.p_value <= LEVEL


@dataclass(frozen=True)
class Trust:
    """How far to trust a ranking: `holds`, `fails` or `not testable yet`, and why."""

    verdict: str
    reason: str
    tests: list[LawTest]
    """On the study's own benchmarks."""
    elsewhere: list[LawTest]
    """On the paper's benchmarks, where they lend the prior."""


def law_test(
    task: Task, others: Sequence[Task], options: BayesOptions, scale: str, seed: int
) -> LawTest:
    """Tests the law on the finetuned rows of `task`, its prior learned from `others`."""
    prior = learn_prior(others, scale, options.ridge, options.jitter, options.noise)
    points, y = task.known_points(scale)
    rng = np.random.default_rng([seed, *task.benchmark.encode()])
    shuffled = rng.permuted(np.tile(y, (SHUFFLES, 1)), axis=1)
    every = np.concatenate([y[None], shuffled])
    predicted = left_out(points, every, prior, options.scale_range)
    r2 = 1 - ((every - predicted) ** 2).sum(1) / ((y - y.mean()) ** 2).sum()
    return LawTest(
        task.benchmark,
        len(y),
        float(r2[0]),
        float(np.quantile(r2[1:], 1 - LEVEL)),
        float((1 + (r2[1:] >= r2[0]).sum()) / (1 + SHUFFLES)),
        prior.benchmarks,
    )


def judge(
    task: Task,
    own: Sequence[Task],
    lent: Sequence[Task],
    options: BayesOptions,
    scale: str = "candidates",
    seed: int = 0,
) -> Trust:
    """The verdict for ranking `task`.

    Args:
        task: the benchmark to rank on.
        own: the study's other benchmarks.
        lent: benchmarks of the paper that the prior is also learned from.
    """
    study = [task, *own]
    tests = []
    for tested in study:
        if tested.finetuned.sum() >= MIN_ROWS and np.ptp(tested.performance[tested.finetuned]) > 0:
            rest = [*(other for other in study if other is not tested), *lent]
            try:
                tests.append(law_test(tested, rest, options, scale, seed))
            except TableError:  # too few benchmarks beside this one to learn a prior from
                continue
    elsewhere = [
        law_test(other, [o for o in lent if o is not other], options, "candidates", seed)
        for other in lent
    ]
    return Trust(*_verdict(task, tests, elsewhere), tests, elsewhere)


def _verdict(task: Task, tests: list[LawTest], elsewhere: list[LawTest]) -> tuple[str, str]:
    own = [test for test in tests if test.benchmark == task.benchmark]
    rows = int(task.finetuned.sum())
    if own:
        test = own[0]
        figures = (
            f"left-out R² {test.r2_loo:.2f} on {test.n} finetuned rows of this benchmark, "
            f"null's 95th percentile {test.null_p95:.2f}, p = {test.p_value:.3f}"
        )
        return ("holds" if test.holds else "fails"), figures
    if tests:
        passed = sum(test.holds for test in tests)
        reason = (
            f"{rows} of {MIN_ROWS} rows needed are finetuned here; it holds on {passed} of "
            f"{len(tests)} other benchmarks of this study"
        )
        return ("holds" if passed > len(tests) / 2 else "fails"), reason
    reason = f"{rows} of {MIN_ROWS} rows needed are finetuned"
    if elsewhere:
        passed = sum(test.holds for test in elsewhere)
        reason += f"; on the paper's table it holds on {passed} of {len(elsewhere)} benchmarks"
    return "not testable yet", reason
