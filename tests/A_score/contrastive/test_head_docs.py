"""The commands of docs/a_score.md's section on heads, and the scripts that launch them."""

import os
import re
import shlex
import subprocess

import pytest
from headworld import ROOT

from llava.__main__ import main

TEXT = (ROOT / "docs/a_score.md").read_text(encoding="utf-8")
SECTION = re.search(r"(?ms)^## Heads.*?^## ", TEXT)[0]
COMMANDS = re.search(r"(?s)```bash\n(.*?)```", SECTION)[1].splitlines()


@pytest.mark.slow
def test_the_commands_run(world, tmp_path, monkeypatch):
    """With a tiny tower in place of clip336, and for a few steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert [line.split()[:3] for line in COMMANDS] == [
        ["law", "pairs", "make-synthetic"],
        ["law", "pairs", "make-synthetic"],
        ["law", "a-score", "head"],
        ["law", "pairs", "run"],
    ]
    for line in COMMANDS:
        line = line.replace("clip336", str(world / "tower")).replace("steps=500", "steps=3")
        line = line.replace("batch_size=64", "batch_size=12")
        line = line.replace("--n 48 --seed 0 --train 960", "--n 8 --train 48")
        line = line.replace("--train 240", "--train 48")
        main(shlex.split(line)[1:])
    assert ",A_head,train_infonce," in (tmp_path / "results.csv").read_text()
    assert (tmp_path / "results/pairs/head.json").is_file()


@pytest.mark.parametrize("name", ["pacl", "pacl_rope", "sparc"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_scripts(name, gpus, tmp_path):
    """What they launch, recorded; flags behind their names are passed on."""
    for tool in ("law", "torchrun"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho {tool} "$@"\n')
        (tmp_path / tool).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": str(gpus)}
    inputs = {"TOWER": "sd2.1", "DATA": "a.json", "IMAGES": "images", "OUTPUT": "out"}
    command = ["bash", str(ROOT / f"scripts/ablation/head_{name}.sh"), "--pool", "8"]
    run = {"capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, env=environment | inputs, **run)
    assert done.returncode == 0, done.stderr
    start = "torchrun --standalone --nproc_per_node 2 -m -- llava" if gpus else "law"
    assert done.stdout.strip() == (
        f"{start} a-score head --config {ROOT}/configs/A_score/{name}.yaml --tower sd2.1 "
        "--data a.json --images images --out out --pool 8"
    )
    done = subprocess.run(command, env=environment, **run)
    assert done.returncode == 2
    assert "not set: TOWER DATA IMAGES OUTPUT" in done.stderr


def test_the_docs_name_what_there_is():
    """Options and files."""
    from llava.model.contrastive.config import HeadConfig

    fields = HeadConfig.__dataclass_fields__
    for option in ("pooling", "weights_from", "test_pooling", "mean_over", "learned_temperature"):
        assert option in fields
        assert f"`{option}: " in SECTION
