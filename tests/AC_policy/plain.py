"""The law and the policies a second time, as plainly as they can be written.

Written from the paper (sections 4, 5.4 and 5.5) and from the stated models, with loops, explicit
refits and scikit-learn's own classes. Nothing here is fast and nothing imports the code under test.
"""

import itertools
import math

import numpy as np
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneOut
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures

# ---------------------------------------------------------------------------------------- the law


def unit_square(scores, rows=None):
    """A and C min-max scaled over `rows` (default: all)."""
    rows = range(len(scores)) if rows is None else list(rows)
    return MinMaxScaler().fit(scores[rows]).transform(scores)


def columns(points, which, degree):
    """Columns of one row of Table 3, without the constant: `A`, `C` or `AC`, degree 1 or 2."""
    chosen = points[:, [{"A": 0, "C": 1}[letter] for letter in which]]
    return PolynomialFeatures(degree, include_bias=False).fit_transform(chosen)


def r2_in_sample(X, y):
    """R² of least squares with intercept on the rows that it was fitted on."""
    return LinearRegression().fit(X, y).score(X, y)


def r2_left_out(X, y):
    """1 - PRESS / SST, each row predicted by a fit to all others, SST about the mean of all."""
    press = 0.0
    for kept, left in LeaveOneOut().split(X):
        fit = LinearRegression().fit(X[kept], y[kept])
        press += float((y[left] - fit.predict(X[left]))[0] ** 2)
    return 1 - press / sum((value - np.mean(y)) ** 2 for value in y)


def design(points):
    """Columns 1, A, C, A², AC, C²."""
    return PolynomialFeatures(2).fit_transform(points)


# ----------------------------------------------------------------------------------- region sampling


def cell_of(point, level):
    """Row and column of a point's cell when the unit square is cut into 2^level x 2^level."""
    return tuple(min(int(value * 2**level), 2**level - 1) for value in point)


def free_cells(points, sampled, level):
    """Cell -> its candidates, of the cells that hold candidates and none that is sampled."""
    taken = {cell_of(points[i], level) for i in sampled}
    found = {}
    for i, point in enumerate(points):
        if cell_of(point, level) not in taken:
            found.setdefault(cell_of(point, level), []).append(i)
    return found


def next_draws(points, sampled, level, last_level=40):
    """(candidate -> chance of being drawn next, level): of the first level with a free cell.

    Candidates that share their point with a sampled one are in no free cell at any level. Where
    only such are left, they are drawn uniformly."""
    while level <= last_level:
        cells = free_cells(points, sampled, level)
        if cells:
            return {
                i: 1 / len(cells) / len(inside) for inside in cells.values() for i in inside
            }, level
        level += 1
    rest = [i for i in range(len(points)) if i not in sampled]
    return {i: 1 / len(rest) for i in rest}, level


def sample_order(points, rng):
    """One order: a free cell uniformly, a candidate in it uniformly, the next level where none."""
    order, level = [], 1
    while len(order) < len(points):
        cells = free_cells(points, order, level)
        if cells:
            inside = list(cells.values())[rng.integers(len(cells))]
            order.append(inside[rng.integers(len(inside))])
        else:
            _, level = next_draws(points, order, level)
            if level > 40:
                rest = [i for i in range(len(points)) if i not in order]
                order += [rest[i] for i in rng.permutation(len(rest))]
    return order


def prefix_chances(points, length):
    """Tuple of the first `length` samples -> its exact probability."""
    reached = {(): (1.0, 1)}
    for _ in range(length):
        longer = {}
        for prefix, (chance, level) in reached.items():
            draws, next_level = next_draws(points, prefix, level)
            for i, share in draws.items():
                longer[(*prefix, i)] = (chance * share, next_level)
        reached = longer
    return {prefix: chance for prefix, (chance, _) in reached.items()}


# ------------------------------------------------------------------------------- published policy


def published_prediction(scores, performance, subset, scale="candidates"):
    """Performance of all candidates predicted from those finetuned.

    A and C min-max over all candidates or over the subset, performance min-max over all candidates
    (which least squares cannot notice, so it is turned back), degree 2, least squares."""
    subset = list(subset)
    points = unit_square(scores, None if scale == "candidates" else subset)
    X = PolynomialFeatures(2).fit_transform(points)
    low, high = min(performance), max(performance)
    y = (np.asarray(performance) - low) / (high - low)
    return low + (high - low) * LinearRegression().fit(X[subset], y[subset]).predict(X)


def ranked(predictions):
    """Candidates by falling prediction, equal ones in the table's order."""
    return sorted(range(len(predictions)), key=lambda i: (-predictions[i], i))


def published_curves(scores, performance, orders, scale, band):
    """first hit, recall at 3 and 1, regrets at fixed k = 0 to n, by loops over trials and steps."""
    n = len(performance)
    best = int(np.argmax(performance))
    regret = plain_regret(performance)
    names = ("first_hit", "recall_at_3", "recall_at_1", "regret_top3", "regret_top3_ties")
    sums = {name: np.full(n + 1, np.nan) for name in (*names, "regret_held", "weighted_tau")}
    sums["largest_regret"] = np.full(n + 1, np.nan)
    sums["first_hit"][:] = 0
    known = {}
    hit = [False] * len(orders)
    for k in range(1, n + 1):
        rows = []
        for trial, order in enumerate(orders):
            sampled = tuple(sorted(int(i) for i in order[:k]))
            if k == 1:
                # Nothing can be fitted to one sample; it is a success when it is the best itself.
                hit[trial] = sampled[0] == best
            else:
                if sampled not in known:
                    prediction = published_prediction(scores, performance, sampled, scale)
                    known[sampled] = (ranked(prediction), plain_tau(performance, prediction))
                places, tau = known[sampled]
                hit[trial] = hit[trial] or best in places[:3]
                of_top = min(regret[i] for i in places[:3])
                rows.append(
                    (best in places[:3], best == places[0], of_top, of_top * (of_top > band), tau)
                )
        sums["first_hit"][k] = sum(hit) / len(hit)
        sums["regret_held"][k] = np.mean([min(regret[i] for i in order[:k]) for order in orders])
        if rows:
            for name, values in zip(
                (*names[1:], "weighted_tau"), zip(*rows, strict=True), strict=True
            ):
                sums[name][k] = sum(values) / len(values)
            sums["largest_regret"][k] = max(row[2] for row in rows)
    return sums


# ---------------------------------------------------------------------------------------- metrics


def plain_regret(truth):
    """(best - taken) / (best - worst) of every candidate."""
    return [(max(truth) - value) / (max(truth) - min(truth)) for value in truth]


def plain_tau(truth, prediction):
    """scipy's weighted tau; a prediction that orders nothing has 0 where scipy has no number."""
    tau = float(stats.weightedtau(truth, prediction).statistic)
    return 0.0 if math.isnan(tau) else tau


def random_top(truth, m):
    """(recall of the best, mean regret) over all sets of m candidates."""
    regret = plain_regret(truth)
    best = int(np.argmax(truth))
    sets = list(itertools.combinations(range(len(truth)), m))
    hits = sum(best in chosen for chosen in sets)
    return hits / len(sets), sum(min(regret[i] for i in chosen) for chosen in sets) / len(sets)


# -------------------------------------------------------------------------- prior and posterior


def plain_prior(tables, ridge, jitter):
    """(mean [6], cov [6, 6], mean residual variance) from (scores, performance) of benchmarks.

    The residual variance is per degree of freedom: n - tr(H), H the matrix that turns
    performance into its ridge fit."""
    found, variances = [], []
    for scores, performance in tables:
        X = design(unit_square(scores))
        y = MinMaxScaler().fit_transform(np.reshape(performance, (-1, 1)))[:, 0]
        fit = Ridge(alpha=ridge, fit_intercept=False).fit(X, y)
        found.append(fit.coef_)
        hat_trace = sum(
            Ridge(alpha=ridge, fit_intercept=False).fit(X, unit).predict(X)[i]
            for i, unit in enumerate(np.eye(len(y)))
        )
        variances.append(sum((y - fit.predict(X)) ** 2) / (len(y) - hat_trace))
    return (
        np.mean(found, axis=0),
        np.cov(np.array(found), rowvar=False, ddof=1) + jitter * np.eye(6),
        float(np.mean(variances)),
    )


class PlainPosterior:
    """y_i = off + s (f_i + m_i), f_i = x_i·w + e_i, by conditioning one joint Gaussian per s.

    The joint vector is (f, u), u_i = f_i + m_i. For one s the runs say off/s + u_i = y_i / s. The
    flat offset is dealt with exactly: differences to the first run condition f and u without it,
    and what is left fixes off/s = y_1 / s - u_1. Everything about performance follows, since a
    further run would give s (off/s + f_i + m'_i) with fresh noise m'.
    """

    def __init__(self, points, y, mean, cov, noise, run_noise, scales):
        X = design(points)
        n = len(X)
        runs = [i for i in range(n) if not math.isnan(y[i])]
        self.n, self.runs, self.run_noise, self.scales = n, runs, run_noise, list(scales)
        f_mean = X @ mean
        f_cov = X @ cov @ X.T + noise * np.eye(n)
        joint_mean = np.concatenate([f_mean, f_mean])
        joint_cov = np.block([[f_cov, f_cov], [f_cov, f_cov + run_noise**2 * np.eye(n)]])
        # Differences of u between the first run and the others: rows of D @ joint.
        first, rest = runs[0], runs[1:]
        D = np.zeros((len(rest), 2 * n))
        for row, other in enumerate(rest):
            D[row, n + other], D[row, n + first] = 1, -1
        middle = D @ joint_cov @ D.T
        gain = np.linalg.solve(middle, D @ joint_cov).T
        self.joint_cov = joint_cov - gain @ D @ joint_cov
        self.joint_means, log_weights = [], []
        for s in self.scales:
            seen = np.array([(y[other] - y[first]) / s for other in rest])
            self.joint_means.append(joint_mean + gain @ (seen - D @ joint_mean))
            # The density of the differences of y; the flat offset adds a constant.
            law = stats.multivariate_normal(s * (D @ joint_mean), s**2 * middle)
            log_weights.append(law.logpdf([y[other] - y[first] for other in rest]))
        weights = np.exp(np.array(log_weights) - max(log_weights))
        self.weights = weights / sum(weights)
        self.y = y

    def law(self, which):
        """(means per scale [G, n], covariance [n, n]) of `f`, of `u`, or of `shown`.

        `shown` is u for finetuned candidates (what was measured) and f for the others."""
        rows = {
            "f": list(range(self.n)),
            "u": [self.n + i for i in range(self.n)],
            "shown": [self.n + i if i in self.runs else i for i in range(self.n)],
        }[which]
        return np.array([m[rows] for m in self.joint_means]), self.joint_cov[np.ix_(rows, rows)]

    def mean_std(self, which):
        """Mean and standard deviation of the mixture over scales."""
        means, cov = self.law(which)
        mean = sum(w * m for w, m in zip(self.weights, means, strict=True))
        spread = sum(w * (m - mean) ** 2 for w, m in zip(self.weights, means, strict=True))
        return mean, np.sqrt(np.diag(cov) + spread)

    def level(self):
        """(means per scale [G, n], variance [n]) of performance of a further run, over s.

        off/s = y_1 / s - u_1, so a further run over s is y_1 / s + (f_i - u_1) + m'."""
        first = self.n + self.runs[0]
        means = np.array(
            [
                [self.y[self.runs[0]] / s + m[i] - m[first] for i in range(self.n)]
                for s, m in zip(self.scales, self.joint_means, strict=True)
            ]
        )
        C = self.joint_cov
        variance = [C[i, i] + C[first, first] - 2 * C[i, first] for i in range(self.n)]
        return means, np.array(variance) + self.run_noise**2


def mixture_quantile(weights, means, stds, level):
    """Quantile of a mixture of normals, by root finding on its CDF."""
    from scipy.optimize import brentq

    def excess(value):
        return (
            sum(
                w * stats.norm.cdf(value, m, s)
                for w, m, s in zip(weights, means, stds, strict=True)
            )
            - level
        )

    low = min(m - 12 * s for m, s in zip(means, stds, strict=True))
    high = max(m + 12 * s for m, s in zip(means, stds, strict=True))
    return brentq(excess, low, high, xtol=1e-12 * (high - low))
