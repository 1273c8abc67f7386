"""Which towers a representation is made of, as rows of weights over towers.

The features of each tower are brought to length 1 and concatenated, so the cosine of the whole is
the mean of the towers' cosines: a row of equal weights.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from C_score.sources import Features
from llava import catalog
from llava.errors import UsageError
from llava.model.multimodal_encoder.known import towers
from llava.model.multimodal_encoder.registry import named_in, resolve

LARGEST = 14
"""Towers of which all combinations are scored: 16,383 of them."""


def all_combinations(count: int) -> list[tuple[int, ...]]:
    """Every non-empty subset of `count` towers: the single ones first, then pairs, and so on."""
    if count > LARGEST:
        raise UsageError(
            f"all combinations of {count} towers are {2**count - 1:,}; take at most {LARGEST}"
        )
    subsets = [tuple(t for t in range(count) if subset >> t & 1) for subset in range(1, 2**count)]
    return sorted(subsets, key=lambda subset: (len(subset), subset))


def membership(subsets: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """float32 [S, T]: 1 / (towers in the subset) for those in it, else 0."""
    members_ST = np.zeros((len(subsets), count), np.float32)
    for row, subset in enumerate(subsets):
        members_ST[row, list(subset)] = 1 / len(subset)
    return members_ST


def joined_name(parts: Sequence[Features], replace: Mapping[str, str] | None = None) -> str:
    """What results tables call the concatenation of `parts`: their names joined by '.'.

    The size of a part is left out where the registry would choose it anyway. `replace` maps towers
    to where their weights were read from; weights from elsewhere that it does not name may have a
    size that the registry refuses, and then every part keeps its own name.
    """
    names = [part.representation for part in parts]
    used = named_in(".".join(names), replace or {})
    if all(_tower(name) in towers() or _tower(name) in used for name in names):
        with contextlib.suppress(UsageError):
            sized = [part.sized for part in parts]
            names = [resolve(sized, grid_align="interpolate", replace=used).name]
    return catalog.representation_id(".".join(names))


def _tower(name: str) -> str:
    """A tower's name without size and settings."""
    return re.split("[@:]", name)[0]
