"""How good a ranking of the candidates is, once the truth is known.

Regret is normalised: (best - taken) / (best - worst). Predictions come as [U, n], one ranking a
row; every figure is an array [U].
"""

from itertools import combinations
from math import comb

import numpy as np

TOP = 3
PAIRS_AT_ONCE = 4_000_000


def normalised_regret(truth: np.ndarray) -> np.ndarray:
    """[n] regret of taking each candidate, 0 for the best and 1 for the worst."""
    return (truth.max() - truth) / (truth.max() - truth.min())


def top(predictions: np.ndarray, m: int) -> np.ndarray:
    """[U, m] the m candidates with the largest predictions, ties in the table's order."""
    return np.argsort(-predictions, axis=1, kind="stable")[:, :m]


def top_regret(truth: np.ndarray, predictions: np.ndarray, m: int) -> np.ndarray:
    """[U] regret of the best of the m candidates with the largest predictions."""
    return normalised_regret(truth)[top(predictions, m)].min(1)


def with_ties(regret: np.ndarray, band: float) -> np.ndarray:
    """Regret that counts what lies within the noise band of the best as the best."""
    return np.where(regret <= band, 0.0, regret)


def random_top_regret(truth: np.ndarray, m: int) -> tuple[float, float]:
    """(recall of the best, mean regret) of m candidates taken at random, exactly."""
    regret = np.sort(normalised_regret(truth))
    n, m = len(regret), min(m, len(truth))
    if comb(n, m) <= 100_000:
        best = np.array([regret[chosen[0]] for chosen in combinations(range(n), m)])
        return float((best == 0).mean()), float(best.mean())
    first = np.array([comb(n - 1 - i, m - 1) / comb(n, m) for i in range(n - m + 1)])
    return float(first[regret[: len(first)] == 0].sum()), float(first @ regret[: len(first)])


def weighted_tau(truth: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """[U] Kendall's tau weighted towards the top ranks, as scipy.stats.weightedtau defines it.

    A pair weighs 1/(1+r) + 1/(1+r') with r the ranks by decreasing value (Vigna 2015); the mean is
    taken of ranking by the truth and by the prediction. A prediction that orders nothing has 0.
    """
    n = len(truth)
    block = max(1, PAIRS_AT_ONCE // (n * n))
    parts = [
        _weighted_tau(truth, predictions[start : start + block])
        for start in range(0, len(predictions), block)
    ]
    return np.concatenate(parts)


def _weighted_tau(truth: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    true_Unn = np.broadcast_to(
        np.sign(truth[:, None] - truth), (len(predictions), *[len(truth)] * 2)
    )
    predicted_Unn = np.sign(predictions[:, :, None] - predictions[:, None])
    agree = true_Unn * predicted_Unn
    later = np.triu(np.ones((len(truth),) * 2, bool), 1)  # orders full ties, as scipy does
    both = []
    for first, second in ((true_Unn, predicted_Unn), (predicted_Unn, true_Unn)):
        ahead = (first < 0) | ((first == 0) & ((second < 0) | ((second == 0) & later)))
        weight = 1.0 / (1.0 + ahead.sum(2))
        pair = weight[:, :, None] + weight[:, None]
        untied = (pair * (true_Unn != 0)).sum((1, 2)) * (pair * (predicted_Unn != 0)).sum((1, 2))
        both.append((pair * agree).sum((1, 2)) / np.sqrt(np.where(untied > 0, untied, 1.0)))
    return np.mean(both, 0)
