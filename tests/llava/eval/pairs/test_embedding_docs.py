"""Every command of docs/pairs_embedding.md, and scripts/ablation/embedder.sh, on a tiny world."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from pair_files import A, B, whatsup
from repository import ROOT
from world import make_world, stage1, stage2

from llava.__main__ import main as law
from llava.errors import UsageError
from llava.eval.pairs.questions import axes
from llava.eval.pairs.train_embedder import _parser
from llava.eval.pairs.train_embedder import main as embedder
from llava.train.train import main as train

DOC = (ROOT / "docs" / "pairs_embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", DOC, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
SHORT = "--max_steps 2 --batch_size 4 --chunk_size 2 --warmup_steps 0 --learning_rate 1e-3"
"""Of the training, on a tiny model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are typed: runs/stage2, configs and What'sUp in its usual place."""
    root = make_world(tmp_path_factory.mktemp("docs"))
    train(stage1(root, root / "runs" / "stage1"))
    projector = root / "runs" / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "runs" / "stage2", projector))
    (root / "configs").symlink_to(ROOT / "configs")
    (root / "llava").symlink_to(ROOT / "llava")
    for name, relations in (("controlled_images", A), ("controlled_clevr", B)):
        objects = [(f"mug-{number}", "tray") for number in range(10)]
        whatsup(root / "data" / "whatsup", name, relations, objects)
    return root


def typed(line):
    """Runs a `law` command in this process."""
    words = shlex.split(line)
    assert words[0] == "law"
    try:
        law(words[1:])
    except SystemExit as done:
        assert not done.code, line


def test_embeddings(folder, monkeypatch, capsys):
    """Made, trained, scored with questions and without."""
    monkeypatch.chdir(folder)
    for line in COMMANDS[:4]:
        typed(f"{line} {SHORT}" if "train-embedder" in line else line)
    said = capsys.readouterr().out
    assert "synthetic" in said
    asked, alone = (
        json.loads((folder / "results/pairs/synthetic" / name).read_text())
        for name in ("embedder.json", "embedder-alone.json")
    )
    assert asked["quantity"] == alone["quantity"] == "pairs_embed"
    trained = "embed/last-token/trained-[0-9a-f]{8}"
    assert re.fullmatch(f"{trained}/question/order0/float32", asked["protocol"])
    assert re.fullmatch(f"{trained}/no-question/float32", alone["protocol"])
    scores = [one["results"][0]["per_item"][0]["scores"] for one in (asked, alone)]
    assert scores[0] != scores[1]
    assert asked["results"][0]["n"] == 48


@pytest.mark.slow
def test_lmms_eval(folder, monkeypatch, capsys):
    """Through `law evaluate`, and through lmms-eval's own command."""
    monkeypatch.chdir(folder)
    evaluate, limited, own = COMMANDS[4:]
    typed(evaluate)
    typed(limited)
    assert "What'sUp B (sets)" in capsys.readouterr().out
    found = json.loads((folder / "eval-of-ten-sets" / "whatsup_a-limit40.json").read_text())
    assert found["documents"] == 40
    words = shlex.split(own)
    assert words[:2] == ["accelerate", "launch"]
    done = subprocess.run(
        [sys.executable, *words[2:]], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads((folder / "runs/stage2/eval/whatsup_a.json").read_text())["metrics"]
    row = next(line for line in done.stdout.splitlines() if re.match(r"\|\s*whatsup_a\s*\|", line))
    rows = done.stdout[done.stdout.index(row) :].splitlines()[:3]
    told = {cells[3].strip(): float(cells[5]) for cells in (one.split("|")[1:] for one in rows)}
    assert told == {name: pytest.approx(one["value"], abs=6e-5) for name, one in numbers.items()}


def test_merged_adapters_are_trained_on(folder, monkeypatch):
    """A stage 2 with LoRA: refused as it is, also as the place to write to; merged, it is taken."""
    monkeypatch.chdir(folder)
    projector = folder / "runs" / "stage1" / "mm_projector.bin"
    lora = {"lora_enable": True, "lora_r": 4, "learning_rate": 1e-2}
    train(stage2(folder, folder / "runs" / "stage2-lora", projector, **lora))
    flags = f"--data_path talks.json --image_folder images {SHORT} --model_name_or_path runs/stage2"
    with pytest.raises(UsageError, match=r"holds a lora; expected a whole LLaVA.* merge"):
        embedder(shlex.split(f"{flags}-lora --output_dir runs/e"))
    with pytest.raises(UsageError, match="holds adapters that are no embedder's"):
        embedder(shlex.split(f"{flags} --output_dir runs/stage2-lora"))
    (code,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    exec(code.replace("lmsys/vicuna-7b-v1.5", "llm"), {})
    embedder(shlex.split(f"{flags}-merged --output_dir runs/e"))
    assert json.loads((folder / "runs/e/embedder.json").read_text())["base"] == "runs/stage2-merged"


def test_what_the_docs_say(folder):
    """Defaults and questions are those of the code."""
    flags = vars(
        _parser("x").parse_args(
            shlex.split("--model_name_or_path a --data_path b --image_folder c --output_dir d")
        )
    )
    assert "| `--lora_r`, `--lora_alpha`, `--lora_dropout` | 8, 64, .1;" in DOC
    assert (flags["lora_r"], flags["lora_alpha"], flags["lora_dropout"]) == (8, 64, 0.1)
    assert "2e-5, 100, 1000;" in DOC
    assert [flags[n] for n in ("learning_rate", "warmup_steps", "max_steps")] == [2e-5, 100, 1000]
    assert (flags["temperature"], flags["batch_size"], flags["chunk_size"]) == (0.02, 256, 1)
    assert flags["max_length"] == 512
    for axis in axes().values():
        one, other = axis.alternatives
        assert f"| Is the {{first}} {one} or {other} the {{second}}? |" in DOC


def test_script(tmp_path):
    """Trains on all processes, then scores twice; `torchrun` and `law` are recorders."""
    log = tmp_path / "calls"
    for tool in ("torchrun", "law"):
        path = tmp_path / tool
        path.write_text(f'#!/bin/sh\necho {tool} "$@" >> {log}\n')
        path.chmod(0o755)
    given = {"RUN": "r", "DATA": "d.json", "IMAGES": "i", "OUTPUT": "runs/e", "GPUS": "4"}
    script = ROOT / "scripts" / "ablation" / "embedder.sh"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LIMIT": "3", **given}
    command = ["bash", str(script), "--max_steps", "5"]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    train_line, asked, alone = log.read_text().splitlines()
    launcher, _, flags = train_line.partition(" -m llava pairs train-embedder ")
    assert launcher == "torchrun --standalone --nproc_per_node 4"
    parsed = _parser("x").parse_args(flags.split())
    assert (parsed.model_name_or_path, parsed.batch_size, parsed.max_steps) == ("r", 256, 5)
    assert parsed.dora
    assert "--model-path runs/e --out results/pairs/whatsup/runs-e-embed.json" in asked
    assert asked.endswith("--limit 3")
    assert "runs-e-embed-no-question.json --no-question --limit 3" in alone
    for missing in given:
        if missing != "GPUS":
            less = {name: value for name, value in environment.items() if name != missing}
            done = subprocess.run(command, env=less, capture_output=True, text=True)
            assert done.returncode == 2
            assert f"not set: {missing}" in done.stderr
