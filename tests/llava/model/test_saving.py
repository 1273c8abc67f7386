"""Projectors written and read, and what does not fit."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from llavas import CLIP, MODELS, SIGLIP, arguments, family_llava, folders, golden_llava

from llava.errors import LawError, UsageError
from llava.model.builder import load_pretrained_model
from llava.model.comparison import difference
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.registry import resolve
from llava.model.representation import record, representation_of
from llava.model.saving import load_projector, projector_file, read_tensors, save_projector
from llava.model.trainable import trainable
from llava.tokenization import load_tokenizer

SD = "runwayml/stable-diffusion-v1-5"
KEYS = [f"model.mm_projector.{i}.{what}" for i in (0, 2) for what in ("bias", "weight")]


def projector(model) -> dict[str, torch.Tensor]:
    """The projector's weights, copied."""
    return {key: value.clone() for key, value in model.mm_projector.state_dict().items()}


def test_both_files(tmp_path):
    """A plain dictionary in LLaVA's file, the same in safetensors, and the config."""
    model = golden_llava()
    save_projector(model, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "mm_projector.bin", "mm_projector.safetensors"]
    state = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert sorted(state) == KEYS
    assert all(not v.requires_grad for v in state.values())
    same = safetensors.torch.load_file(tmp_path / "mm_projector.safetensors")
    assert all(torch.equal(same[key], value) for key, value in state.items())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mm_vision_tower"] == CLIP
    assert config["model_type"] == "llava_llama"
    assert config["mm_vision_specs"][0]["size"] == 32


def test_gathered_weights(tmp_path):
    """What a trainer gathered is written, under any prefix, not what the model holds."""
    model = family_llava()
    state = {f"module.{key}": torch.full((2,), 3.0) for key in KEYS}
    save_projector(model, tmp_path, state | {"model.embed_tokens.weight": torch.zeros(3)})
    found = read_tensors(tmp_path / "mm_projector.bin")
    assert sorted(found) == ["model.embed_tokens.weight", *KEYS]
    assert found[KEYS[0]].tolist() == [3.0, 3.0]
    with pytest.raises(LawError, match="nothing to save"):
        save_projector(model, tmp_path, {"lm_head.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["", "mm_projector.bin", "mm_projector.safetensors"])
def test_read_again(tmp_path, name):
    """From the folder or either file; the weights are copied in place, in the model's dtype."""
    model = family_llava()
    save_projector(model, tmp_path)
    expected = projector(model)
    other = family_llava(seed=1).to(torch.float64)
    weight = other.mm_projector[0].weight
    load_projector(other, tmp_path / name)
    assert other.mm_projector[0].weight is weight
    assert weight.dtype == torch.float64
    assert torch.equal(weight.float(), expected["0.weight"])


def test_loaded_on_its_base(tmp_path):
    """What stage 1 leaves is what load_pretrained_model gives back with the base."""
    model = golden_llava()
    with torch.no_grad():
        model.mm_projector[0].weight.add_(1)
    save_projector(model, tmp_path)
    base = str(MODELS / "lmsys" / "tiny-vicuna")
    _, again, _, _ = load_pretrained_model(str(tmp_path), base)
    assert all(torch.equal(v, projector(model)[k]) for k, v in projector(again).items())


def test_of_another_width(tmp_path):
    """Both widths and both towers are named."""
    save_projector(golden_llava("siglip"), tmp_path)
    config = tmp_path / "config.json"
    model = family_llava()
    with pytest.raises(UsageError, match=f"trained with {SIGLIP}, and this model has {CLIP}"):
        load_projector(model, tmp_path)
    fields = json.loads(config.read_text())
    del fields["mm_vision_specs"]
    fields["mm_vision_tower"] = "elsewhere/clip-vit-large-patch14"  # the same, by its last part
    config.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match=f"trained with elsewhere.*, and this model has {CLIP}"):
        load_projector(model, tmp_path)
    del fields["mm_hidden_size"]
    config.write_text(json.dumps(fields))
    with pytest.raises(LawError, match=r"16 wide \(elsewhere.*openai/clip\S+ are 24 wide"):
        load_projector(model, tmp_path)
    config.unlink()
    with pytest.raises(LawError, match="projects tokens 16 wide, and those of openai"):
        load_projector(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": -1}, "mm_vision_select_layer -2, here -1"),
        ({"select": "cls_patch"}, "mm_vision_select_feature patch, here cls_patch"),
    ],
)
def test_of_another_layer(tmp_path, change, said):
    """The config beside the file tells."""
    save_projector(golden_llava(), tmp_path)
    model = family_llava()
    spec = resolve(CLIP, replace=folders(CLIP), **change)
    with pytest.raises(UsageError, match=said):
        model.initialize_vision_modules(
            arguments(pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.bin")),
            representation=spec,
        )


def test_of_another_block():
    """A published config of a diffusion tower has the flag's layer, which nothing was read at."""
    config = SimpleNamespace()
    record(config, resolve(SD, diffusion=DiffusionOptions.of({"t": 261})))
    theirs = {
        "mm_vision_tower": SD,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "up_ft_index": config.up_ft_index,
        "t": 261,
    }
    assert difference(theirs, config) == ""
    assert difference(theirs | {"t": 1}, config) == f"was trained with {SD} at t 1, here 261"


def recorded(name: str, **options) -> SimpleNamespace:
    """The config of a model of ours with these towers."""
    config = SimpleNamespace()
    record(config, resolve(name, **options))
    return config


def released(name: str, **fields) -> dict:
    """Of a published config what it holds of towers; the flags' defaults stand for any of them."""
    defaults = {
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "up_ft_index": 0,
        "t": 1,
        "prompt": "",
        "ensemble_size": 1,
        "img_size": 768,
    }
    return {"mm_vision_tower": name, **defaults, **fields}


CLIP336 = "openai/clip-vit-large-patch14-336"
DIT = "facebook/DiT-XL-2-512"
FITTING = {
    "the last block": (released(DIT, up_ft_index=-1, img_size=512), "dit"),
    "the first block": (released(DIT), "dit@768:up_ft_index=0"),
    "a mirror": (released("stable-diffusion-v1-5/stable-diffusion-v1-5"), "sd1.5"),
    "a folder that is gone": (
        released(f"/gone.by/{Path(CLIP336).name}./gone.by/{Path(SD).name}"),
        "clip336.sd1.5",
    ),
    "a layer, counted otherwise": (released(CLIP336), "clip336", 23),
    "beside a ViT": (
        released(f"{SD}.{CLIP336}", mm_vision_select_layer=-3),
        "sd1.5.clip336",
        -3,
    ),
}
OTHERWISE = {
    "at up_ft_index 0, here 27": (released(f"{SD}.{DIT}"), "sd1.5.dit"),
    "at mm_vision_select_layer -3, here -2": (
        released(f"{SD}.{CLIP336}", mm_vision_select_layer=-3),
        "sd1.5.clip336",
    ),
    "this model has facebook/dinov2-large": (
        released(f"{CLIP336}.{SD}"),
        "facebook/dinov2-large@336.sd1.5",
    ),
    "this model has openai/clip-vit-large-patch14-336.": (
        released(f"/gone.by/dinov2-large./gone.by/{Path(SD).name}"),
        "clip336.sd1.5",
    ),
    "this model has facebook/DiT": (
        released(f"/gone/clip-vit-large-patch14./gone/{Path(DIT).name}", mm_hidden_size=5632),
        "dit",
    ),
    "at compat reference, here clean": (released(SD), "sd1.5:compat=clean"),
    "at vae_sample sample, here mode": (released(SD), "sd1.5:vae_sample=mode"),
    "at img_size 768, here 512": (released(SD), "sd1.5@512"),
    "at mm_vision_select_layer -1, here -2": (
        released(f"/gone/{Path(CLIP336).name}", mm_vision_select_layer=-1),
        "clip336",
    ),
}


@pytest.mark.parametrize("case", FITTING)
def test_published_that_fits(case):
    """What a config means is compared, not how it says it."""
    theirs, name, *layer = FITTING[case]
    assert difference(theirs, recorded(name, layer=layer[0] if layer else None)) == ""


@pytest.mark.parametrize("says", OTHERWISE)
def test_published_that_does_not_fit(says):
    """Every tower of a published config is compared, and what it leaves unsaid is as published."""
    theirs, name = OTHERWISE[says]
    assert says in difference(theirs, recorded(name))


def test_published_at_weights_of_ours(tmp_path):
    """A name whose weights are read from a folder means that folder in both."""
    config = recorded(CLIP, replace=folders(CLIP))
    assert config.mm_vision_specs[0]["size"] == 32
    assert difference(released(CLIP), config) == ""
    assert "at mm_vision_select_layer -1" in difference(
        released(CLIP, mm_vision_select_layer=-1), config
    )


def test_older_specs():
    """Fields that an older version did not record are passed over, others are not."""
    config, older = recorded("sd1.5.clip336"), vars(recorded("sd1.5.clip336"))
    older["mm_vision_specs"] = [
        {key: value for key, value in part.items() if key not in ("vae_sample", "resize")}
        for part in older["mm_vision_specs"]
    ]
    assert difference(older, config) == ""
    older["mm_vision_specs"][0]["seed"] = 1
    assert difference(older, config) == f"was trained with {SD} at noise_seed 1, here 0"


def test_layer_beside_a_diffusion_tower():
    """LLaVA's field is the layer of the tower that has hidden states, -2 where none has."""
    assert recorded("sd1.5.clip", layer=-3).mm_vision_select_layer == -3
    assert recorded("clip.sd1.5", layer=-3).mm_vision_select_layer == -3
    assert recorded("sd1.5").mm_vision_select_layer == -2


@pytest.mark.parametrize(
    ("field", "value"), [("up_ft_index", "0"), ("t", True), ("prompt", 5), ("img_size", 512.5)]
)
def test_config_of_another_kind(field, value):
    """Said with the field's name, whoever reads the config."""
    config = released(SD, **{field: value})
    with pytest.raises(LawError, match=f"config's {field} is {value!r}; expected "):
        representation_of(SimpleNamespace(**config))
    with pytest.raises(LawError, match=f"config's {field}"):
        difference(config, recorded("sd1.5"))
    assert difference(released(CLIP336, **{field: value}), recorded("clip336")) == ""


def test_of_other_weights(tmp_path):
    """The same name, and a folder whose files are not those that were recorded."""
    save_projector(golden_llava(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mm_vision_specs"][0]["digest"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="at digest 0000"):
        load_projector(family_llava(), tmp_path)
    config["mm_vision_specs"][0]["digest"] = ""  # from the hub: nothing to compare with
    config["mm_vision_specs"][0]["mean"] = [0.5, 0.5, 0.5]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="at mean"):
        load_projector(family_llava(), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop(KEYS[1]), "it lacks model.mm_projector.0.weight"),
        (
            lambda state: state.update({"model.mm_projector.4.bias": torch.zeros(1)}),
            "nothing is called model.mm_projector.4.bias",
        ),
        (
            lambda state: state.update({KEYS[0]: torch.zeros(3)}),
            r"model.mm_projector.0.bias is \(3,\), and the model's is \(32,\)",
        ),
    ],
)
def test_keys_that_do_not_fit(tmp_path, change, said):
    """Missing, unknown, of another shape: named, and nothing was copied."""
    state = torch.load(MODELS / "projectors" / "clip_init.bin", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "other.bin")
    model = family_llava()
    before = projector(model)
    with pytest.raises(LawError, match=said):
        load_projector(model, tmp_path / "other.bin")
    assert all(torch.equal(value, before[key]) for key, value in projector(model).items())


def test_files_that_are_none(tmp_path):
    """No file, no tensors, and a pickle with code in it."""
    with pytest.raises(LawError, match="no such file"):
        projector_file(tmp_path)
    (tmp_path / "mm_projector.bin").write_bytes(b"nothing")
    with pytest.raises(LawError, match="cannot be read as a file of tensors"):
        read_tensors(projector_file(tmp_path))
    torch.save({"a": 1}, tmp_path / "mm_projector.bin")
    with pytest.raises(LawError, match="expected a dictionary of tensors"):
        read_tensors(projector_file(tmp_path))
    torch.save({"a": print}, tmp_path / "mm_projector.bin")
    with pytest.raises(LawError, match="cannot be read as a file of tensors"):
        read_tensors(projector_file(tmp_path))
    (tmp_path / "mm_projector.safetensors").write_bytes(b"nothing")
    with pytest.raises(LawError, match="cannot be read as a file of tensors"):
        read_tensors(projector_file(tmp_path))


def test_projector_is_kept(tmp_path):
    """Training on from a LLaVA keeps its projector; another type makes a new one."""
    model = golden_llava()
    weight = model.mm_projector[0].weight
    spec = model.get_vision_tower().representation
    model.initialize_vision_modules(arguments(), representation=spec)
    assert model.mm_projector[0].weight is weight
    model.initialize_vision_modules(arguments(mm_projector_type="mlp3x_gelu"), representation=spec)
    assert len(model.mm_projector) == 5


def test_image_tokens(tmp_path):
    """New rows are means; in stage 1 the input embeddings alone are trained with the projector."""
    model = golden_llava()
    trainable(model, 1)
    tokenizer = load_tokenizer(MODELS / "lmsys" / "tiny-vicuna")
    size = len(tokenizer)
    means = [t.weight[:size].mean(0) for t in (model.model.embed_tokens, model.lm_head)]
    model.initialize_vision_tokenizer(
        arguments(mm_use_im_start_end=True, tune_mm_mlp_adapter=True), tokenizer
    )
    assert len(tokenizer) == size + 2 == model.config.vocab_size
    for table, mean in zip((model.model.embed_tokens, model.lm_head), means, strict=True):
        torch.testing.assert_close(table.weight[size:], mean.expand(2, -1))
    assert model.model.embed_tokens.weight.requires_grad
    assert not model.lm_head.weight.requires_grad
    with torch.no_grad():
        model.model.embed_tokens.weight[size:] += 1
    model.config.mm_use_im_start_end = True
    state = {n: p for n, p in model.named_parameters() if p.requires_grad}
    save_projector(model, tmp_path, state)
    base = str(MODELS / "lmsys" / "tiny-vicuna")
    read, again, _, _ = load_pretrained_model(str(tmp_path), base)
    assert len(read) == size + 2
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
