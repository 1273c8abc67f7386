"""How many runs the policy takes to choose among the 1,023 combinations of ten encoders.

    OMP_NUM_THREADS=1 python benchmarks/search_space.py

Nobody has trained them all, so the truth is drawn: A and C of ten encoders, of their combinations
by a rule, performance from the paper's law. What the law leaves open is as large as on the paper's
table, and belongs to the encoders (a combination has the mean of its parts'), to each combination
alone, or half to each. The law holds here by construction: these figures are the best case.
"""

import argparse
import itertools
from dataclasses import dataclass, replace

import numpy as np

from AC_policy.features import design, min_max
from AC_policy.paper import paper_study
from AC_policy.policies import BayesOptions
from AC_policy.prior import learn_prior
from AC_policy.propose import Limits, propose
from AC_policy.study import Study, Task

ENCODERS = 10
AT_ONCE = 4
MOST = 100  # finetuned at most
NEAR = 0.01  # regret that counts as having found it
DRAWS = 1_000  # for the stopping rule; a standard error of .002 on a regret


@dataclass(frozen=True)
class Outcome:
    """What the policy has run when it stops, or at MOST runs."""

    stage1: int
    stage2: int
    near: int | None
    """Finetuning runs after which the best one held was within NEAR; None: never."""
    regret: float
    """Of the best one held in the end."""


def space(seed: int, alone: float) -> Task:
    """All combinations, with every result; `alone`: share of the rest that is each one's own."""
    rng = np.random.default_rng(seed)
    chosen = [
        list(c) for k in range(1, ENCODERS + 1) for c in itertools.combinations(range(ENCODERS), k)
    ]
    own_a, own_c, own_rest = (
        rng.uniform(0.3, 0.85, ENCODERS),
        rng.uniform(0.05, 0.3, ENCODERS),
        rng.standard_normal(ENCODERS),
    )
    a = np.array([own_a[c].min() + 0.25 * np.ptp(own_a[c]) for c in chosen])
    a += np.array([len(c) > 1 for c in chosen]) * rng.normal(0, 0.01, len(chosen))
    c_score = np.array([own_c[c].mean() + 0.04 * np.log(len(c)) for c in chosen])
    shared = np.array([own_rest[c].mean() for c in chosen])
    rest = np.sqrt(1 - alone) * shared + np.sqrt(alone) * rng.standard_normal(len(chosen))
    prior = learn_prior(paper_study().tasks.values())
    law = design(np.column_stack([min_max(a), min_max(c_score)])) @ prior.mean
    y = 1000 + 500 * (law + np.sqrt(prior.noise) * rest)
    names = tuple(".".join(f"org/e{i}" for i in c) for c in chosen)
    unknown = np.full(len(names), np.nan)
    return Task("synthetic", names, np.column_stack([a, c_score]), y, unknown, "points")


def search(task: Task, estimate: bool) -> Outcome:
    """The policy until it stops; with `estimate` only the encoders have A at the beginning."""
    names = np.array(task.representations, dtype=object)
    row = {name: i for i, name in enumerate(names)}
    aligned = np.arange(len(names)) < (ENCODERS if estimate else len(names))
    finetuned: list[int] = []
    while True:
        apart = {names[i]: float(task.scores[i, 1]) for i in np.flatnonzero(~aligned)}
        shown = task.hide(finetuned).only(np.flatnonzero(aligned))
        study = Study({"synthetic": replace(shown, unaligned=apart)}, "cosine", {}, ())
        answer = propose(
            study,
            ["synthetic"],
            Limits(AT_ONCE, stage2=MOST),
            options=BayesOptions(draws=DRAWS),
            rank_anyway=True,
        )
        if answer.stop:
            break
        aligned[[row[name] for name in answer.stage1]] = True
        finetuned += [row[name] for name in answer.stage2]
    y = task.performance
    regret = np.minimum.accumulate((y.max() - y[finetuned]) / np.ptp(y))
    near = np.flatnonzero(regret <= NEAR)
    first = int(near[0]) + 1 if len(near) else None
    return Outcome(int(aligned.sum()), len(finetuned), first, float(regret[-1]))


def main() -> None:
    """Prints a line per search, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--all-a", action="store_true", help="A of everything is known beforehand")
    arguments = parser.parse_args()
    found = []
    for seed in range(arguments.seeds):
        for alone in (0.0, 0.5, 1.0):
            found.append(search(space(seed, alone), not arguments.all_a))
            print(
                f"seed {seed}, own part {alone}: A of {found[-1].stage1}, "
                f"{found[-1].stage2} finetuned, near the best after {found[-1].near}, "
                f"regret {found[-1].regret:.4f}",
                flush=True,
            )
    stage1, stage2, regret = np.mean([(f.stage1, f.stage2, f.regret) for f in found], axis=0)
    worst = max(f.regret for f in found)
    print(
        f"mean: A of {stage1:.0f}, {stage2:.0f} finetuned, regret {regret:.4f}, at most {worst:.4f}"
    )


if __name__ == "__main__":
    main()
