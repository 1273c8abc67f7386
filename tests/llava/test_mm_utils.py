"""Images and names as LLaVA's users and evaluations know them."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT
from texts import llama_folder
from tiny import picture

from llava import mm_utils
from llava.errors import LawError, UsageError
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    get_model_name_from_path,
    load_image_from_base64,
    process_anyres_image,
    process_images,
    resize_and_pad_image,
    select_best_resolution,
    tokenizer_image_token,
)
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import resolve
from llava.tokenization import load_tokenizer

GOLDEN = ROOT / "tests" / "golden" / "llava"
PIXELS = np.load(GOLDEN / "images" / "pixel_values.npz")
CLIP, DINOV2 = "openai/clip-vit-large-patch14", "facebook/dinov2-large"
FILES = [key.removeprefix("rgb/") for key in PIXELS if key.startswith("rgb/")]
IMAGES = [Image.fromarray(PIXELS[f"rgb/{file}"]) for file in FILES]
PINPOINTS = [(32, 64), (64, 32), (64, 64)]


@pytest.fixture(autouse=True)
def _golden_towers(monkeypatch):
    """The golden folders go by the names of the towers that they stand for."""
    monkeypatch.chdir(GOLDEN / "models")


def config(**fields) -> SimpleNamespace:
    """A model's config with these fields only."""
    return SimpleNamespace(**fields)


@pytest.mark.parametrize("mode", ["square", "pad"])
def test_golden_images(mode):
    """All of a list, not the first alone, as the config asks and not as the processor stands."""
    processor = ImageProcessor(resolve(CLIP), "own_pad" if mode == "square" else "own")
    found = process_images(IMAGES, processor, config(image_aspect_ratio=mode))
    expected = np.stack([PIXELS[f"{mode}/clip/{file}"] for file in FILES])
    np.testing.assert_array_equal(found.numpy(), expected)


def test_config_without_fields():
    """Is square, and its towers have each their own geometry."""
    processor = ImageProcessor(resolve([CLIP, DINOV2]), "pad")
    found = process_images(IMAGES[:2], processor, config())
    assert isinstance(found, PixelBatch)
    for tower, part in zip(("clip", "dinov2"), found.parts, strict=True):
        expected = np.stack([PIXELS[f"square/{tower}/{file}"] for file in FILES[:2]])
        np.testing.assert_array_equal(part.numpy(), expected)
    shared = config(image_aspect_ratio="square", mm_vision_geometry="shared")
    cropped = process_images(IMAGES[:2], processor, shared)
    assert torch.equal(cropped.parts[1], processor.in_frame("crop")(IMAGES[:2]).parts[1])


def test_batch_is_moved():
    """As evaluations do: one call for device and dtype, whatever the towers."""
    processor = ImageProcessor(resolve([CLIP, DINOV2]))
    found = process_images(IMAGES[:2], processor, config()).to(dtype=torch.float16, device="cpu")
    assert [part.dtype for part in found.parts] == [torch.float16] * 2
    assert len(found) == 2


@pytest.mark.parametrize("names", [CLIP, [CLIP, DINOV2]], ids=["clip", "clip_dinov2"])
def test_golden_anyres(names):
    """A list where numbers of tiles differ, one tensor where they do not."""
    asked = config(image_aspect_ratio="anyres", image_grid_pinpoints=str(PINPOINTS))
    processor = ImageProcessor(resolve(names))
    found = process_images(IMAGES, processor, asked)
    assert isinstance(found, list)
    for file, views in zip(FILES, found, strict=True):
        first = views.parts[0] if isinstance(views, PixelBatch) else views
        np.testing.assert_array_equal(first.numpy(), PIXELS[f"anyres/clip/{file}"])
    several = len(found[0])
    alike = [image for image, views in zip(IMAGES, found, strict=True) if len(views) == several]
    together = process_images(alike, processor, asked)
    part = together.parts[0] if isinstance(together, PixelBatch) else together
    assert part.shape == (len(alike), several, 3, 32, 32)
    assert len(process_anyres_image(IMAGES[0], processor, PINPOINTS)) == len(found[0])


def test_what_cannot_be_processed():
    """A model without tower, an unknown mode, tiles without resolutions."""
    processor = ImageProcessor(resolve(CLIP))
    with pytest.raises(UsageError, match="expected what load_pretrained_model gives, got NoneType"):
        process_images(IMAGES, None, config())
    with pytest.raises(UsageError, match="did you mean 'square'"):
        process_images(IMAGES, processor, config(image_aspect_ratio="sqare"))
    with pytest.raises(UsageError, match="anyres needs image_grid_pinpoints"):
        process_images(IMAGES, processor, config(image_aspect_ratio="anyres"))


def test_tiles():
    """Row by row; what stands beyond the image is black."""
    fitted = resize_and_pad_image(IMAGES[0], (64, 32))
    assert fitted.size == (64, 32)
    left, right = divide_to_patches(fitted, 32)
    assert np.array_equal(np.hstack([left, right]), np.asarray(fitted))
    assert get_anyres_image_grid_shape((40, 30), PINPOINTS, 32) == (2, 1)
    assert select_best_resolution((40, 30), PINPOINTS) == (64, 32)
    assert len(divide_to_patches(Image.new("RGB", (40, 30)), 32)) == 2


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (1, 2, 3)), ("L", 9), ("RGBA", (1, 2, 3, 4))])
def test_expand2square(mode, colour):
    """On a square of the colour, in the image's own mode."""
    image = picture(10, 4).convert(mode)
    found = expand2square(image, colour)
    assert (found.mode, found.size) == (mode, (10, 10))
    assert found.getpixel((0, 0)) == colour
    assert np.array_equal(np.asarray(found)[3:7], np.asarray(image))
    assert expand2square(found, colour) is found


def test_base64():
    """A PNG comes back as it was; a text that is none is an error."""
    file = io.BytesIO()
    image = picture(20, 10)
    image.save(file, "PNG")
    found = load_image_from_base64(base64.b64encode(file.getvalue()).decode())
    assert np.array_equal(np.asarray(found), np.asarray(image))
    with pytest.raises(LawError, match="is no base64 text"):
        load_image_from_base64("abc")
    with pytest.raises(LawError, match="no image format that PIL knows"):
        load_image_from_base64("YWJj")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/runs/llava-lora/", "llava-lora"),
        ("runs/mine/checkpoint-500", "mine_checkpoint-500"),
        ("runs/mine/checkpoint-500/", "mine_checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
        ("./x", "x"),
    ],
)
def test_model_names(path, name):
    """The last part; of a checkpoint the run's as well."""
    assert get_model_name_from_path(path) == name


# ------------------------------------------------------------------------------- stopping


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A LLaMA tokenizer."""
    return load_tokenizer(llama_folder("tiny_legacy_false", tmp_path_factory.mktemp("tokenizer")))


def ids_of(tokenizer, text: str) -> list[int]:
    """Ids without BOS."""
    return tokenizer(text, add_special_tokens=False).input_ids


def test_prompt_is_a_name_here():
    """Evaluations import it from this module."""
    from llava import tokenization

    assert tokenizer_image_token is tokenization.tokenizer_image_token
    assert all(hasattr(mm_utils, name) for name in mm_utils.__all__)


@pytest.mark.parametrize("with_prompt", [False, True])
def test_stops_by_row(tokenizer, with_prompt):
    """Each row of a batch on its own; a keyword in the prompt does not count."""
    said = ["the fox sat ###", "no end yet here at"]
    rows = [ids_of(tokenizer, text) for text in said]
    length = max(map(len, rows))
    new = torch.tensor([[5] * (length - len(row)) + row for row in rows])
    prompt = torch.tensor([ids_of(tokenizer, "### ask ###")] * 2)
    criteria = KeywordsStoppingCriteria(["###"], tokenizer, prompt)
    given = torch.cat([prompt, new], 1) if with_prompt else new
    found = criteria(given, None)
    assert found.dtype == torch.bool
    assert found.tolist() == [True, False]


def test_stops_at_the_moment(tokenizer):
    """Not before the keyword is whole, and as soon as it is, however it is cut into tokens."""
    ids = ids_of(tokenizer, "It is a fox. Stop here, please")
    prompt = torch.tensor([[1, 7, 9]])
    criteria = KeywordsStoppingCriteria(["Stop here"], tokenizer, prompt)
    flags = [criteria(torch.tensor([ids[:n]]), None).item() for n in range(1, len(ids) + 1)]
    whole = ["Stop here" in tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    assert flags.index(True) == whole.index(True)
    assert not any(flags[: flags.index(True)])


def test_end_token_as_keyword(tokenizer):
    """A special token's text counts as well; nothing stops without keywords."""
    prompt = torch.tensor([[1, 7]])
    row = torch.tensor([[9, 8, tokenizer.eos_token_id]])
    assert KeywordsStoppingCriteria(["</s>"], tokenizer, prompt)(row, None).tolist() == [True]
    assert KeywordsStoppingCriteria([], tokenizer, prompt)(row, None).tolist() == [False]
    assert KeywordsStoppingCriteria([""], tokenizer, prompt)(row, None).tolist() == [False]


def test_beams(tokenizer):
    """Several rows of one prompt."""
    prompt = torch.tensor([ids_of(tokenizer, "###")])
    rows = torch.cat([prompt.repeat(3, 1), torch.tensor([[9], [8], [7]])], 1)
    assert KeywordsStoppingCriteria(["###"], tokenizer, prompt)(rows, None).tolist() == [False] * 3
