"""Tower tokens that are kept: those of the tower, each computed once."""

import pytest
import torch
from PIL import Image
from world import make_world, stage1

from llava.errors import LawError, UsageError
from llava.eval.vision_cache import VisionCache
from llava.features import FeatureStore
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with a stage 1 of one tower, and of two."""
    root = make_world(tmp_path_factory.mktemp("cache"))
    both = f"{root / 'clip'}+{root / 'dinov2'}"
    train(stage1(root, root / "one", max_steps=1))
    train(stage1(root, root / "two", max_steps=1, vision_tower=both, image_aspect_ratio="pad"))
    return root


@pytest.fixture(params=["one", "two"])
def loaded(request, world):
    """(model, image processor)"""
    _, model, processor, _ = load_pretrained_model(str(world / request.param), str(world / "llm"))
    return model, processor


@pytest.fixture
def images(world):
    """Four, of different sizes."""
    return [Image.open(world / "images" / f"{i}.png").convert("RGB") for i in range(4)]


def counted(model, monkeypatch):
    """How many images the first tower has been run on, call by call."""
    tower = model.get_vision_tower().load_model()
    first = tower.parts[0] if hasattr(tower, "parts") else tower
    seen = []
    monkeypatch.setattr(
        first, "forward", lambda pixels, run=first.forward: seen.append(len(pixels)) or run(pixels)
    )
    return seen


def of_the_tower(model, processor, image):
    """Tokens of one image, without a cache."""
    pixels = process_images([image], processor, model.config)
    with torch.inference_mode():
        return model.get_vision_tower()(pixels, torch.device("cpu"))


def test_tokens_are_the_towers(loaded, images, monkeypatch):
    """In the order asked for, however often; missing ones alone are computed, in one call."""
    model, processor = loaded
    wanted = [of_the_tower(model, processor, image) for image in images]
    cache, seen = VisionCache(model, processor), counted(model, monkeypatch)
    for order, runs in (([1, 0, 1], [2]), ([3, 2, 1, 0], [2, 2]), ([0, 3], [2, 2])):
        found = cache.tokens(cache.prepare([images[i] for i in order]))
        for i, tokens in zip(order, found, strict=True):
            torch.testing.assert_close(tokens, wanted[i], atol=2e-6, rtol=1e-5)
        assert seen == runs


def test_rows_are_those_of_the_images(loaded, images):
    """What the model makes of cached tokens is what it makes of pixels."""
    model, processor = loaded
    cache = VisionCache(model, processor)
    pixels = process_images(images, processor, model.config)
    with torch.inference_mode():
        rows, counts = model.encode_images(pixels)
        again, same = model.encode_images(None, **cache.arguments(cache.prepare(images)))
    assert counts == same
    torch.testing.assert_close(again, rows, atol=2e-6, rtol=1e-5)
    assert cache.arguments(cache.prepare([])) == {}


def test_least_lately_used_go_first(loaded, images, monkeypatch):
    """Room for two images."""
    model, processor = loaded
    cache, seen = VisionCache(model, processor), counted(model, monkeypatch)
    a, b, c, _ = images
    cache.room = 2.5 * cache.tokens(cache.prepare([a]))[0].nbytes
    for image in (b, a, c, a, b):
        cache.tokens(cache.prepare([image]))
    assert seen == [1] * 4  # a, b, c, and b again, which made room for c
    late = cache.prepare([a])
    cache.tokens(cache.prepare([b, c]))
    assert len(cache.tokens(late)) == 1  # prepared while it was there, and gone since


def test_memory_is_that_of_what_is_kept(loaded, images):
    """No view that keeps the tokens of its whole batch alive."""
    cache = VisionCache(*loaded)
    for tokens in cache.tokens(cache.prepare(images)):
        assert tokens.untyped_storage().nbytes() == tokens.nbytes


def test_tokens_that_are_no_numbers(loaded, images, tmp_path):
    """Refused before they are kept anywhere."""
    model, processor = loaded
    tower = model.get_vision_tower().load_model()
    first = tower.parts[0] if hasattr(tower, "parts") else tower
    with torch.no_grad():
        next(iter(first.parameters())).fill_(float("nan"))
    cache = VisionCache(model, processor, store=str(tmp_path))
    with pytest.raises(LawError, match="gave NaN or infinite features in float32"):
        cache.tokens(cache.prepare(images))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_store_is_shared(loaded, images, tmp_path, monkeypatch):
    """Another process, or a combination with this tower, finds them; damage is made good."""
    model, processor = loaded
    store = str(tmp_path / "store")
    first = VisionCache(model, processor, store=store)
    wanted = first.tokens(first.prepare(images))
    seen = counted(model, monkeypatch)
    again = VisionCache(model, processor, store=store)
    found = again.tokens(again.prepare(images))
    assert seen == []
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    shard = next(FeatureStore(store).spaces()[0].folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    mended = VisionCache(model, processor, store=store)
    found = mended.tokens(mended.prepare(images))
    assert len(seen) == 1
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_stores_that_would_be_wrong(loaded, tmp_path):
    """Tiles, and towers whose weights a checkpoint brings."""
    model, processor = loaded
    model.get_vision_tower().has_own_weights = True
    with pytest.raises(UsageError, match="brings its own tower weights"):
        VisionCache(model, processor, store=str(tmp_path))
    model.get_vision_tower().has_own_weights = False
    model.config.image_aspect_ratio = "anyres"
    with pytest.raises(UsageError, match="looks at tiles"):
        VisionCache(model, processor, store=str(tmp_path))
    model.set_vision_tower(None)
    with pytest.raises(UsageError, match="no vision tower"):
        VisionCache(model, None, store=str(tmp_path))


def test_tiles(world, images):
    """anyres: every image has its own number of views, and sizes come along."""
    _, model, processor, _ = load_pretrained_model(str(world / "one"), str(world / "llm"))
    side = processor.crop_size["width"]
    model.config.image_aspect_ratio = "anyres"
    model.config.image_grid_pinpoints = [[side, 2 * side], [2 * side, 2 * side]]
    wide = images[0].resize((200, 190))
    tall = images[1].resize((40, 160))
    cache = VisionCache(model, processor)
    given = cache.arguments(cache.prepare([wide, tall]))
    assert [len(one) for one in given["image_features"]] == [5, 3]
    pixels = process_images([wide, tall], processor, model.config)
    with torch.inference_mode():
        rows, counts = model.encode_images(pixels, [wide.size, tall.size])
        again, same = model.encode_images(None, given["image_sizes"], given["image_features"])
    assert counts == same
    torch.testing.assert_close(again, rows, atol=2e-6, rtol=1e-5)
