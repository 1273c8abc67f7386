"""Training with a diffusion tower, alone and beside a ViT: it is a tower like any other."""

import json
import shutil

import pytest
import torch
from PIL import Image
from repository import ROOT
from safetensors.torch import load_file
from world import losses, stage1, stage2

from llava.errors import UsageError
from llava.extraction import main as law_features
from llava.model.builder import load_pretrained_model
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


def test_from_the_store(world, tmp_path):
    """The same losses as with the tower at work."""
    name = f"{GOLDEN / 'dit'}@64:t=50"
    law_features(
        [
            *("--images", str(world / "images"), "--model", name),
            *("--out", str(tmp_path / "store")),
        ]
    )
    live = stage1(world, tmp_path / "live", vision_tower=name)
    stored = stage1(
        world,
        tmp_path / "stored",
        vision_tower=name,
        vision_features="store",
        feature_store=tmp_path / "store",
    )
    train(live)
    train(stored)
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "stored"), rel=1e-5)


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
    assert "hidden state 1 of 4, width 16" in shown
    assert "Nothing is wrong" in shown


def test_a_layer_that_nothing_takes(world, tmp_path, law_log):
    """LLaVA's flag is for hidden states; it is said that another one chooses blocks."""
    name = f"{GOLDEN / 'sd15'}@64"
    train(stage1(world, tmp_path / "a", vision_tower=name, mm_vision_select_layer=-1, max_steps=1))
    assert any("--mm_vision_select_layer -1 has no effect" in line for line in law_log)
    with pytest.raises(UsageError, match="has blocks 0 to 3"):
        train(stage1(world, tmp_path / "b", vision_tower=name, up_ft_index=9))
