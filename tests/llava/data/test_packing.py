"""Packs hold every sample once, never too much, and hardly a gap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.packing import PackedDataset, efficiency, pack
from llava.errors import LawError


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 100), max_size=120),
    st.integers(100, 400),
    st.integers(0, 5),
    st.integers(1, 50),
)
def test_properties(lengths, capacity, seed, window):
    """Every index once, capacity kept, nothing that one pack fewer in a window could hold."""
    packs = pack(lengths, capacity, seed, window)
    assert sorted(i for one in packs for i in one) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in one) for one in packs]
    assert all(0 < total <= capacity for total in sums)
    assert packs == pack(lengths, capacity, seed, window)
    if len(lengths) <= window:
        # no two packs would fit into one, so more than half of the room is used
        assert len(sums) < 2 or sum(sorted(sums)[:2]) > capacity


def mix(count: int, image_tokens: int = 256, seed: int = 0) -> np.ndarray:
    """Tokens of samples about as the 665K mix has them: 6% long texts, talks about an image."""
    generator = np.random.default_rng(seed)
    text_only = generator.random(count) < 0.06
    words = generator.lognormal(np.log(np.where(text_only, 1000, 200)), np.where(text_only, 1, 0.7))
    tokens = np.maximum(words, 16).astype(np.int64) + image_tokens * ~text_only
    return np.minimum(tokens, 2048)


@pytest.mark.parametrize(
    ("image_tokens", "capacity", "least"),
    # 576 tokens leave two or three samples to 2048: what is left over fits none of them
    [(256, 2048, 0.95), (576, 4096, 0.95), (576, 2048, 0.87)],
)
def test_efficiency(image_tokens, capacity, least):
    """Nearly all positions are filled, and the order of packs says nothing of lengths."""
    lengths = mix(40_000, image_tokens)
    packs = pack(lengths, capacity, seed=0)
    assert efficiency(packs, lengths, capacity) > least
    counts = np.array([len(one) for one in packs])
    half = len(counts) // 2
    assert abs(counts[:half].mean() - counts[half:].mean()) < 0.1 * counts.mean()


def test_seeds():
    """Another seed packs otherwise."""
    lengths = mix(500)
    assert pack(lengths, 2048, 1) != pack(lengths, 2048, 2)
    assert pack([], 10) == []
    assert efficiency([], [], 10) == 0


def test_too_long():
    """Names the sample."""
    with pytest.raises(LawError, match="sample 1 has 11 tokens, and a pack takes 10"):
        pack([3, 11, 2], 10)


class _Numbers:
    """A data set whose samples are their numbers."""

    lengths_in_tokens = np.array([4, 7, 2, 5])

    def __getitem__(self, i: int) -> int:
        return i


def test_dataset():
    """An item is the samples of its pack, a length their tokens."""
    packed = PackedDataset(_Numbers(), [[2, 0], [3], [1]])
    assert len(packed) == 3
    assert [packed[i] for i in range(3)] == [[2, 0], [3], [1]]
    assert packed.lengths.tolist() == [6, 5, 7]
    assert PackedDataset(_Numbers(), [[0, 1]], [1, 2, 3, 4]).lengths.tolist() == [3]
    assert len(PackedDataset(_Numbers(), []).lengths) == 0
    with pytest.raises(IndexError):
        packed[3]
