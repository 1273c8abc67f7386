"""A of representations whose stage 1 has not been run, from the A of their parts.

An estimate decides what stage 1 is run on next and nothing else: whatever gets finetuned has its A
measured first, so no estimate is ever among the rows that the law is fitted to, nor does one move
the scale of A.

A combination lies between its parts: A = worst + share (best - worst) + e. On the paper's Table 5
the share of CLIP + DINOv2 is 0.15 (0.18 at 224 pixels, 0.13 at 336): neither the mean of the parts
(0.5) nor the best of them (1). One pair of encoders says little of other pairs, so the share starts
wide, and is learned from the combinations of the table at hand that are measured.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from AC_policy.posterior import Posterior

SHARE = {"cosine": (0.15, 0.3), "nll": (0.5, 0.5)}
"""A score -> mean and standard deviation of the share before any combination is measured. cosine:
the paper's one pair, with the spread of a share that may be anything from 0 to 1. nll: nothing is
published, and more information may well do better than the best part."""
SCATTER = 0.05
"""Standard deviation of e as a fraction of the measured A's range: the share of C+D@224 misses
C+D@336 by 0.04 of it, and the other way round."""
SCATTER_WEIGHT = 4  # measured combinations that SCATTER counts as


@dataclass(frozen=True, eq=False)
class EstimatedA:
    """A of every candidate, a = a_n + sensitivity_n (share - its mean) + own error.

    Attributes:
        a_n: measured A, or the mean of an estimate; oriented so that higher is better.
        own_n: variance of the own error; 0 where measured.
        sensitivity_n: best part - worst part; 0 where measured.
        share: mean of the share.
        share_variance: its variance, an error that all estimates have in common.
        measured: bool [n].
    """

    a_n: np.ndarray
    own_n: np.ndarray
    sensitivity_n: np.ndarray
    share: float
    share_variance: float
    measured: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """[n] standard deviation of A."""
        return np.sqrt(self.own_n + self.share_variance * self.sensitivity_n**2)


def parts(name: str, known: Collection[str]) -> list[str]:
    """The representations among `known` that `name` joins by dots, as many as possible; else [].

    A part that is known at its default size only stands for `part@336`, too.
    """
    pieces = name.split(".")
    found: dict[int, list[str]] = {0: []}
    for end in range(1, len(pieces) + 1):
        for start in (start for start in range(end) if start in found):
            text = ".".join(pieces[start:end])
            resized, _, size = text.rpartition("@")
            if text not in known and size.isdigit() and resized in known:
                text = resized
            longer = [*found[start], text]
            if text in known and text != name and len(longer) > len(found.get(end, [])):
                found[end] = longer
    whole = found.get(len(pieces), [])
    return whole if len(whole) > 1 else []


def estimate_a(names: Sequence[str], a_n: np.ndarray, score: str) -> EstimatedA:
    """A of every representation of `names`, estimated where it is not measured.

    What is no combination of others is taken as one more of those that are measured: their mean
    and spread.

    Args:
        names: every candidate.
        a_n: their A, oriented, NaN where not measured; at least two are.
        score: `cosine` or `nll`.
    """
    measured = np.isfinite(a_n)
    row = {name: i for i, name in enumerate(names)}
    parts_of = [[row[part] for part in parts(name, row)] for name in names]
    joined = np.array([bool(found) for found in parts_of])
    singles = measured & ~joined if (measured & ~joined).sum() > 1 else measured
    a, own = a_n.copy(), np.zeros(len(names))
    unknown = ~measured & ~joined
    a[unknown], own[unknown] = a_n[singles].mean(), a_n[singles].var(ddof=1)

    spread = np.ptp(a_n[measured])
    ends = np.zeros((len(names), 2), int)  # rows of the worst and of the best part
    for i in np.flatnonzero(joined):
        order = sorted(parts_of[i], key=a.__getitem__)
        ends[i] = order[0], order[-1]
    worst, best = a[ends].T
    taught = np.flatnonzero(joined & measured & measured[ends].all(1))
    share, share_variance, scatter = _share(
        a_n[taught] - worst[taught], best[taught] - worst[taught], *SHARE[score], SCATTER * spread
    )
    to_do = joined & ~measured
    weights = np.array([1 - share, share])
    a[to_do] = (worst + share * (best - worst))[to_do]
    own[to_do] = scatter + (own[ends] @ weights**2)[to_do]
    sensitivity = np.where(to_do, best - worst, 0.0)
    return EstimatedA(a, own, sensitivity, share, share_variance, measured)


def _share(above: np.ndarray, gap: np.ndarray, mean: float, std: float, scatter: float):
    """(mean and variance of the share, variance of e) after `above` = share * `gap` + e."""

    def fit(variance: float) -> tuple[float, float]:
        precision = 1 / std**2 + (gap @ gap) / variance
        return (mean / std**2 + (gap @ above) / variance) / precision, 1 / precision

    share, _ = fit(scatter**2)
    misfit = above - share * gap
    variance = (SCATTER_WEIGHT * scatter**2 + misfit @ misfit) / (SCATTER_WEIGHT + len(gap))
    return (*map(float, fit(variance)), float(variance))


def with_uncertain_a(
    state: Posterior, points: np.ndarray, estimate: EstimatedA, a_range: float
) -> Posterior:
    """The posterior of candidates whose A is partly estimated.

    To first order a candidate moves by the law's slope along A; the error of the share moves all
    estimates together. Where everything is measured, `state` itself.

    Args:
        points: [n, 2] min-max A and C that `state` was made with.
        a_range: range of A that became 1 there.
    """
    if estimate.measured.all():
        return state
    a, c = points.T
    zeros, ones = np.zeros(len(a)), np.ones(len(a))
    gradient_n6 = np.stack([zeros, ones, zeros, 2 * a, c, zeros], 1)
    slope_n = gradient_n6 @ state.law_6
    law_cov = state.cov_QQ[-6:, -6:]
    slope_variance_n = np.einsum("np,pq,nq->n", gradient_n6, law_cov, gradient_n6)
    own_n = estimate.own_n / a_range**2
    shared_n = estimate.sensitivity_n / a_range
    variance_n = own_n + estimate.share_variance * shared_n**2
    open_n = slope_n**2 * own_n + slope_variance_n * variance_n
    bend_n = state.law_6[3] * variance_n  # the mean of A² is above the square of the mean
    size = len(state.cov_QQ)
    cov = np.zeros((size + 1, size + 1))
    cov[:size, :size], cov[size, size] = state.cov_QQ, estimate.share_variance
    scale_G1 = state.scale_G[:, None]
    return replace(
        state,
        mean_Gn=state.mean_Gn + bend_n,
        map_nQ=np.column_stack([state.map_nQ, slope_n * shared_n]),
        cov_QQ=cov,
        open_n=state.open_n + open_n,
        level_Gn=state.level_Gn + scale_G1 * bend_n,
        level_variance_n=state.level_variance_n
        + open_n
        + estimate.share_variance * (slope_n * shared_n) ** 2,
    )
