"""What to run next on several benchmarks together: stage 1 of whom, stage 2 of whom, or stop.

What a sweep asks between its rounds. Every benchmark asks for the candidates that promise it the
most; those that most benchmarks ask for come first. A candidate whose A is an estimate is asked for
as others are, with the uncertainty of its A on top of the law's, but what is then run on it is
stage 1: it is finetuned once its A is measured and it still promises the most.

The answer depends on what the table says, not on the order of its rows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from AC_policy.batch import batch
from AC_policy.candidates import View, in_order, known_names, view_of
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions, may_stop
from AC_policy.prior import learn_prior
from AC_policy.study import Study, Task
from AC_policy.trust import Trust, judge_all
from llava.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """How much may be run."""

    at_once: int = 1
    """Candidates proposed before the policy is asked again."""
    stage1: int | None = None
    """Candidates with a measured A, at most, those that have it already among them."""
    stage2: int | None = None
    """The same of finetuned ones."""

    def __post_init__(self):
        for flag, value, least in (
            ("--at-once", self.at_once, 1),
            ("--most-stage1", self.stage1, 0),
            ("--most-stage2", self.stage2, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag} is {value}; expected {least} or more")


@dataclass(frozen=True)
class Asked:
    """What one benchmark asks for."""

    next: str | None
    """What it would run next, stage 1 where its A is an estimate; None where it stops."""
    asked: list[str]
    """As many as may run at once, `next` first."""
    stop: bool
    reason: str
    expected_regret: float | None
    """Of stopping now, over all candidates, as a fraction of their range; None before two runs."""
    tolerance: float
    trust: str
    """`holds`, `fails` or `not testable yet`."""
    trust_reason: str
    take: str | None
    """The best representation finetuned so far."""
    k: int
    """Candidates finetuned, with a result on this benchmark."""
    n: int
    """Candidates, those with an estimated A among them."""
    estimated: int
    not_evaluated: list[str] = field(default_factory=list)
    """Finetuned, with a result on another benchmark and none on this one."""


@dataclass(frozen=True)
class Proposal:
    """The answer of `law policy propose`."""

    stage1: list[str]
    """Whose A to measure next."""
    stage2: list[str]
    """Whom to finetune next; the A of all of them is measured."""
    stop: bool
    reason: str
    finetuned: list[str]
    benchmarks: dict[str, Asked]
    a: str
    share: dict[str, float] | None
    """Benchmark -> where the A of a combination is taken to lie, 0 at that of its worst part and 1
    at that of its best; None where every A is measured."""
    protocols: dict[str, list[str]]


def propose(
    study: Study,
    benchmarks: Sequence[str],
    limits: Limits | None = None,
    paper: str = "prior",
    options: BayesOptions | None = None,
    rank_anyway: bool = False,
    seed: int = 0,
    without: Collection[str] = (),
) -> Proposal:
    """Proposes what to run next.

    Args:
        study: `load_study(..., unaligned=True)` lets candidates without A take part by an estimate.
        benchmarks: whose best representation is searched for.
        limits: how much may be run at once, and in all.
        paper: `prior` lends the paper's benchmarks to the prior; `off` and `join` do not.
        options: constants of `bayes`.
        rank_anyway: propose also where the law fails its test.
        seed: of the samples.
        without: representations that cannot be run, and so are no candidates unless they have been.

    Raises:
        UsageError: unknown benchmark.
        TableError: too few finished benchmarks to learn a prior from.
    """
    limits, options = limits or Limits(), options or BayesOptions()
    wanted = list(dict.fromkeys(study.task(name).benchmark for name in benchmarks))
    barred = known_names(study, without)
    tasks = [in_order(study.tasks[name]) for name in sorted(study.tasks)]
    lent = list(paper_study().tasks.values()) if paper == "prior" else []
    trusts = dict(zip(sorted(study.tasks), judge_all(tasks, lent, options, seed=seed), strict=True))
    chosen = [task for task in tasks if task.benchmark in wanted]
    progress = _Progress.of(chosen, limits)
    asked, shares = {}, {}
    for task in chosen:
        others = [other for other in tasks if other is not task]
        prior = learn_prior(
            [*others, *lent], "candidates", options.ridge, options.jitter, options.noise
        )
        view = view_of(task, study.a, prior, options, progress.stage1_left > 0, barred)
        asked[task.benchmark] = _ask(
            view, trusts[task.benchmark], progress, options, rank_anyway, seed
        )
        if not view.measured.all():
            shares[task.benchmark] = view.share
    stage1, stage2 = _elect(list(asked.values()), progress)
    stop, reason = _conclusion(asked, stage1, stage2, progress)
    return Proposal(
        stage1=[] if stop else stage1,
        stage2=[] if stop else stage2,
        stop=stop,
        reason=reason,
        finetuned=sorted(progress.finetuned),
        benchmarks={name: asked[name] for name in wanted},
        a=study.a,
        share=shares or None,
        protocols=study.protocols,
    )


@dataclass(frozen=True)
class _Progress:
    """What has been run, over all benchmarks: a run is made once, whatever it is evaluated on."""

    finetuned: frozenset[str]
    aligned: frozenset[str]
    limits: Limits

    @classmethod
    def of(cls, tasks: Sequence[Task], limits: Limits) -> "_Progress":
        return cls(
            frozenset(
                name
                for task in tasks
                for name, run in zip(task.representations, task.finetuned, strict=True)
                if run
            ),
            frozenset(name for task in tasks for name in task.representations),
            limits,
        )

    @property
    def stage1_left(self) -> float:
        most = self.limits.stage1
        return np.inf if most is None else max(most - len(self.aligned), 0)

    @property
    def stage2_left(self) -> float:
        most = self.limits.stage2
        return np.inf if most is None else max(most - len(self.finetuned), 0)


def _ask(
    view: View,
    trust: Trust,
    progress: _Progress,
    options: BayesOptions,
    rank_anyway: bool,
    seed: int,
) -> Asked:
    """What one benchmark asks for, or why it stops."""
    names, state = view.representations, view.state
    held = state.incumbent()
    elsewhere = [
        name
        for name, run in zip(names, state.finetuned, strict=True)
        if name in progress.finetuned and not run
    ]
    free = [name not in progress.finetuned for name in names]
    # Stage 1 that was run for other benchmarks gave no A on this one: running it again would not.
    again = ~view.measured & np.array([name in progress.aligned for name in names])
    merit = np.where(free & ~again, view.merit, -np.inf)
    ranked = trust.verdict != "fails" or rank_anyway
    regret, picked, why = None, [], ""
    if not ranked:
        why = f"the law fails its test: {trust.reason}"
    else:
        if state.scaled:
            regret = float(state.expected_regret(options.draws, np.random.default_rng(seed)))
        if state.finetuned.all():
            why = "every candidate is finetuned"
        elif not np.isfinite(merit).any():
            why = "no candidate is left to run"
        elif regret is not None and may_stop(state, regret, options.tolerance):
            why = (
                f"more runs promise too little: {100 * regret:.1f} % of the range, tolerance "
                f"{100 * options.tolerance:g} %"
            )
        else:
            picked = batch(state, merit, progress.limits.at_once, np.random.default_rng(seed))
    return Asked(
        next=names[picked[0]] if picked else None,
        asked=[names[i] for i in picked],
        stop=not picked,
        reason=why or "more runs promise enough",
        expected_regret=regret,
        tolerance=options.tolerance,
        trust=trust.verdict,
        trust_reason=trust.reason,
        take=None if held is None else names[held],
        k=int(state.finetuned.sum()),
        n=len(names),
        estimated=int((~view.measured).sum()),
        not_evaluated=elsewhere,
    )


def _elect(asked: Sequence[Asked], progress: _Progress) -> tuple[list[str], list[str]]:
    """(stage 1, stage 2) of those asked for, by how many benchmarks ask.

    Among equals those whose benchmarks would lose the most by stopping now, then those that are
    asked for earlier, then by name.
    """
    votes: dict[str, list[tuple[float, int]]] = {}
    for entry in asked:
        for place, name in enumerate(entry.asked):
            votes.setdefault(name, []).append((entry.expected_regret or 0.0, place))
    order = sorted(
        votes,
        key=lambda name: (
            -len(votes[name]),
            -sum(regret for regret, _ in votes[name]),
            sum(place for _, place in votes[name]) / len(votes[name]),
            name,
        ),
    )
    stage1, stage2 = [], []
    for name in order:
        if len(stage1) + len(stage2) == progress.limits.at_once:
            break
        if name in progress.aligned:
            if len(stage2) < progress.stage2_left:
                stage2.append(name)
        elif len(stage1) < progress.stage1_left:
            stage1.append(name)
    return stage1, stage2


def _conclusion(
    asked: dict[str, Asked], stage1: Sequence[str], stage2: Sequence[str], progress: _Progress
) -> tuple[bool, str]:
    """(whether to stop, why, or why not)."""
    going = [name for name, entry in asked.items() if not entry.stop]
    if not going:
        reasons: dict[str, list[str]] = {}
        for name, entry in asked.items():
            reasons.setdefault(entry.reason, []).append(name)
        if len(reasons) == 1:
            return True, next(iter(reasons))
        return True, "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    if not progress.stage2_left:
        return True, (
            f"{len(progress.finetuned)} representations are finetuned, and --most-stage2 is "
            f"{progress.limits.stage2}"
        )
    asking = f"{len(going)} of {len(asked)} benchmarks ask for more"
    return False, f"{asking}: {len(stage1)} of stage 1, {len(stage2)} of stage 2"
