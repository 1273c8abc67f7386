"""Whether the transferred law holds on a study's own benchmarks, before anything is ranked by it.

On each benchmark with enough finetuned rows every row is predicted from the others, with the prior
of the other benchmarks. The leave-one-out R² is compared with its null: the same with performance
shuffled among the rows. Rows that all stand near the top, where the policy spends its runs, cannot
tell a good law from a bad one; such a benchmark is not testable yet, rather than failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from AC_policy.left_out import left_out
from AC_policy.policies import BayesOptions
from AC_policy.prior import Prior, learn_prior
from AC_policy.study import Task
from llava.errors import TableError

MIN_ROWS = 6
MIN_SPREAD = 0.8
"""Rows, and the share of the candidates' predicted range that they span, from which the test finds
a law that holds: measured by hiding rows of the paper's eight benchmarks, where it holds, the test
then says so in 98 % of 248 cases, and in half of them or less where they span little."""
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
    task: Task, prior: Prior, options: BayesOptions, scale: str = "candidates", seed: int = 0
) -> LawTest:
    """Tests the law on the finetuned rows of `task`, with a prior that has not seen it."""
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


def untestable(task: Task, prior: Prior, scale: str = "candidates") -> str:
    """Why the law cannot be tested on the finetuned rows yet; empty where it can."""
    known = task.performance[task.finetuned]
    if len(known) < MIN_ROWS:
        return f"{len(known)} of {MIN_ROWS} rows needed are finetuned"
    if np.ptp(known) == 0:
        return "all finetuned rows perform alike"
    expected = prior.score(task.points(scale))
    spread = np.ptp(expected[task.finetuned]) / np.ptp(expected)
    if spread < MIN_SPREAD:
        return (
            f"the finetuned rows span {100 * spread:.0f} % of what the law predicts, "
            f"{100 * MIN_SPREAD:.0f} % are needed; one more that it ranks low would test it"
        )
    return ""


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
    return judge_all([task, *own], lent, options, scale, seed)[0]


def judge_all(
    study: Sequence[Task],
    lent: Sequence[Task],
    options: BayesOptions,
    scale: str = "candidates",
    seed: int = 0,
) -> list[Trust]:
    """The verdict for ranking each benchmark of a study; they share their tests."""
    tests, untested = [], {}
    for tested in study:
        rest = [*(other for other in study if other is not tested), *lent]
        try:
            prior = _prior(rest, options, scale)
            reason = untestable(tested, prior, scale)
        except TableError as error:
            reason = str(error)
        if reason:
            untested[tested.benchmark] = reason
        else:
            tests.append(law_test(tested, prior, options, scale, seed))
    elsewhere = [
        law_test(other, _prior([o for o in lent if o is not other], options), options, seed=seed)
        for other in lent
    ]
    return [
        Trust(*_verdict(task, untested.get(task.benchmark, ""), tests, elsewhere), tests, elsewhere)
        for task in study
    ]


def _prior(tasks: Sequence[Task], options: BayesOptions, scale: str = "candidates") -> Prior:
    return learn_prior(tasks, scale, options.ridge, options.jitter, options.noise)


def _verdict(
    task: Task, why: str, tests: list[LawTest], elsewhere: list[LawTest]
) -> tuple[str, str]:
    own = [test for test in tests if test.benchmark == task.benchmark]
    if own:
        test = own[0]
        figures = (
            f"left-out R² {test.r2_loo:.2f} on {test.n} finetuned rows of this benchmark, "
            f"null's 95th percentile {test.null_p95:.2f}, p = {test.p_value:.3f}"
        )
        return ("holds" if test.holds else "fails"), figures
    if tests:
        passed = sum(test.holds for test in tests)
        reason = f"{why}; it holds on {passed} of {len(tests)} other benchmarks of this study"
        return ("holds" if passed > len(tests) / 2 else "fails"), reason
    if elsewhere:
        passed = sum(test.holds for test in elsewhere)
        why += f"; on the paper's table it holds on {passed} of {len(elsewhere)} benchmarks"
    return "not testable yet", why
