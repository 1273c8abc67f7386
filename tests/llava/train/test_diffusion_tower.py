"""Training with a diffusion tower, alone and beside a ViT: it is a tower like any other."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from repository import ROOT
from safetensors.torch import load_file
from world import losses, stage1, stage2

from llava.errors import UsageError
from llava.extraction import main as law_features
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.registry import resolve
from llava.model.representation import record
from llava.train.args import parse
from llava.train.build import _inherit, representation_of
from llava.train.train import main as train

GOLDEN = ROOT / "tests" / "golden" / "diffusion"


def projector(folder):
    """Projector weights of a run."""
    return load_file(folder / "mm_projector.safetensors")


def stop_after_5(self, args, state, control, **kwargs):
    """In the place of a callback: as if the run was killed."""
    if state.global_step == 5:
        raise KeyboardInterrupt


def test_beside_a_vit(world, tmp_path):
    """Stage 1 on clip and Stable Diffusion, interrupted and resumed bit for bit; it reloads."""
    flags = {
        "vision_tower": f"{world / 'clip'}.{GOLDEN / 'sd15'}",
        "max_steps": 8,
        "t": 261,
        "ensemble_size": 2,
        "save_strategy": "steps",
    }
    train(stage1(world, tmp_path / "whole", save_steps=100, **flags))
    begun = stage1(world, tmp_path / "begun", save_steps=3, **flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava.train.progress.Progress.on_step_end", stop_after_5)
        with pytest.raises(KeyboardInterrupt):
            train(begun)
    train(begun)
    whole, resumed = projector(tmp_path / "whole"), projector(tmp_path / "begun")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "begun")[-5:] == losses(tmp_path / "whole")[-5:]
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (config["t"], config["ensemble_size"], config["up_ft_index"]) == (261, 2, 0)
    assert config["mm_vision_tower"].endswith("sd15:t=261:ensemble_size=2")

    _, model, processor, _ = load_pretrained_model(
        str(tmp_path / "whole"), str(world / "llm"), "llava"
    )
    clip, diffusion = model.get_vision_tower().representation.parts
    assert (diffusion.t, diffusion.ensemble_size, diffusion.size) == (261, 2, 128)
    assert clip.grid == diffusion.grid == (4, 4)
    image = Image.open(world / "images" / "3.png").convert("RGB")
    pixels = processor.preprocess(image)["pixel_values"]
    (first, counts), (second, _) = model.encode_images(pixels), model.encode_images(pixels)
    assert (first.shape, counts) == ((16, 32), [16])
    assert torch.equal(first, second)


def stored(world, tmp_path, name, *dtypes):
    """Flags of training on a tower's stored features, in each of the dtypes."""
    for dtype in dtypes:
        law_features(
            [
                *("--images", str(world / "images"), "--model", name),
                *("--out", str(tmp_path / "store"), "--dtype", dtype),
            ]
        )
    store = {"vision_features": "store", "feature_store": tmp_path / "store"}
    return {"vision_tower": name, **store}


def test_from_the_store(world, tmp_path, law_log):
    """The same losses as with the tower at work."""
    name = f"{GOLDEN / 'dit'}@64:t=50"
    flags = stored(world, tmp_path, name, "float32")
    train(stage1(world, tmp_path / "live", vision_tower=name))
    train(stage1(world, tmp_path / "stored", **flags))
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "stored"), rel=1e-5)
    assert not any("are stored in" in line for line in law_log)


def recorded_dtype(folder):
    """The dtype of the tower that a run recorded."""
    return json.loads((folder / "config.json").read_text())["mm_vision_dtype"]


def test_a_store_of_another_dtype(world, tmp_path, law_log):
    """Said, with the command that makes what fits; once it is there, it is taken."""
    name = f"{GOLDEN / 'sd15'}@64"
    flags = stored(world, tmp_path, name, "float32") | {"bf16": True, "max_steps": 2}
    train(stage1(world, tmp_path / "a", **flags))
    (said,) = (line for line in law_log if "are stored in float32" in line)
    assert "this run computes in bfloat16" in said
    assert f"--dtype bfloat16 --images {world / 'images'} --out {tmp_path / 'store'}` makes" in said
    assert recorded_dtype(tmp_path / "a") == "float32"
    law_log.clear()
    stored(world, tmp_path, name, "bfloat16")
    train(stage1(world, tmp_path / "b", **flags))
    live = {"vision_tower": name, "bf16": True, "max_steps": 2}
    train(stage1(world, tmp_path / "live", **live))
    assert not any("are stored in" in line for line in law_log)
    assert recorded_dtype(tmp_path / "b") == recorded_dtype(tmp_path / "live") == "bfloat16"
    live, fitting, other = (losses(tmp_path / folder)[0] for folder in ("live", "b", "a"))
    assert abs(fitting - live) < abs(other - live) / 3


def test_a_clean_store_of_another_dtype(world, tmp_path, law_log):
    """Where the dtype rounds and no more, nothing is said."""
    flags = stored(world, tmp_path, f"{GOLDEN / 'sd15'}@64:compat=clean", "float32")
    train(stage1(world, tmp_path / "a", **flags, bf16=True, max_steps=1))
    assert not any("are stored in" in line for line in law_log)


def test_in_another_dtype(world, tmp_path, law_log):
    """Loaded or trained on in another dtype than before: said, with what to type."""
    flags = {"vision_tower": f"{GOLDEN / 'sd15'}@64", "max_steps": 1}
    train(stage1(world, tmp_path / "one", bf16=True, **flags))
    path, base = str(tmp_path / "one"), str(world / "llm")
    load_pretrained_model(path, base, torch_dtype="bfloat16")
    assert not any("by more than rounding" in line for line in law_log)
    load_pretrained_model(path, base)
    (said,) = (line for line in law_log if "by more than rounding" in line)
    assert "in bfloat16, and here it is float32" in said
    assert "pass torch_dtype='bfloat16' to load_pretrained_model, or --dtype bfloat16" in said
    law_log.clear()
    load_pretrained_model(path, base, customized_config={"mm_vision_dtype": None})
    assert not any("by more than rounding" in line for line in law_log)

    projector_of_1 = tmp_path / "one" / "mm_projector.bin"
    train(stage2(world, tmp_path / "fits", projector_of_1, bf16=True, **flags))
    assert not any("by more than rounding" in line for line in law_log)
    train(stage2(world, tmp_path / "two", projector_of_1, **flags))
    (said,) = (line for line in law_log if "by more than rounding" in line)
    assert "go on with --bf16 True" in said
    law_log.clear()
    again = stage2(world, tmp_path / "three", model_name_or_path=tmp_path / "two", **flags)
    train([*again, "--bf16", "True"])
    (said,) = (line for line in law_log if "by more than rounding" in line)
    assert "go on with --bf16 False --fp16 False" in said
    law_log.clear()
    train([*again, "--bf16", "True", "--check", "True"])
    assert any("go on with --bf16 False" in line for line in law_log)
    law_log.clear()
    train([*again, "--check", "True"])
    assert not any("by more than rounding" in line for line in law_log)


def test_stage_2_goes_on(world, tmp_path):
    """The projector of stage 1 fits, the block is the one that it was trained with."""
    flags = {"vision_tower": GOLDEN / "sd3", "img_size": 64, "up_ft_index": 1, "max_steps": 2}
    train(stage1(world, tmp_path / "one", **flags))
    train(stage2(world, tmp_path / "two", tmp_path / "one" / "mm_projector.bin", **flags))
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert (config["img_size"], config["up_ft_index"], config["mm_hidden_size"]) == (64, 1, 64)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "two"))
    assert model.get_vision_tower().representation.parts[0].block == 2


def test_published_config(world, tmp_path):
    """A released folder names tower and flags, in its own words, and no spec of ours."""
    name = f"{world / 'clip'}.{GOLDEN / 'sd15'}"
    train(stage1(world, tmp_path / "ours", vision_tower=name, up_ft_index=1, img_size=64))
    published = tmp_path / "llava-published"
    published.mkdir()
    shutil.copy(tmp_path / "ours" / "mm_projector.bin", published)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    kept = {k: v for k, v in config.items() if not k.startswith("mm_vision_spec")}
    kept |= {"mm_vision_tower": name, "prompt": "", "t": 1}
    (published / "config.json").write_text(json.dumps(kept))
    _, ours, _, _ = load_pretrained_model(str(tmp_path / "ours"), str(world / "llm"), "llava")
    _, theirs, processor, _ = load_pretrained_model(str(published), str(world / "llm"), "llava")
    assert theirs.get_vision_tower().representation == ours.get_vision_tower().representation
    pixels = processor.preprocess(Image.new("RGB", (50, 40), "red"))["pixel_values"]
    assert torch.equal(theirs.encode_images(pixels)[0], ours.encode_images(pixels)[0])


def test_check_counts_it(world, tmp_path, capsys):
    """`--check` knows the tower's parameters and FLOPs from its configs."""
    flags = stage1(world, tmp_path, vision_tower=f"{GOLDEN / 'sd15'}@64")
    train([*flags, "--check", "True"])
    shown = capsys.readouterr().out
    assert "block 0 of 4, width 16" in shown
    assert "Nothing is wrong" in shown


def test_a_layer_that_nothing_takes(world, tmp_path, law_log):
    """LLaVA's flag is for hidden states; it is said that another one chooses blocks."""
    name = f"{GOLDEN / 'sd15'}@64"
    train(stage1(world, tmp_path / "a", vision_tower=name, mm_vision_select_layer=-1, max_steps=1))
    assert any("--mm_vision_select_layer -1 has no effect" in line for line in law_log)
    with pytest.raises(UsageError, match="has blocks 0 to 3"):
        train(stage1(world, tmp_path / "b", vision_tower=name, up_ft_index=9))


def towers_of(folder):
    """The specs that a run recorded."""
    return json.loads((folder / "config.json").read_text())["mm_vision_specs"]


def test_a_llava_sees_on_as_it_did(world, tmp_path, law_log):
    """Layer, block and noise are those of the checkpoint unless flags or names say otherwise."""
    pair = {"vision_tower": f"{GOLDEN / 'sd15'}.{world / 'clip'}", "max_steps": 1}
    flags = {"mm_vision_select_layer": -1, "t": 261, "up_ft_index": 1, "noise_seed": 3}
    train(stage2(world, tmp_path / "a", **pair, **flags, vae_sample="mode", compat="clean"))
    again = {"model_name_or_path": tmp_path / "a", **pair}
    train(stage2(world, tmp_path / "b", **again))
    assert towers_of(tmp_path / "b") == towers_of(tmp_path / "a")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["mm_vision_select_layer"] == -1
    assert not any("starts anew" in line for line in law_log)
    train(stage2(world, tmp_path / "c", **again, t=5))
    diffusion, clip = towers_of(tmp_path / "c")
    assert (diffusion["t"], diffusion["up_ft_index"], clip["layer"]) == (5, 1, -1)
    assert any("at t 261, here 5; its projector is not kept" in line for line in law_log)


def inherit(world, config, **flags):
    """(whether a LLaVA of this config keeps its projector, what is trained then)."""
    arguments = parse(stage2(world, world / "none", **flags))
    return _inherit(arguments, config), representation_of(arguments[0])


def test_published_models_go_on(world):
    """Block and size are those of the config's fields, without flags and without our specs."""
    fields = {"up_ft_index": 0, "img_size": 768, "t": 1, "prompt": "", "ensemble_size": 1}
    both = "runwayml/stable-diffusion-v1-5.facebook/DiT-XL-2-512"
    for name, typed in (("facebook/DiT-XL-2-512", "dit"), (both, "sd1.5.dit")):
        keeps, found = inherit(world, {"mm_vision_tower": name, **fields}, vision_tower=typed)
        assert keeps
        assert [(part.up_ft_index, part.size) for part in found.parts] == [(0, 768)] * len(
            found.parts
        )
    gone = {"mm_vision_tower": "/gone/stable-diffusion-v1-5", "mm_hidden_size": 640}
    keeps, found = inherit(world, {**fields, **gone, "up_ft_index": 2}, vision_tower="sd1.5")
    assert keeps
    assert (found.dim, found.parts[0].up_ft_index) == (640, 2)
    config = {"mm_vision_tower": both, **fields}
    keeps, found = inherit(world, config, vision_tower="sd1.5.dit", up_ft_index=1)
    assert not keeps
    assert [(part.up_ft_index, part.patch) for part in found.parts] == [(1, 16), (1, 32)]


def test_towers_of_unequal_settings_go_on(world):
    """A flag is for all towers; what they differ in stands in the name, and stays there."""
    config = SimpleNamespace()
    record(config, resolve("sd1.5:t=261.dit"))
    keeps, found = inherit(world, vars(config), vision_tower="sd1.5:t=261.dit")
    assert keeps
    assert [(part.t, part.up_ft_index) for part in found.parts] == [(261, 0), (1, 27)]


def test_settings_that_do_not_go_together(world):
    """What the flags say counts where the rest of the config cannot be computed with it."""
    config = SimpleNamespace()
    record(config, resolve("sd3", diffusion=DiffusionOptions(compat="clean", t=500)))
    keeps, found = inherit(world, vars(config), vision_tower="sd3", compat="reference")
    assert not keeps
    assert (found.parts[0].t, found.parts[0].compat) == (1, "reference")
