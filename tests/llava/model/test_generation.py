"""Generation against the reference's greedy ids; batches, padding, what prefill computes."""

import json

import numpy as np
import pytest
import torch
from llavas import GOLDEN, family_llava, golden_llava, pixels

from llava.errors import LawError
from llava.model.multimodal_encoder.combined import PixelBatch

EXPECTED = json.loads((GOLDEN / "generate.json").read_text())
STORED = np.load(GOLDEN / "generate.npz")
PIXELS = np.load(GOLDEN / "images" / "pixel_values.npz")
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="module", params=["clip", "clip_dinov2"])
def golden(request):
    """(towers, model)"""
    return request.param, golden_llava(request.param).eval()


def images(towers: str, names: list[str]):
    """Golden pixels of image files, of every tower."""
    parts = [
        torch.from_numpy(np.stack([PIXELS[f"square/{tower}/{name}"] for name in names]))
        for tower in (["clip", "dinov2"] if towers == "clip_dinov2" else ["clip"])
    ]
    return PixelBatch(parts) if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("use_cache", [True, False])
def test_single(golden, use_cache):
    """New ids alone, with and without a cache."""
    towers, model = golden
    for number, case in enumerate(EXPECTED[towers]["single"]):
        ids = torch.tensor([case["input_ids"]])
        seen = images(towers, [case["image"]])
        found = model.generate(ids, images=seen, use_cache=use_cache, **GREEDY)
        assert found[0].tolist() == case["output_ids"]
        logits = model(input_ids=ids, images=seen, logits_to_keep=1).logits[0, -1]
        wanted = STORED[f"{towers}.{number}.first_step_logits"]
        np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=2e-5)


def test_text_only(golden):
    """New ids alone, here too."""
    towers, model = golden
    case = EXPECTED[towers]["text_only"]
    found = model.generate(torch.tensor([case["input_ids"]]), **GREEDY)
    assert found[0].tolist() == case["output_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(golden, side):
    """Padded on either side: as each row alone."""
    towers, model = golden
    case = EXPECTED[towers]["left_padded_batch"]
    ids = torch.tensor(case["input_ids"])
    mask = torch.tensor(case["attention_mask"]) if "attention_mask" in case else (ids != 0).long()
    if side == "right":
        order = mask.sort(dim=1, descending=True, stable=True).indices
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    names = case.get("images") or [one["image"] for one in EXPECTED[towers]["single"][: len(ids)]]
    model.config.tokenizer_padding_side = side
    found = model.generate(
        input_ids=ids, attention_mask=mask, images=images(towers, names), **GREEDY
    )
    assert found.tolist() == case["output_ids"]


def test_prefill_makes_one_row_of_logits():
    """The head sees the last position of every row, at every step."""
    model = family_llava()
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    ids = torch.tensor([[1, -200, 5, 6], [1, 7, -200, 9]])
    model.generate(ids, images=pixels(2), max_new_tokens=3, do_sample=False)
    assert seen == [(2, 1, 32)] * 3


def test_arguments_of_evaluation_suites():
    """What lmms-eval passes is taken; positions are made anew."""
    model = family_llava()
    ids = torch.tensor([[1, -200, 5, 6]])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(4)[None],
        pad_token_id=0,
        images=pixels(1),
        image_sizes=[(32, 32)],
        do_sample=False,
        temperature=None,
        top_p=None,
        num_beams=2,
        max_new_tokens=3,
        use_cache=True,
    )
    assert found.shape == (1, 3)


def test_image_token_without_image():
    """An error, not an index into the vocabulary."""
    with pytest.raises(LawError, match="0 images"):
        family_llava().generate(torch.tensor([[1, -200]]), max_new_tokens=1)
