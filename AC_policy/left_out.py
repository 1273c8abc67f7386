"""The law's prediction of each finetuned representation from the others, what its test rests on."""

import numpy as np

from AC_policy.features import design
from AC_policy.posterior import SCALE_POINTS, SCALE_RANGE, coefficients, scale_weights
from AC_policy.prior import Prior


def left_out(
    points: np.ndarray,
    y: np.ndarray,
    prior: Prior,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> np.ndarray:
    """[D, k] performance predicted for each of k finetuned representations from the others.

    Args:
        points: [k, 2] min-max A and C of the finetuned.
        y: [D, k] performances, one set (or shuffle) a row. Where those left do not differ, their
            mean is predicted.
        prior, scale_range: as in `posterior`.
    """
    x = design(points)
    predicted = np.empty_like(y)
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        known = y[:, rest]
        spread = np.ptp(known, axis=1)
        scale_DG = np.where(spread > 0, spread, 1.0)[:, None] * np.geomspace(
            *scale_range, SCALE_POINTS
        )
        weight_DG = scale_weights(x[rest], known, prior, scale_DG)
        _, fixed_P, gain_Pk = coefficients(x[rest], prior)
        level_P = np.insert(x[row], 0, 1.0)
        mean_scale = 1 / (weight_DG / scale_DG).sum(1)  # as in Posterior.performance
        by_law = mean_scale * (level_P @ fixed_P) + known @ (gain_Pk.T @ level_P)
        predicted[:, row] = np.where(spread > 0, by_law, known.mean(1))
    return predicted
