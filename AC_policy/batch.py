"""Several candidates to run at once, none of which tells what another one will tell."""

import numpy as np

from AC_policy.posterior import Posterior

DRAWS = 4_000
NUMBERS = 4_000_000  # held at most: a long list of candidates gets fewer draws


def batch(state: Posterior, merit: np.ndarray, size: int, rng: np.random.Generator) -> list[int]:
    """Up to `size` candidates, the one with the largest merit first.

    Greedy: each that follows adds the most to the expected best of those held and chosen.

    Args:
        state: the posterior.
        merit: [n], -inf where a candidate is not to be chosen.
        size: 1 or more.
        rng: of the samples behind the second and later ones.
    """
    open_n = np.isfinite(merit)
    size = min(size, int(open_n.sum()))
    if not size:
        return []
    chosen = [int(np.argmax(merit))]
    if size == 1:
        return chosen
    draws = max(200, min(DRAWS, NUMBERS // len(merit)))
    f_Dn = np.concatenate([f_Dn for _, f_Dn in state.samples(draws, rng)])
    held = state.incumbent()
    best_D = np.full(draws, -np.inf) if held is None else f_Dn[:, held]
    while True:
        open_n[chosen[-1]] = False
        best_D = np.maximum(best_D, f_Dn[:, chosen[-1]])
        if len(chosen) == size:
            return chosen
        gain_n = np.maximum(f_Dn - best_D[:, None], 0.0).mean(0)
        chosen.append(int(np.argmax(np.where(open_n, gain_n, -np.inf))))
