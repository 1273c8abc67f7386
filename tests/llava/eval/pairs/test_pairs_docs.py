"""docs/pairs.md: its commands are commands, its worked example and its tables are the code's."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import duals
import numpy as np
import pytest
from repository import ROOT

from llava.eval.pairs import agree, run, synthetic, table, where
from llava.eval.pairs.accuracies import ACCURACIES
from llava.eval.pairs.config import KINDS
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.metrics import measure
from llava.eval.pairs.readers.files import Row
from llava.eval.pairs.readers.grid import Line, _item
from llava.eval.pairs.scorer import SCORERS
from llava.eval.pairs.sources import sources

TEXT = (ROOT / "docs" / "pairs.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
TORCHRUN = "torchrun --nproc_per_node 8 -m llava.eval.pairs run "
"""test_several_processes_share_the_pieces starts such a command."""
LAW = [shlex.split(line)[2:] for line in COMMANDS if line.startswith("law pairs ")]


def of(name: str) -> list[list[str]]:
    """The words of the commands of one name."""
    found = [words[1:] for words in LAW if words[0] == name]
    assert found
    return found


def test_every_command_is_one_of_these():
    assert {words[0] for words in LAW} == {"make-synthetic", "where", "run", "table", "agree"}
    for line in COMMANDS:
        others = "bash scripts/pairs/" in line or line.startswith(TORCHRUN)
        assert line.startswith("law pairs ") or others, line


@pytest.mark.parametrize("words", of("run"), ids=" ".join)
def test_flags_of_runs(words):
    arguments = run.parse(words, "law pairs run")
    assert (ROOT / arguments.config).is_file()
    assert set(arguments.metrics) <= set(ACCURACIES)
    names = [entry["name"] for entry in _entries(arguments.config)]
    assert set(arguments.only) <= set(names)


def _entries(path: Path) -> list[dict]:
    from llava.config import read_yaml

    return read_yaml(ROOT / path)["benchmarks"]


@pytest.mark.parametrize("words", of("agree"), ids=" ".join)
def test_flags_of_agree(words):
    arguments = agree._parser("law pairs agree").parse_args(words)
    assert (ROOT / arguments.config).is_file()


def test_the_commands_at_the_top_run(tmp_path, monkeypatch, capsys):
    """With a tiny CLIP in the place of the large one; the LLaVA's result is a copy of its."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    clip = duals.save_dual(tmp_path / "clip", "clip")
    monkeypatch.chdir(tmp_path)
    synthetic.main(of("make-synthetic")[0])
    where.main(of("where")[0])
    assert "synthetic: 48 items, 96 images, all there" in capsys.readouterr().out
    words = of("run")[0]
    name = words[words.index("--model") + 1]
    run.main([str(clip) if word == name else word for word in words])
    shown = capsys.readouterr().out
    assert "synthetic left/right pair" in shown
    found = json.loads(Path("results/pairs/clip336.json").read_text())
    assert found["results"][0]["individual"]["of"] == 96
    Path("results/pairs/llava.json").write_text(json.dumps(found))
    table.main(of("table")[0])
    assert capsys.readouterr().out.count("\n") == 4


def test_where_runs(capsys):
    for words in of("where")[1:]:
        where.main(words)
        assert "licence" in capsys.readouterr().out


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "llava.eval.pairs", "where", "synthetic"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and done.stdout.startswith("synthetic: ")
    wrong = subprocess.run(
        [sys.executable, "-m", "llava.eval.pairs", "were"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert wrong.returncode == 2 and "did you mean 'where'" in wrong.stderr


def rows(first: str) -> list[str]:
    """The cells of the table row whose first cell is `first`."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_worked_example():
    scores = np.array(
        [
            [float(cell) for cell in rows(f"photo, cup on the {side}")[1:]]
            for side in ("left", "right")
        ]
    )
    item = Item("x", (Path("a"), Path("b")), ("left", "right"), (0, 1), ((0, 1),) * 2, ((0, 1),))
    found = measure(Benchmark("x", (item,)), [scores])
    said = {name: accuracy.share for name, accuracy in found.accuracies.items()}
    assert said == {"individual": 0.5, "pair": 0, "text": 0, "image": 0, "group": 0}
    assert found.same_choice.right == 1
    chosen = measure(Benchmark("x", (item,), "images"), [scores])
    assert chosen.accuracies["individual"].right == 1 and chosen.same_choice.right == 1


def test_chance_is_what_the_code_says():
    two, four = ((0, 1), (0, 1), (2, 3), (2, 3)), ((0, 1, 2, 3),) * 4
    images = tuple(Path(str(i)) for i in range(4))
    for place, choices in enumerate((two, four)):
        item = Item("x", images, tuple("abcd"), (0, 1, 2, 3), choices, ((0, 1), (2, 3)))
        found = measure(Benchmark("x", (item,)), [np.eye(4)])
        for name in ACCURACIES:
            said = [float(text) for text in re.findall(r"(?<![\w-])[\d.]+", rows(f"`{name}`")[-1])]
            expected = 100 * found.accuracies[name].chance
            assert said[min(place, len(said) - 1)] == pytest.approx(expected, abs=0.005), name


def test_names_in_tables_are_those_of_the_code():
    assert all(rows(f"`{kind}`") for kind in (*KINDS, *SCORERS))
    for key in Line.__dataclass_fields__:
        assert f"`{key}`" in TEXT
    sizes = {name: one for source in sources().values() for name, one in source.counts.items()}
    for name, text in (("coco_one", "2,247"), ("coco_two", "440"), ("gqa_one", "1,160")):
        assert f"{sizes[name]['images']:,}" == text and text in TEXT
    assert sizes["whatsup_a"]["items"] == 103 and sizes["mmvp_vlm"]["items"] == 135


def test_the_lines_of_a_grid_are_items(tmp_path):
    block = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)[1]
    items = [
        _item(i, Row("x", json.loads(line)), tmp_path) for i, line in enumerate(block.splitlines())
    ]
    assert [(len(one.images), len(one.pairs)) for one in items] == [(2, 1), (1, 0)]
