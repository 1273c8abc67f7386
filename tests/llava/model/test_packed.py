"""Packed rows equal unpacked ones, for every family and attention, and padding costs nothing."""

import pytest
import torch
from llavas import FAMILIES, batch, family_llava, gradients
from torch.nn.functional import scaled_dot_product_attention

from llava.model.segments import SEGMENTS, boundaries_as_mask, segment_attention

ROWS = [[1, -200, 5, 6, 7, 2], [1, 8, 9, 10], [1, 3], [1, -200, 4, -200, 11, 12, 13, 2], [9]]


def packed(given: dict, rows: list[list[int]]) -> dict:
    """The batch as one row of segments; a segment's first position has no label."""
    mask = given["attention_mask"]
    labels = given["labels"].clone()
    labels[:, 0] = -100
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": given["input_ids"][mask][None],
        "labels": labels[mask][None],
        "segment_ids": torch.repeat_interleave(torch.arange(len(rows)), lengths)[None],
        "images": given["images"],
    }


@pytest.mark.parametrize("attention", [SEGMENTS, "sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_unpacked(family, attention):
    """Sum of losses and gradients to 1e-5; sdpa uses transformers' own block mask."""
    given = batch(ROWS, prompt=1)
    model = family_llava(family)
    model.train()
    model(**given, num_items_in_batch=1).loss.backward()
    expected = gradients(model)
    plain = model(**given, num_items_in_batch=1).loss.item()
    model.set_attn_implementation(attention)
    loss = model(**packed(given, ROWS), num_items_in_batch=1).loss
    assert loss.item() == pytest.approx(plain, rel=1e-6, abs=1e-5)
    loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_segments_do_not_see_each_other():
    """What stands in one changes nothing in another; with plain attention it would."""
    model = family_llava(attention=SEGMENTS)
    given = packed(batch(ROWS), ROWS)
    first = model(**given).logits[0]
    given["input_ids"][0, -9:] = given["input_ids"][0, -9:].where(
        given["input_ids"][0, -9:] == -200, torch.tensor(50)
    )
    second = model(**given).logits[0]
    changed = (first != second).any(-1)
    assert not changed[: 16 + 5 + 4 + 2].any()
    assert changed[-9:].any()


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_padding_is_not_computed(family):
    """Rows go through the model one after the other; the loss stays as it was."""
    given = batch(ROWS)
    model = family_llava(family).train()
    expected = model(**given).loss
    model.set_attn_implementation(SEGMENTS)
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    found = model(**given).loss
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    assert seen == [(1, sum(map(len, ROWS)) + 3 * 15, 32)]


def test_ordinary_batches():
    """Where nothing is packed `segments` is sdpa: padded logits and generation."""
    given = batch(ROWS)
    model = family_llava()
    expected = model(**given).logits
    ids = torch.tensor([[1, -200, 5, 6]])
    new = {"images": given["images"][:1], "max_new_tokens": 5, "do_sample": False}
    wanted = model.generate(ids, **new)
    model.set_attn_implementation(SEGMENTS)
    assert torch.equal(model(**given).logits, expected)
    assert torch.equal(model.generate(ids, **new), wanted)


def test_sliding_window():
    """Within a segment the window counts as anywhere else."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 9, 4)
    mask = boundaries_as_mask((0, 6, 9))
    found, _ = segment_attention(
        torch.nn.Identity(), query, key, value, mask, scaling=0.5, sliding_window=3
    )
    place, segment = torch.arange(9), torch.tensor([0] * 6 + [1] * 3)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < 3) & (segment[:, None] == segment)
    expected = scaled_dot_product_attention(query, key, value, seen, scale=0.5)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_checkpointing():
    """Recomputed layers see the same segments."""
    given = packed(batch(ROWS), ROWS)
    model = family_llava(attention=SEGMENTS).train()
    model(**given).loss.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    model(**given).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-7, rtol=1e-5)
