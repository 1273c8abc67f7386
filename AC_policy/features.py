"""Scaling of A and C, and the degree-2 polynomial of them (paper, equation 4)."""

from collections.abc import Sequence

import numpy as np

FEATURES = ("1", "A", "C", "A^2", "A C", "C^2")


def min_max(values: np.ndarray, over: np.ndarray | None = None, axis: int = 0) -> np.ndarray:
    """`values` shifted and scaled so that those of `over` (default: themselves) fill [0, 1].

    A column without spread is only shifted, as scikit-learn's MinMaxScaler does.
    """
    over = values if over is None else over
    low, high = over.min(axis, keepdims=True), over.max(axis, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    return (values - low) / spread


def polynomial(points: np.ndarray, degree: int = 2) -> np.ndarray:
    """Monomials of the columns of `points` [..., d] up to `degree` (1 or 2), without the constant.

    Order as scikit-learn's PolynomialFeatures: x1, x2, x1^2, x1 x2, x2^2.
    """
    columns = [points[..., i] for i in range(points.shape[-1])]
    if degree == 2:
        dims = range(points.shape[-1])
        columns += [points[..., i] * points[..., j] for i in dims for j in dims if j >= i]
    return np.stack(columns, -1)


def design(points: np.ndarray) -> np.ndarray:
    """[..., 6] in the order of FEATURES, from (A, C) points [..., 2] in the unit square."""
    ones = np.ones((*points.shape[:-1], 1))
    return np.concatenate([ones, polynomial(points)], -1)


def describe(coefficients: Sequence[float]) -> str:
    """The law as a formula, e.g. `0.12 + 0.81 A - 0.30 C^2`."""
    terms = [
        f"{'-' if value < 0 else '+'} {abs(value):.3f}{'' if name == '1' else ' ' + name}"
        for name, value in zip(FEATURES, coefficients, strict=True)
    ]
    return " ".join(terms).removeprefix("+ ")
