"""The order of samples: batches of one modality and similar lengths, as LLaVA groups them.

Lengths have a sign: positive with an image, negative without. A megabatch is what all processes
take together; inside of it samples are sorted by length and dealt out so that every process gets
about the same work. Batches are of one modality except the last, which takes what is left of both.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from llava.errors import LawError


def modality_grouped(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None = None,
    within: torch.Generator | None = None,
) -> list[int]:
    """Every index once, in LLaVA's order; `lengths` have the sign of the modality.

    `within` draws the order inside of each modality and `generator` that of the megabatches; None
    is torch's global generator. LLaVA leaves `within` at None, always.
    """
    if not all(lengths):
        raise LawError(f"sample {list(lengths).index(0)} has length 0; leave empty samples out")
    images = [i for i, length in enumerate(lengths) if length > 0]
    texts = [i for i, length in enumerate(lengths) if length < 0]
    if not images or not texts:
        return length_grouped(lengths, batch_size, world_size, generator)
    whole, rest = [], []
    for indices in (images, texts):
        own = [abs(lengths[i]) for i in indices]
        order = [indices[i] for i in length_grouped(own, batch_size, world_size, within)]
        batches = _cut(order, batch_size * world_size)
        whole += batches[:-1]
        rest += batches[-1]
    shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
    return [i for batch in [*shuffled, sorted(rest)] for i in batch]


def length_grouped(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Every index once: random megabatches, in each of them the longest first and work even."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    found = []
    for megabatch in _cut(order, batch_size * world_size):
        longest_first = sorted(megabatch, key=lambda i: lengths[i], reverse=True)
        for share in _even_shares(longest_first, lengths, world_size):
            found += share
    return found


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _even_shares(indices: list[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` shares of equal size; the next sample goes to the share with the least length."""
    if len(indices) % count:
        return [indices[i::count] for i in range(count)]
    size = len(indices) // count
    shares: list[list[int]] = [[] for _ in range(count)]
    sums: list[float] = [0] * count
    for index in indices:
        least = sums.index(min(sums))
        shares[least].append(index)
        sums[least] += lengths[index]
        if len(shares[least]) == size:
            sums[least] = float("inf")
    return shares


class ModalityLengthSampler(Sampler[int]):
    """Indices in the order above, drawn anew every epoch from (seed, epoch) alone.

    `world_size` counts accumulation steps as well, as LLaVA's does.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int],
        group_by_modality: bool = True,
        seed: int = 0,
    ):
        self.batch_size, self.world_size = batch_size, world_size
        self.lengths = [int(length) for length in lengths]
        self.group_by_modality = group_by_modality
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.group_by_modality:
            return iter(
                modality_grouped(
                    self.lengths, self.batch_size, self.world_size, generator, within=generator
                )
            )
        absolute = [abs(length) for length in self.lengths]
        return iter(length_grouped(absolute, self.batch_size, self.world_size, generator))


class ShuffledSampler(Sampler[int]):
    """All indices in an order drawn anew every epoch from (seed, epoch) alone."""

    def __init__(self, count: int, seed: int = 0):
        self.count, self.seed = count, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())
