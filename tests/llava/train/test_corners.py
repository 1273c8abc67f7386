"""Combinations that went wrong once."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from world import losses, stage1, stage2

from llava.errors import LawError, UsageError
from llava.model.builder import load_pretrained_model
from llava.train import train as train_module
from llava.train.args import parse
from llava.train.checkpoint import locked
from llava.train.model import loading_dtype
from llava.train.train import main as train

ANYRES = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "[(32, 64), (64, 32), (64, 64)]",
    "model_max_length": 400,
    "mm_patch_merge_type": "spatial_unpad",
}


def test_step_without_labels(world, tmp_path):
    """A step whose only image turns out damaged has loss 0, and the run goes on."""
    images = tmp_path / "images"
    shutil.copytree(world / "images", images)
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:60])
    flags = {"image_folder": images, "image_policy": "skip", "per_device_train_batch_size": 1}
    train(stage1(world, tmp_path / "run", max_steps=24, **flags))
    assert losses(tmp_path / "run").count(0.0) == 1
    saved = torch.load(tmp_path / "run" / "mm_projector.bin", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_adapters_with_a_frozen_projector(world, tmp_path):
    """The projector is saved with them, so that the run resumes and loads."""
    pytest.importorskip("peft")
    flags = {"lora_enable": True, "lora_r": 4, "freeze_mm_mlp_adapter": True}
    flags |= {"save_strategy": "steps", "save_steps": 2}
    train(stage2(world, tmp_path, **flags))
    train(stage2(world, tmp_path, **flags, **{"num_train_epochs": 1}))
    _, model, _, _ = load_pretrained_model(str(tmp_path), str(world / "llm"))
    saved = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    own = {f"base_model.model.{k}": v for k, v in model.state_dict().items()}
    assert saved and all(torch.equal(own[name], tensor) for name, tensor in saved.items())


def test_marks_from_stage_to_stage(world, tmp_path):
    """Embeddings of <im_start> and <im_end> go from stage 1 into stage 2, unchanged."""
    marks = {"mm_use_im_start_end": True}
    train(stage1(world, tmp_path / "a", **marks))
    flags = {**marks, "learning_rate": 0.0, "max_steps": 1}
    train(stage2(world, tmp_path / "b", tmp_path / "a" / "mm_projector.bin", **flags))
    before = torch.load(tmp_path / "a" / "mm_projector.bin", weights_only=True)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "b"))
    for name, tensor in before.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


def test_newline_in_a_batch_without_images(world, tmp_path):
    """Every trained parameter has a gradient, or ranks with images would wait for ever."""
    train(stage2(world, tmp_path, max_steps=1, **ANYRES))
    _, model, _, _ = load_pretrained_model(str(tmp_path))
    model.train()
    ids = torch.randint(3, 500, (1, 9))
    model(ids, labels=ids, attention_mask=torch.ones_like(ids)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_score_needs_a_projector(world, tmp_path):
    """A random one is nobody's alignment."""
    with pytest.raises(UsageError, match="--pretrain_mm_mlp_adapter is missing"):
        train(stage1(world, tmp_path, a_score=True))


def test_a_score_takes_what_is_seen(world, tmp_path):
    """A record whose text does not speak of its image says nothing about the tower."""
    train(stage1(world, tmp_path / "p", max_steps=1))
    records = json.loads((world / "captions.json").read_text())
    records[1]["conversations"][0]["value"] = "Describe."
    (tmp_path / "data.json").write_text(json.dumps(records))
    flags = {"a_score": True, "a_score_samples": 5, "data_path": tmp_path / "data.json"}
    flags["pretrain_mm_mlp_adapter"] = tmp_path / "p" / "mm_projector.bin"
    train(stage1(world, tmp_path / "s", **flags))
    found = json.loads((tmp_path / "s" / "a_score.json").read_text())
    assert found["records"] == [0, 2, 3, 4, 5]


def test_prompt_that_does_not_fit(world, tmp_path):
    """A question is never cut away unseen."""
    train(stage2(world, tmp_path, max_steps=1))
    _, model, _, _ = load_pretrained_model(str(tmp_path))
    ids = torch.randint(3, 500, (1, 300))  # more than the 192 of training, fewer than 512
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] <= 2
    with pytest.raises(LawError, match="takes 600 positions"):
        model.generate(torch.randint(3, 500, (1, 600)), max_new_tokens=2)


def test_folder_of_another_run(world, tmp_path):
    """Stage 2 does not go into stage 1's folder, nor two runs into one."""
    train(stage1(world, tmp_path, max_steps=1))
    with pytest.raises(UsageError, match="a run of another kind"):
        train(stage2(world, tmp_path))
    with locked(tmp_path / "busy"), pytest.raises(LawError, match="another run is writing"):
        train(stage1(world, tmp_path / "busy"))


def test_parts_of_models_are_no_models(world, tmp_path):
    """A projector's folder in a language model's place, and flags that no tower takes."""
    train(stage1(world, tmp_path / "a", max_steps=1))
    flags = stage2(world, tmp_path / "b", model_name_or_path=tmp_path / "a")
    with pytest.raises(UsageError, match="as --pretrain_mm_mlp_adapter"):
        train(flags)
    with pytest.raises(UsageError, match="no diffusion tower"):
        train(stage1(world, tmp_path / "c", img_size=512))


def test_nested_values_of_a_file(world, tmp_path):
    """Lists of lists and mappings arrive as JSON."""
    path = tmp_path / "flags.yaml"
    path.write_text(
        "image_grid_pinpoints: [[32, 64], [64, 32]]\nimage_aspect_ratio: anyres\n"
        "gradient_checkpointing_kwargs: {use_reentrant: false}\n"
    )
    _, data, training = parse(["--config", str(path), *stage1(world, tmp_path)])
    assert json.loads(data.image_grid_pinpoints) == [[32, 64], [64, 32]]
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_a_llava_sees_on_as_it_did(world, tmp_path, law_log):
    """The layer is that of the checkpoint unless asked for; another aspect ratio is said."""
    flags = {"mm_vision_select_layer": -1, "image_aspect_ratio": "pad", "max_steps": 1}
    train(stage2(world, tmp_path / "a", **flags))
    again = {"model_name_or_path": tmp_path / "a", "max_steps": 1}
    train(stage2(world, tmp_path / "b", **again))
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["mm_vision_select_layer"] == -1
    assert any("image_aspect_ratio square: the model was trained with pad" in x for x in law_log)


@pytest.fixture(scope="module")
def llava(world, tmp_path_factory):
    """A LLaVA of a single tower, whose geometry so is `own`."""
    output = tmp_path_factory.mktemp("llava")
    train(stage2(world, output, max_steps=1, mm_vision_select_layer=-1))
    return output


def projector(folder):
    """The projector in a stage-2 folder."""
    state = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in state.items() if "mm_projector" in name}


OTHERS = {
    "dinov2": ("was trained with .*clip, and this model has .*dinov2", -2, "own"),
    "clip+dinov2": ("was trained with .*clip, and this model has .*clip.*dinov2", -2, "shared"),
    "dinov2+clip": ("was trained with .*clip, and this model has .*dinov2.*clip", -2, "shared"),
}


@pytest.mark.parametrize("towers", OTHERS)
def test_a_llava_of_other_towers(world, tmp_path, llava, towers, law_log):
    """Hands on neither layer nor geometry nor projector, even one of the same width."""
    says, layer, geometry = OTHERS[towers]
    tower = "+".join(str(world / name) for name in towers.split("+"))
    flags = {"model_name_or_path": llava, "vision_tower": tower, "learning_rate": 0.0}
    train(stage2(world, tmp_path, max_steps=1, **flags))
    (said,) = (line for line in law_log if "starts anew" in line)
    assert re.search(says, said)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["mm_vision_select_layer"], config["mm_vision_geometry"]) == (layer, geometry)
    before, now = projector(llava), projector(tmp_path)
    assert before.keys() == now.keys()
    assert not torch.equal(*(p["model.mm_projector.2.weight"] for p in (before, now)))


@pytest.mark.parametrize(
    "flags", [{"mm_vision_select_layer": -2}, {"mm_projector_type": "linear"}], ids=str
)
def test_a_llava_read_otherwise(world, tmp_path, llava, flags, law_log):
    """Another layer or projector asked for: the old projector is of no use, which is said."""
    flags = {**flags, "learning_rate": 0.0, "max_steps": 1}
    train(stage2(world, tmp_path, model_name_or_path=llava, **flags))
    assert any("not kept and starts anew" in line for line in law_log)
    before, now = projector(llava), projector(tmp_path)
    assert not any(torch.equal(before[name], now[name]) for name in before if name in now)


def test_a_score_of_a_llava(world, tmp_path, llava):
    """Its own projector is scored where the towers are its own; else one has to be given."""
    flags = {"a_score": True, "a_score_samples": 5, "model_name_or_path": llava}
    train(stage1(world, tmp_path / "own", **flags))
    assert (tmp_path / "own" / "a_score.json").is_file()
    with pytest.raises(UsageError, match="--pretrain_mm_mlp_adapter is missing"):
        train(stage1(world, tmp_path / "other", vision_tower=world / "dinov2", **flags))


def test_combined_towers_keep_their_geometry(world, tmp_path, law_log):
    """`own` goes on from run to run, and so does the projector."""
    pair = f"{world / 'clip'}+{world / 'dinov2'}"
    flags = {"vision_tower": pair, "max_steps": 1, "learning_rate": 0.0}
    train(stage2(world, tmp_path / "a", mm_vision_geometry="own", **flags))
    train(stage2(world, tmp_path / "b", model_name_or_path=tmp_path / "a", **flags))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["mm_vision_geometry"] == "own"
    before, now = projector(tmp_path / "a"), projector(tmp_path / "b")
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    assert not any("starts anew" in line for line in law_log)


def test_going_on_from_another_folder(world, tmp_path):
    """The run is that of the other folder, and what this one held before is out of its way."""
    flags = {"save_strategy": "steps", "save_steps": 2}
    train(stage1(world, tmp_path / "a", **flags))
    train(stage1(world, tmp_path / "b", **flags, seed=1))
    start = {"resume_from_checkpoint": tmp_path / "a" / "checkpoint-2"}
    train(stage1(world, tmp_path / "b", **flags, **start))
    ours, theirs = (load_file(tmp_path / x / "mm_projector.safetensors") for x in "ba")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert sorted(path.name for path in (tmp_path / "b").glob("checkpoint-*")) == [
        "checkpoint-2.aside",
        "checkpoint-4",
        "checkpoint-4.aside",
    ]


@pytest.mark.parametrize(
    ("stage", "flags", "dtype"),
    [
        (stage1, {}, torch.bfloat16),
        (stage2, {"lora_enable": True}, torch.bfloat16),
        (stage2, {}, torch.float32),
        (stage2, {"freeze_backbone": True}, torch.float32),
    ],
)
def test_dtype_of_the_language_model(world, tmp_path, stage, flags, dtype):
    """Frozen whole it takes the compute dtype; in part it is float32, as what is trained."""
    _, _, training = parse(stage(world, tmp_path, bf16=True, **flags))
    assert loading_dtype(training) is dtype


@pytest.mark.parametrize(("ranks", "left"), [(1, 0), (2, 1)])
def test_a_finished_run_leaves_its_group(monkeypatch, ranks, left):
    """Where there are others; a group of one may serve a next run of this process."""
    calls = []
    group = SimpleNamespace(
        is_initialized=lambda: True,
        get_world_size=lambda: ranks,
        destroy_process_group=lambda: calls.append(1),
    )
    monkeypatch.setattr(train_module, "distributed", group)
    train_module._leave_the_others()
    assert len(calls) == left
