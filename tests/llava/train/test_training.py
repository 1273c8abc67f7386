"""Runs of training: what they leave, and that the way there does not change where they end."""

import json

import pytest
import torch
from safetensors.torch import load_file
from world import losses, stage1, stage2

from llava.errors import LawError
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""AdamW divides by a gradient's size, so what is near zero there is compared absolutely."""


def projector(folder):
    """Projector weights of a stage-1 run or checkpoint."""
    return load_file(folder / "mm_projector.safetensors")


def weights(folder):
    """All weights of a stage-2 run."""
    return load_file(folder / "model.safetensors")


def assert_equal(ours, theirs, **tolerance):
    """Same names, same values; bit for bit where no tolerance is given."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))


def run(flags, output):
    """Trains in this process; the folder."""
    train(flags)
    return output


@pytest.fixture(scope="module")
def pretrained(world, tmp_path_factory):
    """A finished stage 1."""
    output = tmp_path_factory.mktemp("runs") / "stage1"
    return run(stage1(world, output, save_strategy="steps", save_steps=2), output)


def test_stage1_leaves_a_projector(pretrained):
    """LLaVA's files, readable without unpickling anything but tensors, and the run's own."""
    saved = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    assert sorted(saved) == [
        f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")
    ]
    assert_equal(saved, projector(pretrained))
    config = json.loads((pretrained / "config.json").read_text())
    assert config["model_type"] == "llava_llama"
    assert config["mm_projector_type"] == "mlp2x_gelu"
    assert config["tune_mm_mlp_adapter"] is True
    assert config["use_cache"] is True
    assert not list(pretrained.glob("*.pth")) and not (pretrained / "model.safetensors").exists()
    assert json.loads((pretrained / "run.json").read_text())["flags"]["version"] == "plain"
    assert json.loads((pretrained / "environment.json").read_text())["packages"]["torch"]
    assert len(losses(pretrained)) == 4
    assert losses(pretrained)[-1] < losses(pretrained)[0]


def test_stage1_checkpoints_are_small(pretrained):
    """A checkpoint holds the projector and its optimizer, never the frozen language model."""
    folder = pretrained / "checkpoint-4"
    assert (folder / "mm_projector.bin").is_file()
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == 4
    assert not list(folder.glob("model*.safetensors"))
    assert not (pretrained / ".saving").exists()


def test_stage1_trains_nothing_else(world, pretrained, tmp_path):
    """Stage 2 starts from the base model's own weights and the trained projector."""
    output = run(
        stage2(world, tmp_path, pretrained / "mm_projector.bin", learning_rate=0.0), tmp_path
    )
    saved, base = weights(output), load_file(world / "llm" / "model.safetensors")
    for name, tensor in base.items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=0)
    for name, tensor in projector(pretrained).items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=0)
    assert not [name for name in saved if "vision_tower" in name]


def test_stage2_trains_projector_and_language_model(world, pretrained, tmp_path):
    """Every weight of both moves; the run can be loaded and keeps its tokenizer."""
    output = run(stage2(world, tmp_path, pretrained / "mm_projector.bin"), tmp_path)
    saved, base = weights(output), load_file(world / "llm" / "model.safetensors")
    before = base | projector(pretrained)
    assert saved.keys() == before.keys()
    still = [name for name, tensor in saved.items() if torch.equal(tensor, before[name])]
    assert still == []
    assert (output / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_accumulation(world, tmp_path, stage):
    """Four micro-batches of 2 are one batch of 8, whatever their numbers of tokens."""
    flags = {"max_steps": 2, "group_by_modality_length": False}
    one = run(stage(world, tmp_path / "a", per_device_train_batch_size=8, **flags), tmp_path / "a")
    four = run(
        stage(
            world,
            tmp_path / "b",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            **flags,
        ),
        tmp_path / "b",
    )
    read = projector if stage is stage1 else weights
    assert_equal(read(one), read(four), **CLOSE)
    assert losses(one) == pytest.approx(losses(four), rel=1e-5)


@pytest.mark.parametrize("stage", [stage1, stage2])
@pytest.mark.parametrize("grouped", ["", "group_by_modality_length", "group_by_length"])
def test_resumed_is_uninterrupted(world, tmp_path, stage, grouped):
    """Over an epoch's end, bit for bit."""
    flags = {
        "max_steps": 14,
        "save_strategy": "steps",
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
    }
    if grouped:
        flags[grouped] = True
    whole = run(stage(world, tmp_path / "whole", save_steps=100, **flags), tmp_path / "whole")
    begun = tmp_path / "begun"
    stopped = stage(world, begun, save_steps=9, **flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava.train.finish.finish", None)
        patch.setattr("llava.train.progress.Progress.on_step_end", _stop_after_11)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert (begun / "checkpoint-9").is_dir()
    run(stopped, begun)
    read = projector if stage is stage1 else weights
    assert_equal(read(whole), read(begun))
    assert losses(begun)[-5:] == losses(whole)[-5:]


def _stop_after_11(self, args, state, control, **kwargs):
    if state.global_step == 11:
        raise KeyboardInterrupt


def test_limit_of_one_checkpoint(world, tmp_path):
    """Stage 1 honours --save_total_limit and goes on from what is left."""
    flags = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    run(stage1(world, tmp_path, max_steps=6, **flags), tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    run(stage1(world, tmp_path, max_steps=8, **flags), tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-8"]
    assert len(losses(tmp_path)) == 8


def test_own_rate_of_the_projector(world, pretrained, tmp_path):
    """With rate 0 for the rest, only the projector moves."""
    flags = {"learning_rate": 0.0, "mm_projector_lr": 1e-3}
    output = run(stage2(world, tmp_path, pretrained / "mm_projector.bin", **flags), tmp_path)
    before = load_file(world / "llm" / "model.safetensors") | projector(pretrained)
    moved = {n for n, tensor in weights(output).items() if not torch.equal(tensor, before[n])}
    assert moved == set(projector(pretrained))


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_recomputed_activations(world, tmp_path, stage):
    """Gradient checkpointing changes memory, not numbers."""
    read = projector if stage is stage1 else weights
    plain = run(stage(world, tmp_path / "a"), tmp_path / "a")
    again = run(stage(world, tmp_path / "b", gradient_checkpointing=True), tmp_path / "b")
    assert_equal(read(plain), read(again), rtol=1e-6, atol=1e-7)


def test_workers_read_the_same(world, tmp_path):
    """Loader processes change nothing, resumed or not."""
    flags = {"dataloader_num_workers": 2, "save_strategy": "steps", "save_steps": 2}
    alone = run(stage2(world, tmp_path / "a"), tmp_path / "a")
    both = run(stage2(world, tmp_path / "b", **flags | {"max_steps": 2}), tmp_path / "b")
    run(stage2(world, both, **flags), both)
    assert_equal(weights(alone), weights(both))


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_bf16(world, tmp_path, stage):
    """Computed in bf16, trained and saved in float32, so that small updates count."""
    output = run(stage(world, tmp_path, bf16=True, max_steps=8), tmp_path)
    saved = projector(output) if stage is stage1 else weights(output)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert losses(output)[-1] < losses(output)[0]


@pytest.mark.parametrize(
    "flags",
    [
        {"mm_projector_type": "perceiver1x"},
        {"mm_projector_type": "linear"},
        {"mm_vision_select_feature": "cls_patch"},
        {"image_aspect_ratio": "pad"},
        {"mm_vision_join": "append", "pair": True},
        {"mm_vision_join": "interleave", "pair": True},
        {"image_aspect_ratio": "pad", "pair": True},
        {"mm_vision_geometry": "own", "pair": True},
        {"mm_use_im_start_end": True},
        {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": "[(32, 64), (64, 32), (64, 64)]",
            "model_max_length": 400,
        },
        {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": "[(32, 64), (64, 32), (64, 64)]",
            "mm_patch_merge_type": "spatial_unpad",
            "model_max_length": 400,
        },
        {"freeze_backbone": True},
        {"freeze_mm_mlp_adapter": True},
        {"version": "llama_2", "model_max_length": 400},
        {"version": "mpt"},
    ],
    ids=str,
)
def test_ways_to_train(world, tmp_path, flags):
    """Each trains, is saved and loads again with the loss going on where it was."""
    flags = dict(flags)
    if flags.pop("pair", False):
        flags["vision_tower"] = f"{world / 'clip'}+{world / 'dinov2'}"
    output = run(stage2(world, tmp_path / "a", **flags), tmp_path / "a")
    again = {"model_name_or_path": output, "max_steps": 1, "learning_rate": 0.0}
    run(stage2(world, tmp_path / "b", **(flags | again)), tmp_path / "b")
    for name, tensor in weights(output).items():
        torch.testing.assert_close(weights(tmp_path / "b")[name], tensor, rtol=0, atol=0)
    _, model, _, _ = load_pretrained_model(str(output))
    assert model.config.image_aspect_ratio == flags.get("image_aspect_ratio", "square")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(output).items())


def test_spoiled_weights(world, tmp_path):
    """A loss that is no number ends the run; it is not averaged away."""
    with pytest.raises(LawError, match=r"the loss is (nan|inf) at step"):
        train(stage1(world, tmp_path, learning_rate=1e38, max_grad_norm=0, max_steps=20))
    assert not (tmp_path / "mm_projector.bin").exists()


def test_marks_around_images_are_single_tokens(world, tmp_path, capsys):
    """Known to the tokenizer before the data are read; stage 1 trains their embeddings too."""
    train([*stage2(world, tmp_path, mm_use_im_start_end=True), "--check"])
    assert "\n  128 tokens, 21 of them supervised" in capsys.readouterr().out  # 126 without
    output = run(stage1(world, tmp_path / "run", mm_use_im_start_end=True), tmp_path / "run")
    assert projector(output)["model.embed_tokens.weight"].shape == (514, 32)
