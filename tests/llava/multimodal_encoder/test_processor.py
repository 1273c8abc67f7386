"""The processor of a whole representation: the reference's pixels, of one tower and of several."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT
from tiny import picture

from llava.errors import UsageError
from llava.model.multimodal_encoder.anyres import parse_pinpoints
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.combined import PixelBatch, joined
from llava.model.multimodal_encoder.frames import frame_of
from llava.model.multimodal_encoder.preprocess import pixels
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import Representation, resolve

GOLDEN = ROOT / "tests" / "golden" / "llava"
PIXELS = np.load(GOLDEN / "images" / "pixel_values.npz")
TOWERS = {
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-large",
    "siglip": "google/siglip-base-patch16-224",
}
PINPOINTS = [(32, 64), (64, 32), (64, 64)]


@pytest.fixture
def golden_towers(monkeypatch):
    """The golden folders go by the names of the towers that they stand for."""
    monkeypatch.chdir(GOLDEN / "models")


@pytest.mark.parametrize("case", [k for k in PIXELS if k.split("/")[0] in ("square", "pad")])
def test_golden(case, golden_towers):
    """One tower, to the last bit."""
    mode, tower, name = case.split("/")
    processor = ImageProcessor(resolve(TOWERS[tower])).for_aspect_ratio(mode, "shared")
    found = processor([Image.fromarray(PIXELS[f"rgb/{name}"])])
    np.testing.assert_array_equal(found[0].numpy(), PIXELS[case])


@pytest.mark.parametrize("mode", ["square", "pad"])
@pytest.mark.parametrize("names", [("clip", "dinov2"), ("siglip", "clip", "dinov2")])
def test_golden_together(mode, names, golden_towers):
    """In their own geometry several towers get what each gets alone, padded in its own colour."""
    files = [key.removeprefix("rgb/") for key in PIXELS if key.startswith("rgb/")]
    images = [Image.fromarray(PIXELS[f"rgb/{file}"]) for file in files]
    processor = ImageProcessor(resolve([TOWERS[name] for name in names]))
    found = processor.for_aspect_ratio(mode)(images)
    assert isinstance(found, PixelBatch)
    for name, part in zip(names, found.parts, strict=True):
        expected = np.stack([PIXELS[f"{mode}/{name}/{file}"] for file in files])
        np.testing.assert_array_equal(part.numpy(), expected)


@pytest.mark.parametrize("case", [key for key in PIXELS if key.startswith("anyres/")])
def test_golden_anyres(case, golden_towers):
    """Overview and tiles, to the last bit; resolutions as a list and as a config's text."""
    image = Image.fromarray(PIXELS[f"rgb/{case.split('/')[2]}"])
    processor = ImageProcessor(resolve(TOWERS["clip"])).for_aspect_ratio("anyres")
    for pinpoints in (PINPOINTS, str(PINPOINTS)):
        found = processor.anyres(image, pinpoints)
        np.testing.assert_array_equal(found.numpy(), PIXELS[case])
        columns, rows = processor.anyres_grid(image.size, pinpoints)
        assert len(found) == 1 + columns * rows


@pytest.mark.parametrize(
    ("ratio", "geometry", "frame"),
    [
        ("square", "own", "own"),
        (None, "own", "own"),
        ("pad", "own", "own_pad"),
        ("square", "shared", "crop"),
        ("pad", "shared", "pad"),
        ("anyres", "own", "own"),
    ],
)
def test_frames(ratio, geometry, frame):
    """LLaVA's words as frames."""
    assert frame_of(ratio, geometry) == frame


def test_unknown_words():
    """With the near one, where the reference takes any word for `square`."""
    with pytest.raises(UsageError, match="unknown image_aspect_ratio 'pads'; did you mean 'pad'"):
        frame_of("pads", "own")
    with pytest.raises(UsageError, match="did you mean 'shared'"):
        frame_of("pad", "share")
    with pytest.raises(UsageError, match="unknown frame"):
        ImageProcessor(resolve("clip"), "square")


def test_geometry():
    """One tower is always its own; several are unless the config says that they share."""
    alone, both = (ImageProcessor(resolve(name)) for name in ("clip", "clip+dinov2"))
    assert alone.for_aspect_ratio("pad", "shared").frame == "own_pad"
    assert both.for_aspect_ratio("pad").frame == "own_pad"
    assert both.for_aspect_ratio("pad", "shared").frame == "pad"
    assert both.for_aspect_ratio(None, "shared").frame == "crop"


def centre_of_mass(part: torch.Tensor) -> torch.Tensor:
    """(row, column) of what differs from the upper left corner, as shares of the sides."""
    weight = (part - part[:, :1, :1]).abs().sum(0)
    rows, columns = ((torch.arange(n) + 0.5) / n for n in weight.shape)
    return torch.stack([weight.sum(1) @ rows, weight.sum(0) @ columns]) / weight.sum()


@pytest.mark.parametrize("ratio", ["square", "pad", "anyres"])
def test_shared_geometry(ratio):
    """A dot lands at the same place of every tower's input, at towers of different sizes too."""
    image = Image.new("RGB", (400, 300), (128, 128, 128))
    image.paste((255, 0, 0), (230, 90, 250, 110))
    processor = ImageProcessor(resolve("clip@336+siglip+dinov2", join="append"))
    processor = processor.for_aspect_ratio(ratio, "shared")
    assert len({spec.size for spec in processor.representation.parts}) > 1
    parts = processor.representation.parts
    if ratio == "anyres":
        side = parts[0].size
        found = processor.anyres(image, [(2 * side, side), (2 * side, 2 * side)])
        assert all(part.shape[:2] == (3, 3) for part in found.parts)
        centres = torch.stack([centre_of_mass(part[2]) for part in found.parts])  # the right half
    else:
        spread = [pixels([image], spec, processor.frame)[0] for spec in parts]
        given = processor([image])[0].parts
        assert all(torch.equal(a, b) for a, b in zip(given, spread, strict=True))
        if ratio == "pad":  # the borders have different colours, so they are left out
            spread = [part[:, len(part[0]) // 6 : -len(part[0]) // 6] for part in spread]
        centres = torch.stack([centre_of_mass(part) for part in spread])
    assert (centres - centres[0]).abs().max() < 0.01


def test_like_transformers():
    """The attributes and the call that users of transformers' processors know."""
    processor = ImageProcessor(resolve("dinov2"))
    image = picture(50, 40)
    given = processor.preprocess(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(given, processor([image]))
    assert processor.preprocess([image, image])["pixel_values"].shape == (2, 3, 224, 224)
    assert processor.size == {"shortest_edge": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    assert processor.image_mean == [0.485, 0.456, 0.406]
    assert processor.image_std == [0.229, 0.224, 0.225]
    assert ImageProcessor(resolve("siglip")).size == {"height": 224, "width": 224}
    with pytest.raises(UsageError, match="expected 'pt'"):
        processor.preprocess(image, return_tensors="np")


def test_pickles():
    """Into data loader workers."""
    processor = ImageProcessor(resolve("clip+dinov2"), "pad")
    assert pickle.loads(pickle.dumps(processor)) == processor


@pytest.mark.parametrize(
    "names", ["clip", "clip+dinov2", "siglip", "clip@336+dinov2"], ids=lambda n: n
)
@pytest.mark.parametrize("select", ["patch", "cls_patch"])
@pytest.mark.parametrize("join", ["channel", "append"])
def test_number_of_tokens(names, select, join, golden_towers):
    """What the representation says is what its towers give."""
    if select == "cls_patch" and "siglip" in names:
        pytest.skip("SigLIP has no class token")
    parts = [TOWERS[name.partition("@")[0]] for name in names.split("+")]
    representation = resolve(parts, select=select)
    if len(parts) > 1 and join == "append":
        specs = [dataclasses.replace(spec) for spec in representation.parts]
        assert representation.tokens == specs[0].tokens
        appended = Representation("x", tuple(specs), "append")
        assert appended.tokens == sum(spec.tokens for spec in specs)
        return
    tower = build_tower(representation)
    processor = ImageProcessor(representation)
    tokens = tower(processor([picture(40, 30)]))
    assert tokens.shape == (1, processor.num_tokens, representation.dim)
    assert tower.num_tokens == processor.num_tokens


def test_tokens_of_unequal_grids():
    """Patches are resampled to the largest grid; class tokens need no grid."""
    clip, dinov2 = resolve("clip@336").parts[0], resolve("dinov2").parts[0]
    unequal = Representation("x", (dinov2, clip), "channel", "interpolate")
    assert unequal.tokens == 576
    tokens = [torch.randn(1, spec.tokens, spec.dim) for spec in unequal.parts]
    assert joined(unequal, tokens).shape == (1, 576, 2048)
    alone = [dataclasses.replace(spec, select="cls") for spec in unequal.parts]
    assert dataclasses.replace(unequal, parts=tuple(alone)).tokens == 1
    both = [dataclasses.replace(spec, select="cls_patch") for spec in unequal.parts]
    assert dataclasses.replace(unequal, parts=tuple(both)).tokens == 577


@pytest.mark.parametrize(
    ("size", "merge", "tokens"),
    [
        # clip@336: 24 x 24; 672 x 672 -> 2 x 2 tiles, 336 x 1008 -> 1 x 3 tiles
        ((672, 672), "flat", 5 * 576),
        ((672, 672), "spatial", 5 * 576),
        ((672, 672), "spatial_unpad", 576 + 48 * (48 + 1)),
        ((1000, 500), "flat", 3 * 576),
        ((1000, 500), "spatial_unpad", 576 + 24 * (48 + 1)),
        ((640, 480), "spatial_unpad", 576 + 36 * (48 + 1)),
        ((480, 640), "spatial_unpad", 576 + 48 * (36 + 1)),
        ((300, 900), "spatial_unpad", 576 + 72 * (24 + 1)),
    ],
)
def test_anyres_tokens(size, merge, tokens):
    """LLaVA's counts for the published resolutions."""
    processor = ImageProcessor(resolve("clip@336"))
    pinpoints = "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]"
    assert processor.anyres_tokens(size, pinpoints, merge) == tokens


def test_anyres_tokens_of_a_resampler():
    """A projector with its own number of tokens counts per view; it has no map to merge."""
    processor = ImageProcessor(resolve("clip@336"))
    assert processor.anyres_tokens((672, 672), [(672, 672)], "flat", 64) == 5 * 64
    with pytest.raises(UsageError, match="needs one token per patch"):
        processor.anyres_tokens((672, 672), [(672, 672)], "spatial", 64)
    with pytest.raises(UsageError, match="did you mean 'spatial'"):
        processor.anyres_tokens((672, 672), [(672, 672)], "spatia")


@pytest.mark.parametrize("size", [(40, 30), (30, 45), (57, 21), (36, 36)])
@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_anyres_tokens_are_the_models(size, merge, golden_towers):
    """As many as the model makes of the same image's views."""
    from llava.model.image_rows import Layout, views

    processor = ImageProcessor(resolve(TOWERS["clip"]))
    given = views([processor.anyres(picture(*size), PINPOINTS)], 1)
    newline = torch.zeros(4) if merge == "spatial_unpad" else None
    layout = Layout(merge, processor.representation.grid, newline)
    tokens = torch.randn(len(given.pixels), processor.num_tokens, 4)
    _, counts = layout.rows(tokens, given, [(size, processor.anyres_grid(size, PINPOINTS))])
    assert counts == [processor.anyres_tokens(size, PINPOINTS, merge)]


@pytest.mark.parametrize(
    "wrong",
    ["", "nothing", "[]", "[(1,)]", "[(1, 2.5)]", [], [[0, 3]], [[True, 1]], "(1, 2)", "1" * 90],
)
def test_wrong_pinpoints(wrong):
    """Are refused, whatever they are."""
    with pytest.raises(UsageError, match="image_grid_pinpoints: expected resolutions such as"):
        parse_pinpoints(wrong)


def test_pinpoints_and_tiles():
    """A resolution that is not made of the tower's tiles is refused."""
    with pytest.raises(UsageError, match="300 x 336 is not made of tiles of 336 x 336 px"):
        ImageProcessor(resolve("clip@336")).anyres_grid((10, 10), [(672, 672), (300, 336)])
    assert parse_pinpoints([[336, 672]]) == [(336, 672)]
