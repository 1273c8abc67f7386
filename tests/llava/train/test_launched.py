"""Runs of several processes, and runs that are killed: the numbers of one process, undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from world import launch, losses, stage1, stage2

from llava.model.builder import load_llava
from llava.model.trainable import trainable
from llava.train.train import main as train

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
STAGES = {"stage1": (stage1, "mm_projector.safetensors"), "stage2": (stage2, "model.safetensors")}


def assert_close(one, other, file):
    """The weights of two runs."""
    ours, theirs = load_file(one / file), load_file(other / file)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **CLOSE)


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_are_one(world, tmp_path, name):
    """DDP: two batches of 2 are one of 4, with text-only batches on one rank among them."""
    stage, file = STAGES[name]
    flags = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    train(stage(world, one, per_device_train_batch_size=4, **flags))
    launch(stage(world, two, per_device_train_batch_size=2, **flags), processes=2)
    assert_close(one, two, file)
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    assert len(list(two.glob("checkpoint-2/rng_state_*.pth"))) == 2


@pytest.mark.parametrize("name", STAGES)
def test_killed_and_resumed(world, tmp_path, name):
    """`kill -9` in the middle, begun again by the same command: bit for bit the same weights."""
    stage, file = STAGES[name]
    flags = {"max_steps": 40, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(stage(world, whole, **flags))
    command = [sys.executable, str(ROOT / "llava" / "train" / "train.py")]
    process = subprocess.Popen(
        [*command, *stage(world, killed, **flags)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(killed.glob("checkpoint-*")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / file).exists()
    launch(stage(world, killed, **flags))
    assert (killed / file).read_bytes() == (whole / file).read_bytes()


def test_fsdp_is_one_process(world, tmp_path):
    """Torch's FSDP2 on two CPU processes, of which one has no image: the gradients of one."""
    output = tmp_path / "stage2"
    train(stage2(world, output, max_steps=1))
    model = load_llava(str(output))
    trainable(model, 2)
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 500, (2, 9)),
        "labels": torch.full((2, 9), -100),
        "attention_mask": torch.ones(2, 9, dtype=torch.bool),
        "image_features": torch.randn(2, 16, 24),
        "has_image": torch.tensor([True, False]),
    }
    batch["input_ids"][0, 2] = -200
    batch["labels"][0, 5:] = batch["input_ids"][0, 5:]
    batch["labels"][1, 3:] = batch["input_ids"][1, 3:]
    torch.save(batch, tmp_path / "batch.pt")
    model.train()
    given = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
    loss = model(**given, image_features=batch["image_features"][:1]).loss
    loss.backward()
    script = str(Path(__file__).with_name("fsdp_ranks.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = [str(output), str(tmp_path / "batch.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(
        [*command, "--nproc_per_node", "2", script, *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(found.pop("loss"), loss.detach(), rtol=1e-5, atol=0)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


ZERO = {
    "zero_optimization": {"stage": 2, "contiguous_gradients": True},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("level", "name"), [(2, "stage2"), (3, "stage1"), (3, "stage2")])
def test_zero_is_one_process(world, tmp_path, level, name):
    """ZeRO on two processes, with ranks whose batch has no image, and resumed half-way.

    The first run compiles DeepSpeed's CPU communication, three minutes once.
    """
    pytest.importorskip("deepspeed")
    config = tmp_path / "zero.json"
    facts = ZERO | {"zero_optimization": ZERO["zero_optimization"] | {"stage": level}}
    if level == 3:
        facts["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    config.write_text(json.dumps(facts))
    stage, file = STAGES[name]
    flags = {"save_strategy": "steps", "save_steps": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    train(stage(world, one, per_device_train_batch_size=4, max_steps=4, **flags))
    given = flags | {"per_device_train_batch_size": 2, "deepspeed": config}
    launch(stage(world, two, max_steps=2, **given), processes=2, timeout=1400)
    launch(stage(world, two, max_steps=4, **given), processes=2)
    assert_close(one, two, file)
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
