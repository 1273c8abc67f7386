"""Several whole samples to a sequence, so that hardly a position is padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from llava.errors import LawError

WINDOW = 8192
"""Samples that are packed together: enough for full sequences, few enough to stay random."""


def pack(
    lengths: Sequence[int], capacity: int, seed: int = 0, window: int = WINDOW
) -> list[list[int]]:
    """Packs of indices, every index once, each pack's lengths at most `capacity` together.

    Samples are shuffled, then packed in windows, the longest first, each into the fullest pack that
    still takes it (best-fit decreasing). The same for the same arguments on any machine. Raises
    LawError for a sample longer than `capacity`.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and (longest := int(sizes.argmax())) >= 0 and sizes[longest] > capacity:
        raise LawError(
            f"sample {longest} has {sizes[longest]} tokens, and a pack takes {capacity}; cut "
            "samples to the same maximum length"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    order = generator.permutation(len(sizes))
    packs: list[list[int]] = []
    for start in range(0, len(order), window):
        packs += _best_fit(order[start : start + window], sizes, capacity)
    return [packs[i] for i in generator.permutation(len(packs))]


def _best_fit(indices: np.ndarray, sizes: np.ndarray, capacity: int) -> list[list[int]]:
    longest_first = indices[np.argsort(-sizes[indices], kind="stable")]
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), rising
    for index in longest_first.tolist():
        size = int(sizes[index])
        place = bisect_left(room, (size, -1))
        if place == len(room):
            left, number = capacity, len(packs)
            packs.append([])
        else:
            left, number = room.pop(place)
        packs[number].append(index)
        insort(room, (left - size, number))
    return packs


def efficiency(packs: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int) -> float:
    """Share of all packs' positions that samples fill, 0 to 1."""
    filled = sum(int(lengths[index]) for pack in packs for index in pack)
    return filled / max(1, len(packs) * capacity)


class PackedDataset(Dataset):
    """Packs of another data set's samples: an item is the list of a pack's samples."""

    def __init__(
        self,
        dataset: Dataset,
        packs: Sequence[Sequence[int]],
        lengths: Sequence[int] | None = None,
    ):
        """`lengths` are the samples' own; without them they are `dataset.lengths_in_tokens`."""
        self.dataset = dataset
        # Two arrays, not a list of lists, which every worker process would come to copy.
        self._indices = np.fromiter((i for pack in packs for i in pack), np.int64)
        self._starts = np.cumsum([0, *map(len, packs)])
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: int) -> list[dict[str, Any]]:
        return [self.dataset[int(index)] for index in self.indices(i)]

    def indices(self, i: int) -> np.ndarray:
        """Which samples a pack holds."""
        if not 0 <= i < len(self):
            raise IndexError(f"pack {i} of {len(self)}")
        return self._indices[self._starts[i] : self._starts[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [packs]: tokens of every pack."""
        own = self.dataset.lengths_in_tokens if self._lengths is None else self._lengths
        sizes = np.asarray(own, np.int64)[self._indices]
        return np.add.reduceat(sizes, self._starts[:-1]) if len(self) else sizes
