"""Diffusion towers before any weight is read: names, options, folders, and what is refused."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file, save_file

from C_score.options import options
from llava.errors import LawError, MissingPackageError, UsageError
from llava.extraction import main as law_features
from llava.model.multimodal_encoder import known, pretrained, registry
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.diffusion.weights import ATTENTION
from llava.model.multimodal_encoder.registry import resolve, tower_class

GOLDEN = ROOT / "tests" / "golden" / "diffusion"
MODELS = {"sd15": 4, "sd21": 4, "imsd": 4, "sdxl": 3, "dit": 3, "sd3": 3}
SD15 = "runwayml/stable-diffusion-v1-5"
DIT = "facebook/DiT-XL-2-512"
CLIP336 = "openai/clip-vit-large-patch14-336"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the tiny Stable Diffusion 1.5 that a test may spoil."""
    return Path(shutil.copytree(GOLDEN / "sd15", tmp_path / "sd15"))


def edit(path: Path, **changes) -> None:
    """Other values in a JSON file; None takes a key out."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("name", "size", "block", "grid", "dim"),
    [
        ("sd1.5", 768, 1, 24, 1280),
        ("SD2.1", 768, 1, 24, 1280),
        ("SDim", 768, 1, 24, 1280),
        ("SDXL", 768, 1, 48, 1280),
        ("DiT", 512, 28, 16, 4608),
        ("SD3", 512, 24, 16, 6144),
    ],
)
def test_the_papers_towers(name, size, block, grid, dim):
    """Sizes of Table 2, the first up block or the last block, t 1, no prompt, one draw."""
    (spec,) = resolve(name).parts
    assert (spec.size, spec.block, spec.grid, spec.dim) == (size, block, (grid, grid), dim)
    assert (spec.t, spec.ensemble_size, spec.compat, spec.seed) == (1, 1, "reference", 0)
    assert spec.prompt in ("", None)
    assert (spec.mean, spec.std, spec.resize) == ((0.5,) * 3, (0.5,) * 3, "squash")


def test_the_docs_table():
    """Every row of docs/diffusion.md is what its name stands for, also as the C score's option."""
    text = (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` (\S+) \| (\S+) \| (\d+) .*? \| (.*) \| (.*) \|$", text, re.M)
    assert len(rows) == 6
    for name, known_id, option, size, tokens, width in rows:
        (spec,) = resolve(name).parts
        assert (spec.id, str(spec.size)) == (known_id, size)
        assert options()[option].tower == known_id
        assert tokens == "{} x {}".format(*spec.grid)
        assert math.prod(map(int, width.split(" x "))) == spec.dim


@pytest.mark.parametrize(("model", "depth"), MODELS.items())
def test_facts_of_a_folder(model, depth):
    """Every block's grid and width as the tower gives them, at a size that halves and one not."""
    for index in range(depth):
        for size in (64, 96):
            name = f"{GOLDEN / model}@{size}:up_ft_index={index}"
            (spec,) = resolve(name).parts
            tower = build_tower(spec)
            tokens = tower(torch.zeros(1, 3, size, size))
            assert tokens.shape == (1, spec.tokens, spec.dim)
            assert (spec.depth, spec.layer) == (depth, index + 1)


def test_hashes_do_not_move():
    """Stored features and results rest on these: a change of them must be meant."""
    found = {name: resolve(name).parts[0].hash()[:12] for name in ("sd1.5", "sdxl", "dit", "sd3")}
    assert found == {
        "sd1.5": "d4eed431e72e",
        "sdxl": "56c94a68594d",
        "dit": "906e11961030",
        "sd3": "ededa9d00a5e",
    }


def test_each_option_counts():
    """Every option changes hash and name, and the name gives the same spec again."""
    plain = resolve("sd1.5")
    names = {plain.name}
    for change in (
        {"up_ft_index": 1},
        {"t": 261},
        {"prompt": "a photo of a cat. + dog: 50% x=1"},
        {"ensemble_size": 8},
        {"img_size": 512},
        {"noise_seed": 7},
        {"vae_sample": "mode"},
        {"compat": "clean"},
    ):
        found = resolve("sd1.5", diffusion=DiffusionOptions(**change))
        assert found.parts[0].hash() != plain.parts[0].hash(), change
        assert resolve(found.name) == found, change
        names.add(found.name)
    assert len(names) == 9


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("sd1.5:t=261", f"{SD15}:t=261"),
        ("sd1.5:up_ft_index=-4", SD15),
        ("sd1.5@512:t=1", f"{SD15}@512"),
        ("clip@336.sd1.5:t=261:compat=clean", f"{CLIP336}.{SD15}:t=261:compat=clean"),
        ("sd1.5:t=261+clip@336", f"{SD15}:t=261.{CLIP336}"),
        ("dit:up_ft_index=-2", "facebook/DiT-XL-2-512:up_ft_index=26"),
        ("sd1.5:prompt=a%2Eb", f"{SD15}:prompt=a%2Eb"),
    ],
)
def test_options_in_names(name, full):
    """Behind the size, of the part they stand at; only what is not usual stays in the name."""
    assert resolve(name).name == full
    assert resolve(full) == resolve(name)


def test_a_names_option_counts_before_a_flag():
    """What is said of one part is meant for it alone."""
    found = resolve("sd1.5:t=5.sd2.1", diffusion=DiffusionOptions(t=9, img_size=512))
    assert [(part.t, part.size) for part in found.parts] == [(5, 512), (9, 512)]
    # what only both together allow
    assert resolve("sd3:compat=clean", diffusion=DiffusionOptions(t=500)).parts[0].t == 500
    found = resolve("sd1.5:up_ft_index=1", diffusion=DiffusionOptions(up_ft_index=9))
    assert found.parts[0].block == 2


def test_grids_are_settled():
    """A diffusion tower takes the size that gives the fixed tower's grid."""
    for name, sizes in (
        ("clip@336.sd1.5", [336, 768]),
        ("sdxl.clip@336", [384, 336]),
        ("clip.sd3", [224, 512]),
        ("clip@336.dit", [336, 768]),
        ("sd1.5:up_ft_index=1.clip@336", [384, 336]),
    ):
        assert [part.size for part in resolve(name).parts] == sizes, name


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("sd1.5", {"up_ft_index": 4}, r"has blocks 0 to 3 \(or -1 to -4\), got 4"),
        ("dit", {"up_ft_index": -29}, r"has blocks 0 to 27 \(or -1 to -28\), got -29"),
        ("sd1.5", {"t": 1000}, "has time steps 0 to 999, got 1000"),
        ("sd1.5", {"t": -1}, "has time steps 0 to 999, got -1"),
        ("sd3:compat=clean", {"t": 1001}, "has time steps 0 to 1000, got 1001"),
        ("sd3", {"t": 261}, r"261 \* latent -260 \* noise .* compat 'clean'"),
        ("sd1.5", {"img_size": 500}, "takes multiples of 8 px, got 500; the nearest is 496"),
        ("dit", {"img_size": 520}, "takes multiples of 32 px, got 520; the nearest is 512"),
        ("sd1.5", {"img_size": 0}, "size: expected a positive number, got 0"),
        ("sd1.5", {"img_size": 16}, "16 px is less than one patch of 32 px"),
        ("sd1.5", {"ensemble_size": 0}, "ensemble_size: expected 1 or more"),
        ("sd3", {"ensemble_size": 2}, "side by side as channels.*compat 'clean'"),
        ("dit", {"ensemble_size": 2}, "side by side as channels.*compat 'clean'"),
        ("sd1.5", {"noise_seed": -1}, "seed: expected 0 to"),
        ("sd1.5", {"compat": "cleen"}, "unknown compat 'cleen'; did you mean 'clean'"),
        ("sd1.5", {"vae_sample": "mod"}, "did you mean 'mode'"),
        ("dit", {"prompt": "a cat"}, "has no tower with a prompt"),
        ("clip", {"t": 1}, "t 1: openai/clip-vit-large-patch14 has no diffusion tower"),
        ("sd1.5:t=1:t=2", {}, "says t twice"),
        ("sd1.5:t=1@512", {}, "the size @512 stands before the options"),
        ("sd1.5:t= 5", {}, "t= 5: expected a whole number"),
        ("sd1.5:t=1_0", {}, "t=1_0: expected a whole number"),
        ("sd1.5:seed=1", {}, "write noise_seed=N"),
        ("sd1.5:img_size=512", {}, "write the size behind the name: NAME@512"),
        ("sd1.5:q=1", {}, "unknown option of a diffusion tower 'q'"),
        ("sd1.5:tt=1", {}, "did you mean 't'"),
        ("sd1.5:t=x", {}, "t=x: expected a whole number"),
        ("clip:t=1", {}, "has no diffusion tower"),
        ("clip@336.sd1.5", {"img_size": 512}, "24 x 24, .* 16 x 16"),
    ],
)
def test_refused(name, asked, message):
    """Before anything is read, with what to take in its place."""
    with pytest.raises(UsageError, match=message):
        resolve(name, diffusion=DiffusionOptions(**asked))


@pytest.mark.parametrize(
    ("name", "depends"),
    [
        ("sd1.5", True),
        ("dit", True),
        ("sd1.5:compat=clean", False),
        ("sd3", False),
        ("clip", False),
    ],
)
def test_what_depends_on_the_dtype(name, depends):
    """Noise that bfloat16 rounds away: of the published code, and not where it mixes none."""
    assert resolve(name).parts[0].depends_on_dtype is depends


def test_no_class_token():
    """There is nothing that `cls` could select."""
    with pytest.raises(UsageError, match="has no class token"):
        resolve("sd1.5", select="cls")


def test_layer_is_of_others(tmp_path):
    """In a combination it is the ViT's; alone, `law features` says where the block is chosen."""
    clip, diffusion = resolve("clip@336.sd1.5", layer=-3).parts
    assert (clip.layer, diffusion.layer) == (-3, 1)
    with pytest.raises(UsageError, match="up_ft_index=N"):
        law_features(
            ["--images", str(tmp_path), "--model", "sd1.5", "--out", str(tmp_path), "--layer", "3"]
        )


@pytest.mark.parametrize(
    ("have", "needs"), [(None, "needs diffusers>=0.42"), ("0.30.3", "needs diffusers>=0.42")]
)
def test_diffusers_missing_or_old(monkeypatch, have, needs):
    """Said with what to type."""

    def version(name: str) -> str:
        if name == "diffusers" and have is None:
            raise known.PackageNotFoundError(name)
        return have

    monkeypatch.setattr(known, "version", version)
    with pytest.raises(MissingPackageError, match=needs) as raised:
        build_tower(str(GOLDEN / "sd15@64"))
    assert 'pip install -e ".[diffusion]"' in str(raised.value)


def test_unsupported_pipeline(folder):
    """The class is named, and those that there are."""
    edit(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    with pytest.raises(UsageError, match="_class_name 'StableDiffusionInpaintPipeline'") as raised:
        resolve(str(folder))
    assert "StableDiffusion3Pipeline" in str(raised.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edit(f / "unet" / "config.json", in_channels=9), "9 channels and its VAE gives"),
        (lambda f: edit(f / "unet" / "config.json", block_out_channels=None), "block_out_channels"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "vae" / "config.json").unlink(), "holds no vae/config.json"),
        (lambda f: edit(f / "model_index.json", unet=None), "names no vae, or neither unet"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "text_encoder/ lacks its config"),
        (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), "vae/ lacks weights"),
    ],
)
def test_spoilt_folders(folder, spoil, message):
    """Found when the name is resolved."""
    spoil(folder)
    with pytest.raises(LawError, match=message):
        resolve(str(folder))


def test_half_precision_copies_alone(folder):
    """Are no weights; it is said which file is not enough."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(LawError, match=r"lacks weights.* not diffusion_pytorch_model\.fp16"):
        resolve(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_spoilt_weights(folder, part):
    """Weights that are cut short or not all there are refused, and the part is named."""
    path = next((folder / part).glob("*.safetensors"))
    whole = load_file(path)
    kept = dict(list(whole.items())[1:])
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(LawError, match=f"{part} lacks 1 weights, such as"):
        build_tower(f"{folder}@64")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LawError, match=f"{part}: the weights of .* cannot be read"):
        build_tower(f"{folder}@64")


def test_text_encoders_of_another_model(folder):
    """Their width is not what the network attends to."""
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(GOLDEN / "sdxl" / "text_encoder", folder / "text_encoder")
    with pytest.raises(LawError, match="its text encoders are of another model"):
        build_tower(f"{folder}@64")


def test_trained_with_fewer_steps(folder):
    """t is checked against the model's own schedule."""
    edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=100)
    with pytest.raises(UsageError, match="trained with 100 time steps, got 261"):
        build_tower(f"{folder}@64:t=261")


def test_positions_end():
    """Stable Diffusion 3's table has a largest grid."""
    with pytest.raises(UsageError, match="takes 192 px at most"):
        build_tower(f"{GOLDEN / 'sd3'}@224")


def test_a_folder_may_move_but_not_change(folder, tmp_path):
    """The digest stands for the id: the same after a move, another after any edit that counts."""
    (before,) = resolve(str(folder)).parts
    moved = folder.rename(tmp_path / "moved")
    (after,) = resolve(str(moved)).parts
    assert after.hash() == before.hash()
    (moved / "README.md").write_text("no matter")
    (moved / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    assert resolve(str(moved)).parts[0].hash() == before.hash()
    for path, change in (
        ("scheduler/scheduler_config.json", {"beta_end": 0.013}),
        ("vae/config.json", {"scaling_factor": 0.2}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
    ):
        edit(moved / path, **change)
        (changed,) = resolve(str(moved)).parts
        assert changed.hash() != after.hash(), path
        after = changed


def test_another_folder_for_a_known_tower():
    """--tower-alias keeps the name; what the weights are is in the hash."""
    found = resolve("sd1.5@64", replace={SD15: str(GOLDEN / "sd15")})
    assert found.name == f"{SD15}@64"
    assert found.parts[0].dim == 16
    assert found.parts[0].hash() != resolve("sd1.5@64").parts[0].hash()


def test_an_alias_of_another_depth():
    """The block in a name is counted in the weights that are read."""
    found = {
        index: resolve(f"dit@64:up_ft_index={index}", replace={DIT: str(GOLDEN / "dit")}).name
        for index in (0, 1, 2, -1)
    }
    assert found[2] == found[-1] == f"{DIT}@64"
    assert (found[0], found[1]) == (f"{DIT}@64:up_ft_index=0", f"{DIT}@64:up_ft_index=1")


def test_the_publishers_own_repository():
    """`--tower-alias ID=ID` reads what a cache still has, and not the copy."""
    assert resolve("sd1.5").parts[0].weights == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    replace = registry.parse_replacements([f"sd1.5={SD15}"])
    assert resolve("sd1.5", replace=replace).parts[0].weights == ""
    for text in ("sd1.5@512=x", "sd1.5:t=3=x"):
        with pytest.raises(UsageError):
            registry.parse_replacements([text])


def test_a_config_of_something_else_beside(monkeypatch):
    """Of a hub repository: its model_index.json counts, as that of a folder does."""
    files = {
        "config.json": {"something": 1},
        "model_index.json": json.loads((GOLDEN / "sd15" / "model_index.json").read_text()),
    }

    def read(source, name, known):
        if name in files:
            return files[name]
        return json.loads((GOLDEN / "sd15" / name).read_text())

    monkeypatch.setattr(pretrained, "_read", read)
    assert resolve("some/model").parts[0].family == "stable-diffusion"
    files["config.json"] = {"model_type": "clip_vision_model", "hidden_size": 3}
    assert pretrained._configs("some/model", []) == (files["config.json"], None)


@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd3"])
def test_tokenizers_without_a_vocabulary(tmp_path, model):
    """transformers makes an empty one of them without a word."""
    folder = Path(shutil.copytree(GOLDEN / model, tmp_path / model))
    tokenizer = folder / ("tokenizer" if model == "sd15" else "tokenizer_2")
    for name in ("vocab.json", "merges.txt"):
        (tokenizer / name).unlink()
    with pytest.raises(LawError, match=f"{tokenizer.name}/ lacks its vocabulary"):
        build_tower(f"{folder}@64")
    (spec,) = resolve(f"{GOLDEN / model}@64").parts
    with pytest.raises(LawError, match=r"vocabulary is missing, or of another model"):
        build_tower(dataclasses.replace(spec, weights=str(folder)))


def test_tokenizer_without_a_length(folder):
    """It would pad to more than there is memory."""
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    with pytest.raises(LawError, match="states no model_max_length"):
        build_tower(f"{folder}@64")


def test_prompts_are_not_cut():
    """Two long prompts that begin alike would give the same features under two names."""
    with pytest.raises(UsageError, match=r"prompt: 202 tokens, and .* takes 77"):
        build_tower(f"{GOLDEN / 'sd15'}@64:prompt={'a%20' * 200}")


def test_attention(monkeypatch):
    """xformers only where it is asked for; asked for in vain, it is an error and no fallback."""
    monkeypatch.setenv(ATTENTION, "flash")
    with pytest.raises(UsageError, match="LAW_ATTENTION 'flash'"):
        build_tower(f"{GOLDEN / 'dit'}@64")
    if not torch.cuda.is_available():
        monkeypatch.setenv(ATTENTION, "xformers")
        with pytest.raises(UsageError, match=r"LAW_ATTENTION=xformers: .* `unset LAW_ATTENTION`"):
            build_tower(f"{GOLDEN / 'dit'}@64")


@pytest.mark.parametrize("model", MODELS)
def test_cost(model):
    """Parameters are those that a tower keeps; FLOPs grow with draws but for the VAE's."""
    (spec,) = resolve(f"{GOLDEN / model}@64").parts
    cost = tower_class(spec).cost(spec)
    assert cost.parameters == sum(p.numel() for p in build_tower(spec).parameters())
    clean = dataclasses.replace(spec, compat="clean")
    assert tower_class(spec).cost(clean).flops >= cost.flops
    if model in ("sd15", "sdxl"):
        twice = tower_class(spec).cost(dataclasses.replace(spec, ensemble_size=2))
        assert cost.flops < twice.flops < 2 * cost.flops


def tokens_of(folder: Path) -> torch.Tensor:
    """What the tower of a folder gives for a picture."""
    tower = build_tower(f"{folder}@64")
    return tower(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))


@pytest.mark.parametrize("model", ["imsd", "dit"])
def test_pickled_weights(tmp_path, model):
    """Repositories without safetensors are read, without unpickling anything but tensors."""
    folder = Path(shutil.copytree(GOLDEN / model, tmp_path / model))
    for path in list(folder.glob("*/*.safetensors")):
        name = path.with_suffix(".bin").name.replace("model.bin", "pytorch_model.bin")
        name = name.replace("diffusion_pytorch_pytorch", "diffusion_pytorch")
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    # weights lie elsewhere in memory, which moves the last digits of sums
    torch.testing.assert_close(tokens_of(folder), tokens_of(GOLDEN / model), rtol=0, atol=1e-6)
    path = next(folder.glob("vae/*.bin"))
    torch.save({"encoder.conv_in.weight": Trap()}, path)
    with pytest.raises(LawError, match="vae: the weights of"):
        build_tower(f"{folder}@64")
    assert not Trap.sprung


class Trap:
    """An object that would run code when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_older_names(tmp_path):
    """DiT's repository names the class that its transformer had then, VAEs their old attention."""
    folder = Path(shutil.copytree(GOLDEN / "dit", tmp_path / "dit"))
    edit(
        folder / "model_index.json",
        id2label={"0": "tench"},
        transformer=["diffusers", "Transformer2DModel"],
    )
    edit(
        folder / "transformer" / "config.json",
        _class_name="Transformer2DModel",
        only_cross_attention=False,
        use_linear_projection=False,
        num_vector_embeds=0,
    )
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        weights[name] = tensor
    assert any("proj_attn" in name for name in weights)
    save_file(weights, path, {"format": "pt"})
    edit(folder / "vae" / "config.json", force_upcast=None, shift_factor=None, latents_mean=None)
    torch.testing.assert_close(tokens_of(folder), tokens_of(GOLDEN / "dit"), rtol=0, atol=1e-6)


def test_whole_repositories(tmp_path):
    """T5, safety checkers and half-precision copies may lie beside; nothing of them is read."""
    folder = Path(shutil.copytree(GOLDEN / "sd3", tmp_path / "sd3"))
    edit(
        folder / "model_index.json",
        text_encoder_3=["transformers", "T5EncoderModel"],
        tokenizer_3=["transformers", "T5TokenizerFast"],
    )
    (folder / "text_encoder_3").mkdir()
    (folder / "text_encoder_3" / "model.safetensors").write_bytes(b"not weights")
    (folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"nor these")
    torch.testing.assert_close(tokens_of(folder), tokens_of(GOLDEN / "sd3"), rtol=0, atol=1e-6)
