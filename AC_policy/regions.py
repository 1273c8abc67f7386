"""Region sampling: which representation the published policy finetunes next (paper, section 4).

At level L the unit square of (A, C) is cut into 2^L x 2^L cells, a value of exactly 1 belonging to
the last. While some cell holds candidates and no sampled one, such a cell is drawn at random and
one of its candidates is added; then the next level begins. The first level is 1.
"""

import numpy as np

FIRST_LEVEL = 1
LAST_LEVEL = 24  # cells of 6e-8: what still shares one here counts as the same point


def cells(points: np.ndarray, level: int) -> np.ndarray:
    """[n] number of the cell of each point [n, 2] of the unit square."""
    side = 2**level
    column_row = np.minimum((points * side).astype(np.int64), side - 1)
    return column_row[:, 0] * side + column_row[:, 1]


def sample_orders(points: np.ndarray, trials: int, rng: np.random.Generator) -> np.ndarray:
    """[trials, n] the order in which each trial finetunes the candidates at `points` [n, 2].

    A free cell holds no sampled candidate, so all of its candidates are open: drawing a cell and
    then a candidate in it is one draw with weight 1 / (candidates in the cell).
    """
    n = len(points)
    together_Lnn = _together(points)
    weight_Ln = 1.0 / together_Lnn.sum(2)
    level = np.zeros(trials, np.int64)
    sampled = np.zeros((trials, n), bool)
    orders = np.empty((trials, n), np.int64)
    rows = np.arange(trials)
    for step in range(n):
        open_Tn = _open(sampled, together_Lnn, level)
        weight = np.where(open_Tn, weight_Ln[level], 0.0).cumsum(1)
        drawn = rng.random(trials) * weight[:, -1]
        pick = (weight <= drawn[:, None]).sum(1)
        orders[:, step] = pick
        sampled[rows, pick] = True
    return orders


def _open(sampled: np.ndarray, together_Lnn: np.ndarray, level: np.ndarray) -> np.ndarray:
    """bool [T, n]: candidates in free cells; raises `level` in place where no cell is free."""
    while True:
        taken = np.einsum("tn,tnm->tm", sampled, together_Lnn[level], optimize=False) > 0
        full = taken.all(1)
        stuck = full & (level == len(together_Lnn) - 1)
        if stuck.any():  # only copies of sampled points are left: draw among them
            taken[stuck] = sampled[stuck]
            full &= ~stuck | taken.all(1)
        if not (full & ~stuck).any():
            return ~taken
        level[full & ~stuck] += 1


def _together(points: np.ndarray) -> np.ndarray:
    """[L, n, n] whether two candidates share a cell, up to the last level that matters."""
    levels = []
    for level in range(FIRST_LEVEL, LAST_LEVEL + 1):
        cell = cells(points, level)
        levels.append(cell[:, None] == cell[None])
        if levels[-1].sum() == len(points):
            break
    return np.array(levels)
