"""The law of one benchmark after some of its representations were finetuned.

Model: y_i = off + s (x_i·w + e_i), with x_i the degree-2 features, w ~ N(prior), e_i the part of a
representation's performance that the law leaves open, and unknown offset `off` (flat prior) and
scale s > 0 (log-uniform on a grid). Given s everything is Gaussian, with a covariance that does not
depend on s and means linear in 1/s; so the posterior is a mixture over the grid that shares one
covariance of rank 7 plus a diagonal: a thousand candidates cost little more than ten.

f_i = x_i·w + e_i is what representations are ranked by: performance on the scale on which the
prior's benchmarks span [0, 1]. Shapes: n candidates, k finetuned, G grid points, P = 7 (offset, w).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from AC_policy.features import design
from AC_policy.prior import Prior

SCALE_RANGE = (0.2, 20.0)
"""Scale s in units of the spread of the finetuned performances: from far below the spread of all
candidates (those finetuned span at most it, plus noise) to a spread of 5 % of it."""
SCALE_POINTS = 41
SAMPLED_AT_ONCE = 1_000_000  # numbers held while sampling


@dataclass(frozen=True, eq=False)
class Posterior:
    """Mixture over the scale grid: f | g ~ N(mean_Gn[g], map cov map' + diag(open)).

    Attributes:
        weight_G: posterior probability of each scale; one entry where the scale is unknown.
        scale_G: the scales, in the performance's unit; NaN where unknown.
        mean_Gn: means of f; a finetuned representation's is what was measured.
        map_nQ, cov_QQ: what of f is shared: coefficients, and the offset where it is known.
        open_n: variance of e_i, what the law leaves open of each; 0 where finetuned.
        level_Gn: means of performance, s (off/s + f), in its unit; NaN where unknown.
        level_variance_n: variance of off/s + f; times s² it is performance's.
        finetuned: bool [n].
        noise_n: standard deviation of one measured result, in the performance's unit.
        law_6: mean coefficients of the law, in the order of FEATURES.
    """

    weight_G: np.ndarray
    scale_G: np.ndarray
    mean_Gn: np.ndarray
    map_nQ: np.ndarray
    cov_QQ: np.ndarray
    open_n: np.ndarray
    level_Gn: np.ndarray
    level_variance_n: np.ndarray
    finetuned: np.ndarray
    noise_n: np.ndarray
    law_6: np.ndarray

    @property
    def scaled(self) -> bool:
        """Whether two or more different performances have fixed offset and scale."""
        return bool(np.isfinite(self.scale_G).all())

    @property
    def cov_nn(self) -> np.ndarray:
        """[n, n] covariance of f given the scale."""
        return self.map_nQ @ self.cov_QQ @ self.map_nQ.T + np.diag(self.open_n)

    @property
    def mean(self) -> np.ndarray:
        """[n] posterior mean of f, what candidates are ranked by."""
        return self.weight_G @ self.mean_Gn

    @property
    def std(self) -> np.ndarray:
        """[n] posterior standard deviation of f."""
        spread = self.weight_G @ (self.mean_Gn - self.mean) ** 2
        return np.sqrt(_quadratic(self.map_nQ, self.cov_QQ) + self.open_n + spread)

    def performance(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean [n], standard deviation [n]) of performance, in its unit.

        The scales are weighted by 1/s, so that the means stand in the order of the ranking, a
        finetuned one's is what was measured, and the long tail of large scales does not rule.
        """
        weight_G = self.weight_G / self.scale_G
        weight_G /= weight_G.sum()
        mean = weight_G @ self.level_Gn
        within = (weight_G @ self.scale_G**2) * self.level_variance_n
        spread = weight_G @ (self.level_Gn - mean) ** 2
        return mean, np.where(self.finetuned, self.noise_n, np.sqrt(within + spread))

    def only(self, rows: np.ndarray) -> "Posterior":
        """The posterior of some candidates, by their rows."""
        return replace(
            self,
            mean_Gn=self.mean_Gn[:, rows],
            map_nQ=self.map_nQ[rows],
            open_n=self.open_n[rows],
            level_Gn=self.level_Gn[:, rows],
            level_variance_n=self.level_variance_n[rows],
            finetuned=self.finetuned[rows],
            noise_n=self.noise_n[rows],
        )

    def incumbent(self) -> int | None:
        """The finetuned candidate with the largest mean, None before the first run."""
        if not self.finetuned.any():
            return None
        return int(np.argmax(np.where(self.finetuned, self.mean, -np.inf)))

    def expected_gain(self) -> np.ndarray:
        """[n] E max(f_i - f_best, 0) over the best finetuned one; before the first run the mean."""
        best = self.incumbent()
        if best is None:
            return self.mean
        difference_Gn = self.mean_Gn - self.mean_Gn[:, [best]]
        variance = _quadratic(self.map_nQ - self.map_nQ[best], self.cov_QQ)
        variance += self.open_n + self.open_n[best]
        variance[best] = 0.0
        std = np.sqrt(np.maximum(variance, 1e-30))
        z = difference_Gn / std
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        return self.weight_G @ (difference_Gn * ndtr(z) + std * density)

    def upper_bound(self, beta: float) -> np.ndarray:
        """[n] mean + beta standard deviations."""
        return self.mean + beta * self.std

    def simulate(self, draws: int, rng: np.random.Generator, top: int = 3) -> "Odds":
        """Chances of every candidate, from `draws` samples of all f together.

        Noise of the measured results enters the chances, since a rerun might order them otherwise;
        it does not enter the regret, since finetuning more cannot remove it.
        """
        n = len(self.open_n)
        noise_Gn = np.zeros_like(self.mean_Gn)
        if self.scaled:
            noise_Gn = np.where(self.finetuned, self.noise_n / self.scale_G[:, None], 0.0)
        chosen, take = self.incumbent(), min(top, n)
        best, among, regret = np.zeros(n), np.zeros(n), 0.0
        for which, f_Dn in self.samples(draws, rng):
            if chosen is not None:
                regret += _regret(f_Dn, chosen)
            f_Dn += noise_Gn[which] * rng.standard_normal(f_Dn.shape)
            best += np.bincount(f_Dn.argmax(1), minlength=n)
            leaders = np.argpartition(-f_Dn, take - 1, axis=1)[:, :take]
            among += np.bincount(leaders.ravel(), minlength=n)
        return Odds(best / draws, among / draws, regret / draws if chosen is not None else np.nan)

    def expected_regret(self, draws: int, rng: np.random.Generator) -> float:
        """The regret of `simulate` alone, in half the time; NaN before any run."""
        chosen = self.incumbent()
        if chosen is None:
            return np.nan
        return sum(_regret(f_Dn, chosen) for _, f_Dn in self.samples(draws, rng)) / draws

    def samples(self, draws: int, rng: np.random.Generator) -> Iterator[tuple]:
        """(grid point of each draw, samples of all f together [D, n]), a block at a time."""
        n = len(self.open_n)
        shared_nQ = self.map_nQ @ _root(self.cov_QQ)
        own_n = np.sqrt(self.open_n)
        per_scale = np.bincount(rng.choice(len(self.weight_G), draws, p=self.weight_G))
        scale_of_draw = np.repeat(np.arange(len(per_scale)), per_scale)
        block = max(1, SAMPLED_AT_ONCE // n)
        for start in range(0, draws, block):
            which = scale_of_draw[start : start + block]
            shared_Dn = rng.standard_normal((len(which), shared_nQ.shape[1])) @ shared_nQ.T
            own_Dn = own_n * rng.standard_normal((len(which), n))
            yield which, self.mean_Gn[which] + shared_Dn + own_Dn


@dataclass(frozen=True)
class Odds:
    """P(best) [n], P(in the top m) [n], and the expected regret of the best finetuned one.

    Regret is a fraction of the range that all candidates' performances span, draw by draw; NaN
    before any run.
    """

    best: np.ndarray
    among_top: np.ndarray
    regret: float


def posterior(
    points: np.ndarray,
    y: np.ndarray,
    prior: Prior,
    noise: np.ndarray | float = 0.0,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> Posterior:
    """The posterior of every candidate.

    Args:
        points: [n, 2] min-max A and C.
        y: [n] performance, NaN where not finetuned. A single value is not used: offset and scale
            are unknown until two differ.
        prior: of the coefficients.
        noise: [n] standard deviation of one measured result, in the unit of y. It enters the
            chances, not the law, whose own noise is far larger.
        scale_range: limits of the scale grid in units of the finetuned performances' spread.
    """
    x = design(points)
    known = np.isfinite(y)
    n = len(x)
    noise_n = np.where(known, noise, 0.0)
    if known.sum() < 2 or np.ptp(y[known]) == 0:
        return Posterior(
            weight_G=np.ones(1),
            scale_G=np.full(1, np.nan),
            mean_Gn=(x @ prior.mean)[None],
            map_nQ=x,
            cov_QQ=prior.cov,
            open_n=np.full(n, prior.noise),
            level_Gn=np.full((1, n), np.nan),
            level_variance_n=np.full(n, np.nan),
            finetuned=known,
            noise_n=noise_n,
            law_6=prior.mean,
        )
    scale_G = np.ptp(y[known]) * np.geomspace(*scale_range, SCALE_POINTS)
    weight_G = scale_weights(x[known], y[known], prior, scale_G)
    cov_PP, fixed_P, gain_Pk = coefficients(x[known], prior)
    per_scale_P = gain_Pk @ y[known]

    # A run keeps its measured value, f_i = y_i / s - off / s; the others follow the law.
    map_nP = np.where(known[:, None], -np.eye(1, 7), np.insert(x, 0, 0.0, 1))
    level_nP = map_nP + np.eye(1, 7)
    told_n = np.where(known, y, 0.0)
    open_n = np.where(known, 0.0, prior.noise)
    scale_G1 = scale_G[:, None]
    return Posterior(
        weight_G=weight_G,
        scale_G=scale_G,
        mean_Gn=map_nP @ fixed_P + (map_nP @ per_scale_P + told_n) / scale_G1,
        map_nQ=map_nP,
        cov_QQ=cov_PP,
        open_n=open_n,
        level_Gn=scale_G1 * (level_nP @ fixed_P) + level_nP @ per_scale_P + told_n,
        level_variance_n=_quadratic(level_nP, cov_PP) + open_n,
        finetuned=known,
        noise_n=noise_n,
        law_6=(fixed_P + (weight_G @ (1 / scale_G)) * per_scale_P)[1:],
    )


def scale_weights(x: np.ndarray, y: np.ndarray, prior: Prior, scale: np.ndarray) -> np.ndarray:
    """[..., G] posterior of the scales [..., G]: p(y | s) without offset and coefficients.

    y [..., k]. The misfit of y / s is a quadratic in 1 / s, so it costs three numbers per y.
    """
    k = y.shape[-1]
    precision = np.linalg.inv(x @ prior.cov @ x.T + prior.noise * np.eye(k))
    ones = precision.sum(1)
    precision -= np.outer(ones, ones) / ones.sum()  # the flat offset takes one direction out
    centred = y - y.mean(-1, keepdims=True)
    expected = x @ prior.mean
    square = np.einsum("...i,ij,...j->...", centred, precision, centred)[..., None]
    cross = (centred @ (precision @ expected))[..., None]
    misfit = square / scale**2 - 2 * cross / scale
    log = -0.5 * misfit - (k - 1) * np.log(scale)
    weight = np.exp(log - log.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def coefficients(x: np.ndarray, prior: Prior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior of (off / s, w) [P] given s: covariance, and mean = fixed + gain @ y / s."""
    inputs = np.insert(x, 0, 1.0, 1)
    prior_precision = np.zeros((inputs.shape[1],) * 2)
    prior_precision[1:, 1:] = np.linalg.inv(prior.cov)
    cov = np.linalg.inv(inputs.T @ inputs / prior.noise + prior_precision)
    fixed = cov @ prior_precision @ np.insert(prior.mean, 0, 0.0)
    return cov, fixed, cov @ inputs.T / prior.noise


def _regret(f_Dn: np.ndarray, chosen: int) -> float:
    """Regret of one candidate as a fraction of the range, summed over the draws."""
    top_D = f_Dn.max(1)
    return ((top_D - f_Dn[:, chosen]) / (top_D - f_Dn.min(1))).sum()


def _quadratic(rows: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """[n] row' cov row of every row [n, Q]."""
    return np.einsum("np,pq,nq->n", rows, cov, rows)


def _root(cov: np.ndarray) -> np.ndarray:
    """A square root of a covariance that may be singular up to rounding."""
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0.0))
