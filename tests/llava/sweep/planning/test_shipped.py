"""The sweeps of configs/: what they say, and what planning them takes."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llava import catalog
from llava.sweep.plan import load_run
from llava.sweep.planning import as_text, plan, resolved
from llava.sweep.space import names

SHIPPED = ("paper13", "search_10")
SECONDS = 5.0
MEMORY = 500e6


@functools.cache
def shipped(name):
    """(config, what is chosen among, references); resolved once for all tests."""
    config = load_run(f"configs/{name}.yaml")
    return config, *resolved(config)


ALONE = """
import sys, time
start = time.process_time()
from llava.sweep.plan import load_run
from llava.sweep.planning import as_text, plan, resolved
config = load_run(sys.argv[1])
assert as_text(plan(config, *resolved(config)))
assert "torch" not in sys.modules
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - start, 1024 * int(peak.split()[1]))
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_planning_is_quick_and_light(name):
    """No torch, under 5 seconds of a CPU (however busy the machine is) and 500 MB."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, f"configs/{name}.yaml"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, memory = map(float, done.stdout.split())
    assert seconds < SECONDS
    assert memory < MEMORY


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("model", ["flops", "paper", "llava"])
def test_the_text_fits_a_terminal(name, model):
    """100 columns, nothing behind a line's end, nothing wrong."""
    config, *found = shipped(name)
    config = dataclasses.replace(config, cost=dataclasses.replace(config.cost, model=model))
    text = as_text(plan(config, *found))
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"[ \t]\n", text)
    assert "WRONG" not in text
    assert "DOES NOT FIT" not in text


def test_the_papers_thirteen():
    """Table 2, by the ids of the catalog; nothing of what it takes is unknown."""
    config, found, references = shipped("paper13")
    assert {one.name for one in found} == set(catalog.representations())
    assert {one.name for one in references} <= {one.name for one in found}
    planned = plan(config, found, references)
    assert not planned.most.partial
    assert planned.before == planned.expected == planned.most
    for entry in planned.each:
        sizes = {
            part.size for one in found if one.name == entry.representation for part in one.parts
        }
        assert sizes == {catalog.representations()[entry.representation].resolution}
    assert config.alignment.cosine.benchmarks == catalog.benchmark_sets()["paper8"]


def test_the_scripts_flags():
    """scripts/v1_5/train, but for the length; 256 and 128 samples a step."""
    folder = "scripts/v1_5/train"
    shared, *own = (
        dict(re.findall(r"^ +--(\w+) ([\w.-]+) \\", Path(f"{folder}/{name}.sh").read_text(), re.M))
        for name in ("common", "pretrain", "finetune")
    )
    for name in SHIPPED:
        config = load_run(f"configs/{name}.yaml")
        for flags, script, batch in zip(
            (config.stage1, config.stage2), own, (256, 128), strict=True
        ):
            for flag, value in {**shared, **script}.items():
                if flag in ("tune_mm_mlp_adapter", "mm_use_im_start_end", "mm_use_im_patch_token"):
                    continue  # the sweep's own, and defaults
                if flag == "model_max_length" and name == "paper13":
                    continue  # the head of the file says why
                assert str(flags[flag]).lower() in (value.lower(), str(_number(value))), flag
            gpus = config.launch.gpus_per_step["stage1"]
            assert flags["per_device_train_batch_size"] * gpus == batch


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


@pytest.mark.parametrize("name", SHIPPED)
def test_flags_are_those_of_law_train(name):
    """Each is a field of its arguments."""
    from llava.train.args import DataArguments, ModelArguments, TrainingArguments

    known = {"warmup_ratio"}
    for kind in (ModelArguments, DataArguments, TrainingArguments):
        known |= {field.name for field in dataclasses.fields(kind)}
    config = load_run(f"configs/{name}.yaml")
    assert set(config.stage1) | set(config.stage2) <= known


def test_every_combination_of_the_search():
    """All 1,023 resolve to names of their own, of ten towers with one spec each."""
    config, found, references = shipped("search_10")
    asked = names(config)
    assert len(asked) == len(found) == len({one.name for one in found}) == 1023
    specs = {part for one in found for part in one.parts}
    assert len(specs) == len({part.hash() for part in specs}) == 10
    assert {part.grid for one in found for part in one.parts} == {(16, 16), (14, 14), (24, 24)}
    assert max(one.tokens for one in found) == 576
    assert [one.name for one in references] == [
        "openai/clip-vit-large-patch14-336",
        "openai/clip-vit-large-patch14",
    ]
    planned = plan(config, found, references)
    assert not planned.most.partial
    assert planned.towers == 10
    stage1 = next(kind for kind in planned.kinds if kind.name == "stage1")
    assert (stage1.before.steps, stage1.expected.steps, stage1.most.steps) == (11, 17, 1024)
