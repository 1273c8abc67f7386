"""The order equals LLaVA's, index by index, and a sampler's own depends on (seed, epoch) alone."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from llava.data.sampler import (
    ModalityLengthSampler,
    ShuffledSampler,
    length_grouped,
    modality_grouped,
)
from llava.errors import LawError

GOLDEN = json.loads((ROOT / "tests" / "golden" / "llava" / "sampler.json").read_text())
CASES = [pytest.param(c, id=f"{c['name']}-{c['seed']}") for c in GOLDEN["cases"]]


def check(expected: list[int] | str, order) -> None:
    """`order()` is what the reference gave; where that was an exception, ours is a LawError."""
    if isinstance(expected, str):
        with pytest.raises(LawError, match="has length 0"):
            order()
    else:
        assert order() == expected


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    """With torch's global generator, as LLaVA draws."""
    given = case["lengths"], case["batch_size"], case["world_size"]
    torch.manual_seed(case["seed"])
    check(case["modality_grouped"], lambda: modality_grouped(*given))
    torch.manual_seed(case["seed"])
    own = torch.Generator().manual_seed(case["seed"] + 1)
    check(case["modality_grouped_with_generator"], lambda: modality_grouped(*given, own))
    torch.manual_seed(case["seed"])
    absolute = [abs(length) for length in case["lengths"]]
    assert length_grouped(absolute, *given[1:]) == case["length_grouped_abs"]


@pytest.mark.parametrize("case", GOLDEN["split_to_even_chunks"])
def test_shares(case):
    """Equal counts and about equal work for every process."""
    from llava.data.sampler import _even_shares

    assert _even_shares(case["indices"], case["lengths"], case["num_chunks"]) == case["out"]


lengths = st.lists(st.integers(-300, 300).filter(bool), min_size=1, max_size=80)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_every_index_once(values, batch, world, group, epoch):
    """Of any mix, also less than a megabatch or of one modality; the global generator is left."""
    sampler = ModalityLengthSampler(batch, world, values, group_by_modality=group, seed=5)
    sampler.set_epoch(epoch)
    state = torch.get_rng_state()
    order = list(sampler)
    assert sorted(order) == list(range(len(values)))
    assert len(sampler) == len(values)
    assert torch.equal(state, torch.get_rng_state())
    assert order == list(sampler)


def test_one_modality_a_batch():
    """All megabatches but the last hold one modality, and inside of it similar lengths."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 500, (403,), generator=generator).tolist()
    values = [-size if i % 4 == 0 else size for i, size in enumerate(sizes)]
    order = list(ModalityLengthSampler(4, 8, values, seed=1))
    megabatches = [order[i : i + 32] for i in range(0, len(order), 32)]
    pure = [len({values[i] > 0 for i in batch}) == 1 for batch in megabatches]
    assert all(pure[:-2])
    work = [
        [sum(abs(values[i]) for i in b[k : k + 4]) for k in range(0, 32, 4)] for b in megabatches
    ]
    assert all(max(w) < 1.35 * min(w) for w in work[:-2])


def test_epochs_and_seeds_differ():
    """And the same pair gives the same order, in another object as well."""
    values = list(range(1, 200))

    def order(seed: int, epoch: int, kind=lambda s: ModalityLengthSampler(4, 2, values, seed=s)):
        sampler = kind(seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    for kind in (
        lambda s: ModalityLengthSampler(4, 2, values, seed=s),
        lambda s: ShuffledSampler(199, s),
    ):
        assert order(1, 0, kind) == order(1, 0, kind)
        assert len({tuple(order(s, e, kind)) for s, e in [(1, 0), (1, 1), (7, 0)]}) == 3
    assert sorted(ShuffledSampler(199, 3)) == list(range(199))


def test_numpy_lengths():
    """Lengths may be an array, as a data set gives them."""
    values = torch.arange(1, 40).numpy()
    assert list(ModalityLengthSampler(2, 2, values)) == list(
        ModalityLengthSampler(2, 2, values.tolist())
    )
