"""Rows that begin alike: the likelihoods of each alone, with less to compute."""

import pytest
import torch
from llavas import family_llava, pixels

from llava.constants import IGNORE_INDEX
from llava.data.masks import Labelled
from llava.errors import LawError
from llava.eval.shared_prefix import Group, can_share, groups, shared_likelihood
from llava.model.likelihood import answer_likelihood
from llava.model.segments import SEGMENTS

IMAGE = -200


def row(given, answer):
    """Ids of which the answer's are supervised."""
    return Labelled([*given, *answer], [IGNORE_INDEX] * len(given) + list(answer))


ROWS = [
    row([1, 5, IMAGE, 7, 8, 9], [11, 12, 2]),
    row([1, 5, IMAGE, 7, 8, 9], [13, 2]),
    row([1, 5, IMAGE, 7, 30, 31, 32, 33], [14, 15, 16, 17, 2]),
    row([1, 5, IMAGE, 7, 8, 9], [11, 12, 2]),
    row([1, 5, IMAGE, 6, IMAGE, 9], [11, 2]),
    row([1, 5, 6], [18, 19, 2]),
    row([1, 5, 7, 8], [20, 2]),
]
IMAGES = ["a", "a", "a", "b", "bc", "", ""]


def alone(model, rows, seen):
    """Sum, count and greediness of every row by itself."""
    found = []
    for one, pictures in zip(rows, seen, strict=True):
        given = {"images": torch.cat([PICTURES[name] for name in pictures])} if pictures else {}
        ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])
        got = answer_likelihood(model, input_ids=ids, labels=labels, **given)
        found.append((got.sum_B.item(), got.count_B.item(), got.greedy_B.item()))
    return found


PICTURES = dict(zip("abc", pixels(3).split(1), strict=True))


def test_groups():
    """By images and by what stands before the last of them; never up to the last token before."""
    assert groups(ROWS, IMAGES) == [
        Group(4, (0, 1, 2)),
        Group(5, (3,)),
        Group(5, (4,)),
        Group(2, (5, 6)),
    ]
    assert groups(ROWS[:2], IMAGES[:2]) == [Group(5, (0, 1))]
    assert groups(ROWS[2:5], IMAGES[2:5]) is None  # nothing to share
    bare = [row([1, IMAGE], [5, 2]), row([1, IMAGE], [6, 2])]
    assert groups(bare, ["a", "a"]) is None  # the image predicts the answer


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_likelihoods_are_those_of_each_row_alone(family):
    """Groups of one row, of two images, of text alone; prefixes and rests of unequal length."""
    model = family_llava(family).eval()
    shared = groups(ROWS, IMAGES)
    seen = torch.cat([PICTURES[name] for group in shared for name in IMAGES[group.rows[0]]])
    found = shared_likelihood(model, ROWS, shared, 0, images=seen)
    wanted = alone(model, ROWS, IMAGES)
    assert found.sum_B.tolist() == pytest.approx([one[0] for one in wanted], abs=2e-5)
    assert found.count_B.tolist() == [one[1] for one in wanted]
    assert found.greedy_B.tolist() == [one[2] for one in wanted]


def test_what_is_shared_is_computed_once():
    """The language model sees the beginning one time, and then the rests alone."""
    model = family_llava().eval()
    seen = []
    norm = model.base_model.norm
    norm.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[:2])))
    tokens = len(model.mm_projector(torch.zeros(1, 16, model.config.mm_hidden_size))[0])
    rows = ROWS[:2]
    shared_likelihood(model, rows, groups(rows, "aa"), 0, images=PICTURES["a"])
    assert seen[0][0] == 1
    assert seen[0][1] == 4 + tokens
    assert seen[1] == (2, 4)


def test_rows_beyond_the_maximum_length():
    """An answer that training would have cut off is no answer."""
    model = family_llava().eval()
    model.config.tokenizer_model_max_length = 12
    with pytest.raises(LawError, match="beyond the model's maximum length of 12"):
        shared_likelihood(model, ROWS[:2], groups(ROWS[:2], "aa"), 0, images=PICTURES["a"])


def test_attention_without_a_cache():
    """Packed segments cannot go on from one."""
    assert can_share(family_llava())
    assert not can_share(family_llava(attention=SEGMENTS))
