"""Images between text: the reference's results, and what it leaves open."""

import json

import numpy as np
import pytest
import torch
from llavas import GOLDEN, golden_llava, golden_pixels

from llava.errors import LawError
from llava.model import splice
from llava.model.splice import plan

CASES = json.loads((GOLDEN / "splice.json").read_text())
STORED = np.load(GOLDEN / "splice.npz")
LISTED = [(towers, case) for towers in ("clip", "clip_dinov2") for case in CASES[towers]]


@pytest.fixture(scope="module")
def models():
    """The golden models by their towers."""
    return {towers: golden_llava(towers).eval() for towers in ("clip", "clip_dinov2")}


def prepared(model, towers: str, case: dict) -> tuple:
    """What the model makes of a golden case."""
    model.config.tokenizer_padding_side = case["padding_side"]
    if case["tokenizer_model_max_length"] is None:
        vars(model.config).pop("tokenizer_model_max_length", None)
    else:
        model.config.tokenizer_model_max_length = case["tokenizer_model_max_length"]
    ids = torch.tensor(case["input_ids"])
    labels, mask = ids.masked_fill(ids < 2, -100), ids != 0
    if case["case"].startswith("batch"):
        mask = torch.from_numpy(STORED[f"{towers}.attention_mask"])
        labels = torch.from_numpy(STORED[f"{towers}.labels"])
    elif case["case"] == "masked_out_image":
        mask = torch.tensor([[0, 1, 1]])
    if case.get("attention_mask_dtype") == "torch.int64":
        mask = mask.long()
    images = golden_pixels(STORED, f"{towers}.")
    return model.prepare_inputs_labels_for_multimodal(
        ids,
        torch.arange(ids.shape[1])[None].expand_as(ids) if case["position_ids_given"] else None,
        mask if case["mask_given"] else None,
        None,
        labels if case["labels_given"] else None,
        images,
    )


@pytest.mark.parametrize(
    ("towers", "case"), LISTED, ids=lambda v: v if isinstance(v, str) else v["case"]
)
def test_equals_the_reference(models, towers, case):
    """Embeddings to 1e-5, as the golden data say; all else exactly."""
    ids, position, mask, past, embeddings, labels = prepared(models[towers], towers, case)
    assert ids is None
    assert past is None
    expected = STORED[f"{towers}.{case['case']}.inputs_embeds"]
    np.testing.assert_allclose(embeddings.detach().numpy(), expected, atol=1e-5)
    for name, found in (("position_ids", position), ("attention_mask", mask)):
        assert (None if found is None else found.tolist()) == case[name], name
    if mask is not None:
        assert str(mask.dtype) == case["attention_mask_dtype"]
    assert (None if labels is None else labels.tolist()) == case["labels"]


def test_list_and_groups(models):
    """A list of images, and groups [1, 2, 3, S, S]: both views stand for the one placeholder."""
    model = models["clip"]
    vars(model.config).pop("tokenizer_model_max_length", None)
    images = golden_pixels(STORED, "clip.")
    listed, grouped = CASES["other"]
    found = model.prepare_inputs_labels_for_multimodal(
        torch.tensor(listed["input_ids"]), None, None, None, None, [images[0], images[2]]
    )[4]
    expected = STORED["clip.list_input.inputs_embeds"]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    found = model.prepare_inputs_labels_for_multimodal(
        torch.tensor(grouped["input_ids"]), None, None, None, None, images[None, :2]
    )[4]
    expected = STORED["clip.five_d_input.inputs_embeds"]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_without_images_and_for_one_id(models):
    """Everything comes back as it was given."""
    ids = torch.tensor([[5, 6]])
    given = (ids, None, "mask", "past", "labels")
    found = models["clip"].prepare_inputs_labels_for_multimodal(*given[:4], given[4], None)
    assert found == (ids, None, "mask", "past", None, "labels")
    one = torch.tensor([[7]])
    assert models["clip"].prepare_inputs_labels_for_multimodal(
        one, None, None, "past", None, torch.zeros(1, 3, 32, 32)
    ) == (one, None, None, "past", None, None)


def by_hand(ids, keep, image_rows, labels, length, side):
    """Rows of (text id or (image, row)) and labels, in loops."""
    wanted = sum(
        i == -200 and k
        for row, kept in zip(ids, keep, strict=True)
        for i, k in zip(row, kept, strict=True)
    )
    slots = wanted != len(image_rows)
    image, rows = 0, []
    for row, kept, marks in zip(ids, keep, labels, strict=True):
        out, used = [], False
        for token, k, mark in zip(row, kept, marks, strict=True):
            if k and token == -200:
                out += [((image, r), -100) for r in range(image_rows[image])]
                image, used = image + 1, True
            elif k:
                out.append((token, mark))
        image += slots and not used
        rows.append(out[:length])
    width = max(map(len, rows))
    empty = [(None, -100)]
    return [
        empty * (width - len(r)) + r if side == "left" else r + empty * (width - len(r))
        for r in rows
    ]


@pytest.mark.parametrize("seed", range(30))
def test_equals_loops(seed):
    """Random batches: padding anywhere, images of unequal rows, cut or not."""
    random = np.random.default_rng(seed)
    batch, length = random.integers(1, 5), random.integers(1, 12)
    ids = random.integers(3, 50, (batch, length))
    ids[random.random(ids.shape) < 0.2] = -200
    keep = random.random(ids.shape) < 0.8
    keep[:, -1] = True
    labels = random.integers(0, 50, ids.shape)
    placeholders = int(((ids == -200) & keep).sum())
    spare = int((~((ids == -200) & keep).any(1)).sum()) if random.random() < 0.5 else 0
    image_rows = random.integers(1, 5, placeholders + spare).tolist()
    side = "left" if random.random() < 0.5 else "right"
    cut = int(random.integers(1, 12)) if random.random() < 0.5 else None
    made = plan(
        *map(torch.from_numpy, (ids, keep)), image_rows, torch.from_numpy(labels), None, cut, side
    )
    meaning = [None, *made.text_ids.tolist()]
    meaning += [(i, r) for i, rows in enumerate(image_rows) for r in range(rows)]
    expected = by_hand(ids.tolist(), keep.tolist(), image_rows, labels.tolist(), cut, side)
    assert [[meaning[s] for s in row] for row in made.source_BT.tolist()] == [
        [what for what, _ in row] for row in expected
    ]
    assert made.labels_BT.tolist() == [[mark for _, mark in row] for row in expected]
    assert made.mask_BT.tolist() == [[what is not None for what, _ in row] for row in expected]


def test_flat_rows_and_segments():
    """Boundaries, positions and labels of rows laid one after the other, and of packed samples."""
    ids = torch.tensor([[1, -200, 5], [1, 6, 0]])
    keep = torch.tensor([[True, True, True], [True, True, False]])
    labels = torch.tensor([[1, -100, 5], [1, 6, -100]])
    made = plan(ids, keep, [2], labels, flat=True)
    assert made.boundaries == (0, 4, 6)
    assert made.position_BT.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert made.labels_BT.tolist() == [[-100, -100, -100, 5, -100, 6]]
    assert made.row_BT.tolist() == [[0, 0, 0, 0, 1, 1]]
    segments = torch.tensor([[4, 4, 9, 9, 9, 4]])
    packed = plan(torch.tensor([[1, 7, 1, -200, 8, 1]]), segments > 0, [3], None, segments)
    assert packed.boundaries == (0, 2, 7, 8)
    assert packed.position_BT.tolist() == [[0, 1, 0, 1, 2, 3, 4, 0]]


def test_cut_is_of_every_segment():
    """A packed row may be longer than one sample may."""
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    ids = torch.arange(5)[None] + 3
    made = plan(ids, segments >= 0, [], ids, segments, max_length=2)
    assert made.text_ids[made.source_BT[0] - 1].tolist() == [3, 4, 6, 7]
    assert made.boundaries == (0, 2, 4)


@pytest.mark.parametrize(
    ("ids", "images"), [([[1, -200, -200]], 1), ([[1, 5], [-200, -200]], 1), ([[5], [-200]], 0)]
)
def test_too_few_images(ids, images):
    """The error counts both."""
    ids = torch.tensor(ids)
    with pytest.raises(LawError, match=f"there are {images} images"):
        plan(ids, ids != 0, [4] * images)


def test_images_left_over_are_told(law_log):
    """As in the reference they are passed over, but not in silence."""
    splice._tell_of_unused.cache_clear()
    ids = torch.tensor([[1, -200]])
    assert plan(ids, ids != 0, [2, 2]).source_BT.tolist() == [[1, 2, 3]]
    assert any("more images than image tokens" in line for line in law_log)
