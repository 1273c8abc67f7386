"""The token ablation: scripts and configs are LLaVA-1.5's recipe with one word changed."""

import os
import subprocess

import pytest
from repository import ROOT

from llava.config import read_yaml
from llava.train.args import parse

INPUTS = {
    "MODEL": "llm",
    "DATA": "data.json",
    "IMAGES": "images",
    "TOWER": "openai/clip-vit-large-patch14-336",
    "OUTPUT": "out",
    "PROJECTOR": "mm_projector.bin",
}


@pytest.fixture
def flags(tmp_path):
    """A function from a script and variables to the flags that training gets, or to its error."""
    recorder = '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n'
    for name, text in {"torchrun": recorder, "nvidia-smi": "#!/bin/sh\nexit 9\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script, *words, **variables):
        done = subprocess.run(
            ["bash", str(ROOT / script), *words],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **INPUTS, **variables},
            capture_output=True,
            text=True,
        )
        lines = done.stdout.splitlines()
        start = next((i for i, line in enumerate(lines) if line.endswith("train.py")), None)
        return done.stderr if start is None else lines[start + 1 :]

    return run


@pytest.mark.parametrize(
    ("ours", "base"),
    [("cls_stage1", "pretrain"), ("cls_stage2", "finetune_lora")],
)
def test_scripts_change_one_word(flags, ours, base):
    """To the script of training they add the selected token, and what the caller gives wins."""
    found = flags(f"scripts/ablation/{ours}.sh", "--learning_rate", "7e-4")
    model, _, training = parse(found)
    assert model.mm_vision_select_feature == "cls"
    assert training.learning_rate == 7e-4
    plain = flags(f"scripts/v1_5/train/{base}.sh")
    assert found[: len(plain)] == plain
    control = flags(f"scripts/ablation/{ours}.sh", "--learning_rate", "7e-4", SELECT="patch")
    assert [(a, b) for a, b in zip(found, control, strict=True) if a != b] == [("cls", "patch")]


def test_stage2_without_adapters(flags):
    """LORA=no trains the whole language model; any other word is refused."""
    _, _, whole = parse(flags("scripts/ablation/cls_stage2.sh", LORA="no"))
    assert not whole.lora_enable
    assert "LORA is yes or no" in flags("scripts/ablation/cls_stage2.sh", LORA="maybe")


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_configs_differ_in_the_token(stage):
    """And in where they write; each parses, with the published hyper-parameters."""
    patch, cls = (
        read_yaml(ROOT / "configs" / "ablation" / f"{name}_{stage}.yaml")
        for name in ("patch", "cls")
    )
    differ = {key for key in patch | cls if patch.get(key) != cls.get(key)}
    wanted = {"mm_vision_select_feature", "output_dir"}
    assert differ == (wanted if stage == "stage1" else wanted | {"pretrain_mm_mlp_adapter"})
    for name in ("patch", "cls"):
        path = ROOT / "configs" / "ablation" / f"{name}_{stage}.yaml"
        model, data, training = parse(["--config", str(path)])
        assert model.mm_vision_select_feature == name
        assert training.learning_rate == {"stage1": 1e-3, "stage2": 2e-4}[stage]
        assert training.lora_enable == (stage == "stage2")
        if stage == "stage2":
            assert model.pretrain_mm_mlp_adapter == f"runs/ablation/{name}_stage1/mm_projector.bin"
            assert data.image_aspect_ratio == "pad"
