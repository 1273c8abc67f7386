"""anyres against the reference: the resolution chosen, the tiles, and what is cut off again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT

from llava.model.multimodal_encoder.anyres import anyres_pixels, select_best_resolution, unpad
from llava.model.multimodal_encoder.preprocess import pad_to_square
from llava.model.multimodal_encoder.registry import resolve

IMAGES = ROOT / "tests" / "golden" / "llava" / "images"
PIXELS = np.load(IMAGES / "pixel_values.npz")
GEOMETRY = json.loads((IMAGES / "geometry.json").read_text())
RESOLUTIONS = [(32, 64), (64, 32), (64, 64)]


@pytest.mark.parametrize("case", [key for key in PIXELS if key.startswith("anyres/")])
def test_tiles(case, monkeypatch):
    """Overview and tiles, to the last bit."""
    monkeypatch.chdir(ROOT / "tests" / "golden" / "llava" / "models")
    _, _, name = case.split("/")
    image = Image.fromarray(PIXELS[f"rgb/{name}"])
    found = anyres_pixels(image, resolve("openai/clip-vit-large-patch14").parts[0], RESOLUTIONS)
    np.testing.assert_array_equal(found.numpy(), PIXELS[case])


@pytest.mark.parametrize(("size", "options", "best"), GEOMETRY["select_best_resolution"])
def test_resolution(size, options, best):
    """Most pixels kept, then least wasted, then first."""
    assert select_best_resolution(tuple(size), [tuple(o) for o in options]) == tuple(best)


@pytest.mark.parametrize(("height", "width", "size", "shape"), GEOMETRY["unpad_image"])
def test_unpad(height, width, size, shape):
    """The rows or columns that the black borders became are gone, evenly on both sides."""
    grid = torch.arange(height * width).reshape(1, height, width)
    found = unpad(grid, tuple(size))
    assert list(found.shape[1:]) == shape
    assert torch.equal(found.flip(1, 2), grid.max() - found)  # the same on both sides


@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_padding_colour(tower):
    """What stands around a padded image is the tower's mean, as whole grey levels."""
    padded = pad_to_square(Image.new("RGB", (9, 3)), resolve(tower).parts[0].mean)
    assert list(padded.getpixel((0, 0))) == GEOMETRY["pixel_mean_background"][tower]
