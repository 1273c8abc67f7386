"""The law and the policies a second time, as plainly as they can be written.

Written from the paper (sections 4, 5.4 and 5.5) and from the stated models, with loops, explicit
refits and scikit-learn's own classes. Nothing here is fast and nothing imports the code under test.
"""

import itertools
import math

import numpy as np
from scipy import stats
from sklearn import config_context
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


# ---------------------------------------------------------------------------------- region sampling


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
                    with config_context(assume_finite=True, skip_parameter_validation=True):
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
    """(recall of a best one, mean regret) over all sets of m candidates."""
    regret = plain_regret(truth)
    found = [min(chosen) for chosen in itertools.combinations(regret, m)]
    return sum(value == 0 for value in found) / len(found), sum(found) / len(found)


# -------------------------------------------------------------------------- prior and posterior


def plain_coefficients(scores, performance, rows, ridge):
    """(ridge coefficients [6], RSS / (rows - 6)) of one benchmark from its finetuned `rows`.

    Min-max performance on the six columns, the constant penalised as the others."""
    X = design(unit_square(scores))[list(rows)]
    y = MinMaxScaler().fit_transform(np.reshape(performance, (-1, 1))[list(rows)])[:, 0]
    fit = Ridge(alpha=ridge, fit_intercept=False).fit(X, y)
    return fit.coef_, sum((y - fit.predict(X)) ** 2) / (len(y) - 6)


def plain_prior(tables, ridge, jitter):
    """(mean [6], cov [6, 6], noise variance) from the (scores, performance) of benchmarks."""
    fits = [plain_coefficients(scores, y, range(len(y)), ridge) for scores, y in tables]
    found = np.array([coefficients for coefficients, _ in fits])
    return (
        np.mean(found, axis=0),
        np.cov(found, rowvar=False, ddof=1) + jitter * np.eye(6),
        float(np.mean([variance for _, variance in fits])),
    )


class PlainPosterior:
    """y_i = off + s f_i, f_i = x_i·w + e_i, by conditioning one joint Gaussian of all f per s.

    The flat offset is dealt with exactly: differences to the first run condition f without it, and
    what is left of the first run fixes off/s = y_1 / s - f_1. With fewer than two runs, or equal
    ones, nothing is said about f, and there is one entry whose scale is unknown.
    """

    def __init__(self, points, y, prior, scale_range, scale_points):
        mean, cov, noise = prior
        X = design(points)
        self.y, self.n = y, len(X)
        f_mean = X @ mean
        f_cov = X @ cov @ X.T + noise * np.eye(self.n)
        self.runs = [i for i in range(self.n) if not math.isnan(y[i])]
        if len({y[i] for i in self.runs}) < 2:
            self.scales, self.weights, self.means, self.cov = [math.nan], [1.0], [f_mean], f_cov
            return
        first, rest = self.runs[0], self.runs[1:]
        seen = np.array([y[i] - y[first] for i in rest])
        spread = max(y[i] for i in self.runs) - min(y[i] for i in self.runs)
        low, high = math.log(scale_range[0]), math.log(scale_range[1])
        step = (high - low) / (scale_points - 1)
        self.scales = [spread * math.exp(low + step * g) for g in range(scale_points)]
        difference = np.array([np.eye(self.n)[i] - np.eye(self.n)[first] for i in rest])
        middle = difference @ f_cov @ difference.T
        gain = np.linalg.solve(middle, difference @ f_cov).T
        self.cov = f_cov - gain @ difference @ f_cov
        self.means, log_weights = [], []
        for s in self.scales:
            self.means.append(f_mean + gain @ (seen / s - difference @ f_mean))
            # The density of the differences of y; a flat offset adds a factor without s.
            law = stats.multivariate_normal(s * (difference @ f_mean), s**2 * middle)
            log_weights.append(law.logpdf(seen))
        weights = [math.exp(value - max(log_weights)) for value in log_weights]
        self.weights = [value / sum(weights) for value in weights]

    def mean_std(self):
        """Mean and standard deviation of every f, over the scales."""
        return mixture_moments(self.weights, self.means, [np.diag(self.cov)] * len(self.means))

    def incumbent(self):
        """The best one run so far."""
        mean, _ = self.mean_std()
        return max(self.runs, key=lambda i: mean[i])

    def expected_gain(self):
        """E max(f_i - f_best, 0), by summing over a fine grid of the difference, s after s."""
        best = self.incumbent()
        z = np.linspace(-12, 12, 24001)
        density = stats.norm.pdf(z) * (z[1] - z[0])
        gains = []
        for i in range(self.n):
            variance = self.cov[i, i] + self.cov[best, best] - 2 * self.cov[i, best]
            width = math.sqrt(max(variance, 0.0))
            gains.append(
                sum(
                    weight * float(density @ np.maximum(mean[i] - mean[best] + width * z, 0))
                    for weight, mean in zip(self.weights, self.means, strict=True)
                )
            )
        return gains

    def performance(self):
        """Mean and standard deviation of performance; scales weighted by weight / s."""
        first = self.runs[0]
        C = self.cov
        means = [
            self.y[first] + s * (mean - mean[first])
            for s, mean in zip(self.scales, self.means, strict=True)
        ]
        to_first = [C[i, i] + C[first, first] - 2 * C[i, first] for i in range(self.n)]
        variances = [s**2 * np.array(to_first) for s in self.scales]
        weights = [w / s for w, s in zip(self.weights, self.scales, strict=True)]
        return mixture_moments([w / sum(weights) for w in weights], means, variances)

    def odds(self, noise, draws, rng, top=3):
        """P(best), P(in the top m), mean normalised regret of the incumbent, draw after draw.

        `noise` is the standard deviation of a rerun in the unit of y; it moves those run, and
        only for the chances."""
        root = np.linalg.cholesky(self.cov + 1e-12 * np.eye(self.n))
        chosen = self.incumbent()
        best, among, regret = np.zeros(self.n), np.zeros(self.n), 0.0
        for g in rng.choice(len(self.scales), size=draws, p=self.weights):
            f = self.means[g] + root @ rng.standard_normal(self.n)
            regret += (max(f) - f[chosen]) / (max(f) - min(f))
            if not math.isnan(self.scales[g]):
                for i in self.runs:
                    f[i] += noise[i] / self.scales[g] * rng.standard_normal()
            places = sorted(range(self.n), key=f.__getitem__, reverse=True)
            best[places[0]] += 1
            among[places[:top]] += 1
        return best / draws, among / draws, regret / draws


def bayes_order(points, performance, prior, scale_range, scale_points):
    """The order in which `bayes` finetunes everything, and the ranking before every run."""
    n, order, rankings = len(points), [], []
    while len(order) < n:
        y = [performance[i] if i in order else math.nan for i in range(n)]
        state = PlainPosterior(points, y, prior, scale_range, scale_points)
        mean, _ = state.mean_std()
        rankings.append(ranked(mean))
        merit = state.expected_gain() if order else mean
        order.append(max((i for i in range(n) if i not in order), key=lambda i: merit[i]))
    return order, rankings


def mixture_moments(weights, means, variances):
    """Mean and standard deviation of a mixture."""
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    variance = sum(
        w * (v + (m - mean) ** 2) for w, m, v in zip(weights, means, variances, strict=True)
    )
    return mean, np.sqrt(np.maximum(variance, 0))
