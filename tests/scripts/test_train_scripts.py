"""The bash scripts of training: inputs, the global batch, launchers; torchrun is a recorder."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ROOT
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from llava.train.args import parse

INPUTS = {
    "MODEL": "llm",
    "DATA": "data.json",
    "IMAGES": "images",
    "TOWER": "openai/clip-vit-large-patch14",
    "OUTPUT": "out",
    "PROJECTOR": "mm_projector.bin",
}
SCRIPTS = {
    "scripts/v1_5/train/pretrain.sh": (256, 32),
    "scripts/v1_5/train/finetune.sh": (128, 16),
    "scripts/v1_5/train/finetune_lora.sh": (128, 16),
}
"""Script -> its global batch and that of a process."""
ALL = [*SCRIPTS, *(f"llava/{name}" for name in SCRIPTS), "A_score/compute.sh"]


@pytest.fixture
def call(tmp_path):
    """Runs a script with recorders on the PATH in place of torchrun, nvidia-smi and Slurm's."""
    tools = tmp_path / "bin"
    tools.mkdir()
    recorder = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n'
    (tools / "torchrun").write_text(recorder)
    (tools / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tools / "scontrol").write_text("#!/bin/sh\necho node-a\necho node-b\n")
    (tools / "srun").write_text('#!/bin/sh\nSLURM_NODEID=1 exec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)

    def run(script, *flags, gpus=None, leave_out=(), **more):
        if gpus is not None:
            lines = "".join(f"echo 'GPU {i}: a'\n" for i in range(gpus))
            (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", **INPUTS, **more}
        for name in leave_out:
            del environment[name]
        return subprocess.run(
            ["bash", str(ROOT / script), *flags],
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    return run


def split(done):
    """(words for torchrun, flags for train.py) of a recorded launch."""
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    place = next(i for i, word in enumerate(words) if word.endswith("train.py"))
    assert Path(words[place]) == ROOT / "llava/train/train.py"
    return words[:place], words[place + 1 :]


def value(flags, name):
    """The last value of a flag, as argparse takes it."""
    return flags[len(flags) - flags[::-1].index(name)]


@pytest.mark.parametrize("script", ALL)
def test_on_a_cpu(call, script):
    """No GPU: one process, and none of the flags that need one; all flags are known."""
    torchrun, flags = split(call(script))
    assert torchrun == ["--nproc_per_node", "1", "--standalone"]
    assert not {"--bf16", "--tf32", "--deepspeed"} & set(flags)
    model, data, training = parse(flags)
    assert (model.vision_tower, data.image_folder) == (INPUTS["TOWER"], "images")
    assert training.a_score == script.startswith("A_score")
    assert model.tune_mm_mlp_adapter == ("pretrain" in script or training.a_score)
    assert training.lora_enable == ("lora" in script)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_global_batch(call, script, gpus):
    """As published, on any number of GPUs."""
    torchrun, flags = split(call(script, gpus=gpus))
    assert torchrun[:2] == ["--nproc_per_node", str(gpus)]
    whole, one = SCRIPTS[script]
    assert int(value(flags, "--per_device_train_batch_size")) == one
    assert int(value(flags, "--gradient_accumulation_steps")) * one * gpus == whole
    assert value(flags, "--bf16") == "True"
    assert Path(value(flags, "--deepspeed")).is_file()


def test_visible_gpus(call):
    """Those that CUDA_VISIBLE_DEVICES leaves, and none where it is empty."""
    script = "scripts/v1_5/train/pretrain.sh"
    for visible, processes in (("0,3", "2"), ("", "1"), ("5", "1")):
        torchrun, flags = split(call(script, gpus=8, CUDA_VISIBLE_DEVICES=visible))
        assert torchrun[1] == processes
        assert ("--bf16" in flags) == bool(visible)


def test_plain_ddp(call):
    """ZERO=none leaves DeepSpeed out, and another file takes its place."""
    _, flags = split(call("scripts/v1_5/train/finetune.sh", gpus=8, ZERO="none"))
    assert "--deepspeed" not in flags
    _, flags = split(call("scripts/v1_5/train/finetune.sh", gpus=8, ZERO="scripts/zero3.json"))
    assert value(flags, "--deepspeed") == "scripts/zero3.json"


def test_several_nodes(call):
    """Every node starts its own processes; the batch counts them all."""
    place = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-a"}
    torchrun, flags = split(call("scripts/v1_5/train/pretrain.sh", gpus=4, **place))
    assert " ".join(torchrun) == (
        "--nproc_per_node 4 --nnodes 2 --node_rank 1 --master_addr node-a --master_port 25001"
    )
    assert value(flags, "--gradient_accumulation_steps") == "1"
    done = call("scripts/v1_5/train/pretrain.sh", gpus=4, NNODES="2")
    assert (done.returncode, "NODE_RANK MASTER_ADDR" in done.stderr) == (2, True)


def test_slurm(call):
    """The allocation says how many nodes there are and which is the first."""
    place = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]", "STAGE": "finetune"}
    torchrun, flags = split(
        call("scripts/slurm/train.sbatch", "--packing", "True", gpus=8, **place)
    )
    assert " ".join(torchrun) == (
        "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr node-a --master_port 25001"
    )
    assert flags[-2:] == ["--packing", "True"]
    assert value(flags, "--per_device_train_batch_size") == "8"  # of 16, since 16 GPUs share 128
    done = call("scripts/slurm/train.sbatch", **(place | {"STAGE": "pretain"}))
    assert (done.returncode, "no " in done.stderr) == (2, True)


@pytest.mark.parametrize("script", ALL)
def test_missing_inputs(call, script):
    """All of them are named, with the usage, and nothing is launched."""
    done = call(script, leave_out=("TOWER", "DATA"))
    assert done.returncode == 2
    assert "not set: DATA TOWER" in done.stderr
    assert "MODEL=lmsys/vicuna-7b-v1.5" in done.stderr
    assert done.stdout == ""
    assert call(script, "--help").returncode == 2


def test_batch_that_does_not_divide(call):
    """Says what to set."""
    done = call("scripts/v1_5/train/finetune.sh", gpus=3)
    assert done.returncode == 2
    assert "set PER_DEVICE or GLOBAL_BATCH" in done.stderr
    _, flags = split(call("scripts/v1_5/train/finetune.sh", gpus=3, GLOBAL_BATCH="144"))
    assert value(flags, "--gradient_accumulation_steps") == "3"


def test_flags_are_passed_on(call):
    """Behind the script's own, so that they win; words with spaces stay whole."""
    _, flags = split(call("scripts/v1_5/train/pretrain.sh", "--learning_rate", "5e-4", "--check"))
    assert flags[-3:] == ["--learning_rate", "5e-4", "--check"]
    _, _, training = parse(flags)
    assert (training.learning_rate, training.check) == (5e-4, True)
    _, flags = split(call("scripts/v1_5/train/pretrain.sh", IMAGES="my images"))
    assert value(flags, "--image_folder") == "my images"


def test_published_hyper_parameters(call):
    """Table 7 of LLaVA-1.5, and its LoRA script."""
    rates = {"pretrain": "1e-3", "finetune": "2e-5", "finetune_lora": "2e-4"}
    for name, rate in rates.items():
        _, flags = split(call(f"scripts/v1_5/train/{name}.sh"))
        assert value(flags, "--learning_rate") == rate
        assert value(flags, "--warmup_ratio") == "0.03"
        assert value(flags, "--version") == ("plain" if name == "pretrain" else "v1")
    assert value(flags, "--lora_r") == "128"
    assert value(flags, "--mm_projector_lr") == "2e-5"


def test_adapters_are_trained_as_the_rest(call):
    """LoRA's script is that of stage 2 with flags behind its own, and ZeRO-3."""
    _, flags = split(call("scripts/v1_5/train/finetune.sh", "--packing", "True"))
    _, more = split(call("scripts/v1_5/train/finetune_lora.sh", "--packing", "True"))
    assert (more[: len(flags) - 2], more[-2:]) == (flags[:-2], flags[-2:])
    assert more[len(flags) - 2] == "--lora_enable"
    _, more = split(call("scripts/v1_5/train/finetune_lora.sh", gpus=8))
    assert value(more, "--deepspeed").endswith("zero3.json")
    _, more = split(call("scripts/v1_5/train/finetune_lora.sh", gpus=8, ZERO="none"))
    assert "--deepspeed" not in more


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload", "fsdp"])
def test_configs(name):
    """DeepSpeed's are what transformers reads; weights are gathered; the schedule is ours."""
    facts = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    if name == "fsdp":
        assert facts["version"] == 2
        return
    stage = facts["zero_optimization"]["stage"]
    assert stage == (2 if name == "zero2" else 3)
    assert HfDeepSpeedConfig(facts).is_zero3() == (stage == 3)
    if stage == 3:
        assert facts["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert "scheduler" not in facts and "optimizer" not in facts


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    """Lint of bash, where there is one."""
    found = [ROOT / name for name in ALL] + [ROOT / "scripts/slurm/train.sbatch"]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", "SCRIPTDIR", *map(str, found)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
