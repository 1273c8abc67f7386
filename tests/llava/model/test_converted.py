"""transformers' own LlavaForConditionalGeneration: the same numbers, and its folders load."""

import json

import pytest
import safetensors.torch
import torch
import transformers
from llavas import CLIP, MODELS, SHAPE, arguments, gradients, pixels

from llava.errors import LawError
from llava.model.builder import load_llava, load_pretrained_model
from llava.model.language_model import llava_class
from llava.tokenization import load_tokenizer

IMAGE = 95
TOKENS = 16
IDS = [[1, 5, -200, 6, 7, 8, 2], [1, -200, 9, 10, 11, 12, 2]]


@pytest.fixture(scope="module")
def theirs():
    """A random LlavaForConditionalGeneration over LLaMA and the golden CLIP."""
    vision = transformers.CLIPVisionConfig.from_pretrained(MODELS / CLIP)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**SHAPE),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=None, pad_token_id=0
    )
    return model


def save(model, folder, keys: int):
    """Saves with the keys of transformers 4 or 5, with the processor's config and a tokenizer."""
    model.save_pretrained(folder, save_original_format=keys == 4)
    stored = set(safetensors.torch.load_file(folder / "model.safetensors"))
    first = "language_model.model.norm.weight" if keys == 4 else "model.language_model.norm.weight"
    assert first in stored
    processor = json.loads((MODELS / CLIP / "preprocessor_config.json").read_text())
    if keys == 4:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        whole = {"image_processor": processor, "processor_class": "LlavaProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    load_tokenizer(MODELS / "lmsys" / "tiny-vicuna").save_pretrained(folder)
    return folder


def expanded(ids: list[int]) -> list[int]:
    """Ids with one image token for every token of the image."""
    return [token for i in ids for token in ([IMAGE] * TOKENS if i == -200 else [i])]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "law-of-vision" / "towers"


@pytest.mark.parametrize("keys", [4, 5])
def test_folders(theirs, tmp_path, cached, keys):
    """Loss and projector gradients to 1e-5, the same ids, and saved as LLaVA it loads again."""
    folder = save(theirs, tmp_path / "theirs", keys)
    _, ours, processor, _ = load_pretrained_model(str(folder))
    assert processor.crop_size == {"height": 32, "width": 32}
    images = pixels(2)
    ids = torch.tensor(IDS)
    long = torch.tensor([expanded(row) for row in IDS])
    labels = ids.masked_fill(ids == -200, -100)
    expected = theirs(
        input_ids=long, pixel_values=images, labels=long.masked_fill(long == IMAGE, -100)
    )
    expected.loss.backward()
    wanted = gradients(theirs)
    ours.train()
    found = ours(input_ids=ids, images=images, labels=labels)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    given = gradients(ours)
    for number, name in (("0", "linear_1"), ("2", "linear_2")):
        for what in ("weight", "bias"):
            torch.testing.assert_close(
                given[f"model.mm_projector.{number}.{what}"],
                wanted[f"model.multi_modal_projector.{name}.{what}"],
                atol=1e-5,
                rtol=1e-5,
            )
    new = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    answer = theirs.generate(input_ids=long, pixel_values=images, **new)[:, long.shape[1] :]
    assert torch.equal(ours.eval().generate(ids, images=images, **new), answer)

    ours.save_pretrained(tmp_path / "ours")
    stored = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    assert {"model.norm.weight", "lm_head.weight", "model.mm_projector.0.weight"} <= set(stored)
    assert not any("vision_tower" in key or "language_model" in key for key in stored)
    load_tokenizer(folder).save_pretrained(tmp_path / "ours")
    _, again, _, _ = load_pretrained_model(str(tmp_path / "ours"))
    assert torch.equal(
        again(input_ids=ids, images=images).logits, ours(input_ids=ids, images=images).logits
    )
    assert len(list(cached.iterdir())) == 1


def test_same_weights_in_ours(theirs):
    """The same numbers for a LLaVA that was not read from their folder."""
    ours = llava_class("llama")(llava_class("llama").config_class(**SHAPE))
    ours.initialize_vision_modules(arguments())
    state = {}
    for key, value in theirs.state_dict().items():
        for old, new in (
            ("model.language_model.", "model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
            ("lm_head.", "lm_head."),
        ):
            if key.startswith(old):
                state[new + key.removeprefix(old)] = value
    ours.load_state_dict(state, strict=True)
    vision = {
        f"vision_tower.{key.removeprefix('model.vision_tower.')}": value
        for key, value in theirs.state_dict().items()
        if key.startswith("model.vision_tower.")
    }
    ours.get_vision_tower().load_weights(vision)
    images, ids = pixels(1), torch.tensor(IDS[:1])
    long = torch.tensor([expanded(IDS[0])])
    expected = theirs(input_ids=long, pixel_values=images).logits
    found = ours.eval()(input_ids=ids, images=images).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_padding_and_all_tokens(theirs, tmp_path, cached):
    """`do_pad` of its processor is LLaVA's `pad`, `full` keeps the class token."""
    folder = save(theirs, tmp_path / "theirs", 4)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"do_pad": True}))
    config = json.loads((folder / "config.json").read_text())
    config["vision_feature_select_strategy"] = "full"
    (folder / "config.json").write_text(json.dumps(config))
    _, model, processor, _ = load_pretrained_model(str(folder))
    assert processor.frame == "own_pad"
    assert model.get_vision_tower().num_tokens == TOKENS + 1


def test_several_layers(theirs, tmp_path, cached):
    """What LLaVA's own layout cannot say is an error."""
    folder = save(theirs, tmp_path / "theirs", 4)
    config = json.loads((folder / "config.json").read_text()) | {"vision_feature_layer": [-2, -1]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LawError, match="expected one layer"):
        load_llava(str(folder))
