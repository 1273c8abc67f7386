"""Which order the Trainer takes its samples in."""

from types import SimpleNamespace

import pytest

from llava.data.sampler import ModalityLengthSampler, ShuffledSampler
from llava.train.trainer import LLaVATrainer

WORDS, TOKENS = [5, -9, 3, -1], [581, 9, 579, 1]


def sampler(strategy="random", by_modality=False, packed=False):
    """What is made of the flags, over four samples, two of them with an image."""
    trainer = LLaVATrainer.__new__(LLaVATrainer)
    trainer.args = SimpleNamespace(
        seed=3,
        data_seed=None,
        train_batch_size=1,
        world_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy=strategy,
        group_by_modality_length=by_modality,
    )
    lengths = {} if packed else {"modality_lengths": WORDS, "lengths_in_tokens": TOKENS}
    trainer.train_dataset = type("Dataset", (), {"__len__": lambda self: 4, **lengths})()
    return trainer._get_train_sampler()


@pytest.mark.parametrize(
    ("flags", "lengths", "by_modality"),
    [
        ({"by_modality": True}, WORDS, True),
        ({"strategy": "group_by_length"}, TOKENS, False),
        ({"strategy": "group_by_length", "by_modality": True}, WORDS, True),
    ],
)
def test_grouped(flags, lengths, by_modality):
    """By modality as LLaVA does, in words; by length alone in tokens, so that images count."""
    found = sampler(**flags)
    assert isinstance(found, ModalityLengthSampler)
    assert (found.lengths, found.group_by_modality) == (lengths, by_modality)
    assert (found.batch_size, found.world_size, found.seed) == (1, 4, 3)


def test_not_grouped():
    """Random order is ours, so that it follows from seed and epoch; other orders are not."""
    assert isinstance(sampler(), ShuffledSampler)
    assert isinstance(sampler(strategy="group_by_length", packed=True), ShuffledSampler)
    assert not isinstance(sampler(strategy="sequential"), ShuffledSampler)
