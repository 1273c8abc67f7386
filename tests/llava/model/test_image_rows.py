"""Images as they are given, tiles as one map, and stored features in place of images."""

from types import SimpleNamespace

import pytest
import torch
from llavas import CLIP, arguments, batch, family_llava, folders, golden_llava, gradients, pixels
from tiny import picture
from transformers.integrations import deepspeed

from llava.errors import LawError, UsageError
from llava.model import lazy_tower
from llava.model.image_rows import Layout, Views, views
from llava.model.multimodal_encoder.anyres import unpad
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.registry import resolve

PINPOINTS = [(32, 64), (64, 32), (64, 64)]
SIZES = [(100, 40), (30, 90), (50, 50)]


def test_ways_of_giving_images():
    """Counts of views, and whether they are groups."""
    one = torch.zeros(3, 8, 8)
    cases = [
        (one, 1, (1,), False),
        (torch.zeros(4, 3, 8, 8), 1, (1,) * 4, False),
        (torch.zeros(2, 5, 3, 8, 8), 1, (5, 5), True),
        ([one, torch.zeros(3, 3, 8, 8)], 1, (1, 3), True),
        (PixelBatch([torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 6, 6)]), 2, (1,) * 4, False),
        ([torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 6, 6)], 2, (1,) * 4, False),
        ([PixelBatch([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 6, 6)])] * 3, 2, (2,) * 3, True),
    ]
    for given, towers, counts, tiled in cases:
        found = views(given, towers)
        assert (found.counts, found.tiled) == (counts, tiled)
        parts = found.pixels.parts if towers > 1 else [found.pixels]
        assert [part.shape[0] for part in parts] == [sum(counts)] * towers
        assert [part.ndim for part in parts] == [4] * towers


@pytest.mark.parametrize(
    ("given", "towers", "said"),
    [
        ([], 1, "empty list"),
        (torch.zeros(4, 3, 8, 8), 2, "pixels for 1 towers, and the model has 2"),
        (torch.zeros(8, 8), 1, "2 dimensions"),
    ],
)
def test_what_is_no_image(given, towers, said):
    """Clear errors."""
    with pytest.raises(LawError, match=said):
        views(given, towers)


def test_merges():
    """Against a map put together tile by tile."""
    torch.manual_seed(0)
    tokens, newline = torch.randn(7, 4, 5), torch.randn(5)
    given = Views(torch.empty(0), (7,), True)
    flat, counts = Layout().rows(tokens, given, None)
    assert torch.equal(flat, tokens.reshape(28, 5))
    assert counts == [28]
    tiles = tokens[1:].reshape(2, 3, 2, 2, 5)  # rows, columns of tiles; rows, columns of tokens
    whole = torch.cat([torch.cat(list(row), 1) for row in tiles])
    found, counts = Layout("spatial", (2, 2)).rows(tokens, given, [((96, 64), (3, 2))])
    assert torch.equal(found, torch.cat([tokens[0], whole.reshape(24, 5)]))
    size = (96, 30)
    shown = unpad(whole.permute(2, 0, 1), size).permute(1, 2, 0)
    assert shown.shape[0] < 4
    ended = torch.cat([shown, newline.expand(len(shown), 1, 5)], 1).reshape(-1, 5)
    found, counts = Layout("spatial_unpad", (2, 2), newline).rows(tokens, given, [(size, (3, 2))])
    assert torch.equal(found, torch.cat([tokens[0], ended]))
    assert counts == [len(found)]
    alone = Views(torch.empty(0), (1,), True)
    found, _ = Layout("spatial_unpad", (2, 2), newline).rows(tokens[:1], alone, [(size, (1, 1))])
    assert torch.equal(found, torch.cat([tokens[0], newline[None]]))


def test_merges_that_do_not_fit():
    """Unknown, without sizes, of another number of tiles."""
    tokens, given = torch.zeros(7, 4, 5), Views(torch.empty(0), (7,), True)
    with pytest.raises(UsageError, match="did you mean 'spatial_unpad'"):
        Layout("spatial_unpadd")
    with pytest.raises(LawError, match="needs image_sizes"):
        Layout("spatial", (2, 2)).rows(tokens, given, None)
    with pytest.raises(LawError, match="6 tiles of 4 tokens; expected 2 x 2 tiles"):
        Layout("spatial", (2, 2)).rows(tokens, given, [((9, 9), (2, 2))])


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_anyres(merge):
    """Tiles of pictures through the model: as many rows as the processor says, newline trained."""
    model = family_llava()
    model.config.image_grid_pinpoints = PINPOINTS
    model.initialize_vision_modules(arguments(mm_patch_merge_type=merge))
    processor = model.get_vision_tower().image_processor
    pictures = [picture(*size) for size in SIZES]
    images = [processor.anyres(one, PINPOINTS) for one in pictures]
    rows, counts = model.encode_images(images, SIZES)
    assert counts == [processor.anyres_tokens(size, PINPOINTS, merge) for size in SIZES]
    assert len(rows) == sum(counts)
    given = batch([[1, -200, 5], [1, -200, 6, -200, 7]], prompt=2) | {"images": images}
    model.train()
    model(**given, image_sizes=SIZES).loss.backward()
    assert ("model.image_newline" in gradients(model)) == (merge == "spatial_unpad")
    assert ("model.image_newline" in model.state_dict()) == (merge == "spatial_unpad")


def test_stored_features():
    """A tower's tokens from a store give what its images give, and the tower stays unread."""
    model = golden_llava().eval()
    given = batch([[1, -200, 5], [1, 6], [1, -200, 7, 8]])
    tokens = model.get_vision_tower()(given["images"], torch.device("cpu"))
    expected = model(**given).logits
    model.initialize_vision_modules(
        arguments(), representation=model.get_vision_tower().representation, load_tower=False
    )
    images = given.pop("images")
    assert torch.equal(model(**given, image_features=tokens).logits, expected)
    assert not model.get_vision_tower().is_loaded
    listed = [tokens[:1], tokens[1]]
    assert torch.equal(model(**given, image_features=listed).logits, expected)
    assert torch.equal(model(**given, images=images).logits, expected)
    assert model.get_vision_tower().is_loaded


def test_one_image_without_a_batch():
    """[3, S, S], as some callers have it."""
    model = family_llava()
    ids, images = torch.tensor([[1, -200, 5]]), pixels(1)
    assert torch.equal(
        model(input_ids=ids, images=images[0]).logits, model(input_ids=ids, images=images).logits
    )


def test_model_without_a_tower():
    """Says how to give it one."""
    model = family_llava()
    model.set_vision_tower(None)
    with pytest.raises(LawError, match="without a vision tower"):
        model(input_ids=torch.tensor([[1, -200]]), images=pixels(1))


def test_tower_under_zero3(monkeypatch):
    """Whatever is loaded while ZeRO-3 is on would be split; a tower is read whole."""
    config = SimpleNamespace(is_zero3=lambda: True, config={})
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: config)
    assert deepspeed.is_deepspeed_zero3_enabled()
    seen = []

    def build(*_):
        seen.append(deepspeed.is_deepspeed_zero3_enabled())

    monkeypatch.setattr(lazy_tower, "build_tower", build)
    lazy_tower.LazyTower(resolve(CLIP, replace=folders(CLIP))).load_model()
    assert seen == [False]
    assert deepspeed.is_deepspeed_zero3_enabled()


def test_tower_is_no_module():
    """Neither in the state, nor moved or cast, nor split by what splits parameters."""
    model = family_llava()
    tower = model.get_vision_tower()
    assert tower.is_loaded
    names = [name for name, _ in model.named_modules()]
    assert not any("tower" in name for name in names)
    model.half()
    assert tower.dtype == torch.float32
    assert tower.load_model().dtype == torch.float32
    assert (tower.hidden_size, tower.num_tokens, tower.num_patches_per_side) == (24, 16, 4)
    assert tower.to("cpu", torch.bfloat16).load_model().dtype == torch.bfloat16
    assert folders(CLIP)[CLIP] == tower.representation.parts[0].weights
