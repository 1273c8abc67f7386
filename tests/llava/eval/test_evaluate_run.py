"""`law evaluate` and its checkpoint: what tells it, what it needs, what several processes share."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from repository import ROOT
from safetensors.torch import save_file
from stub_lmms import register
from tiny import save_encoder

from llava.errors import LawError, UsageError
from llava.eval.evaluate import main, parser
from llava.eval.evaluation.fingerprint import SMALL, fingerprint
from llava.eval.evaluation.run import look
from llava.eval.evaluation.subject import subject
from llava.eval.harness import load_tasks, task_manager
from llava.eval.local_tasks import write_local_task
from llava.model.multimodal_encoder.registry import parse_replacements, resolve
from llava.model.representation import record
from llava.results import COLUMNS

CONFIG = {"model_type": "llava_llama", "conversation_version": "v1"}
EACH = """
import os, sys
import torch
from stub_lmms import Stub, register
from llava.eval.evaluate import main
from llava.eval.harness import harness
from llava.exits import run_command

harness("api.task").ConfigurableTask.download.retry.sleep = lambda _: None
register()
Stub.device = torch.device("cpu")
place = os.environ.get("RANK", "0")
run_command(main, [word.replace("RANK", place) for word in sys.argv[1:]])
"""
"""`law evaluate`, RANK in a flag standing for the process's own."""


@pytest.fixture
def two(tmp_path):
    """Two equal checkpoints, each with a safetensors file and an archive of PyTorch."""
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    (one / "vocab.json").write_text("{}")
    tensors = {f"layer.{i}": torch.zeros(SMALL // 4) for i in range(5)}
    save_file(tensors, one / "model.safetensors")
    torch.save({"projector": torch.zeros(SMALL)}, one / "mm_projector.bin")
    torch.save(
        {"older": torch.zeros(SMALL)}, one / "older.bin", _use_new_zipfile_serialization=False
    )
    shutil.copytree(one, tmp_path / "two")
    return one, tmp_path / "two"


@pytest.mark.parametrize("place", ["layer.0", "layer.2", "layer.4"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_changed_tensor_changes_the_fingerprint(two, place, share):
    """Whichever tensor it is, and wherever within it."""
    one, other = two
    assert fingerprint(str(one)) == fingerprint(str(other))
    tensors = {f"layer.{i}": torch.zeros(SMALL // 4) for i in range(5)}
    tensors[place][int(share * (SMALL // 4 - 1))] = 1
    save_file(tensors, other / "model.safetensors")
    assert fingerprint(str(one)) != fingerprint(str(other))


@pytest.mark.parametrize("name", ["projector", "older"])
def test_a_changed_archive_changes_the_fingerprint(two, name):
    """Of torch.save, in its present and its older form, wherever it changed."""
    one, other = two
    changed = torch.zeros(SMALL)
    changed[12345] = 1
    file = {"projector": "mm_projector.bin", "older": "older.bin"}[name]
    torch.save({name: changed}, other / file, _use_new_zipfile_serialization=name == "projector")
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_an_archive_without_checksums(two):
    """Is hashed whole: what stands in place of checksums tells nothing."""
    one, other = two
    torch.serialization.set_crc32_options(False)
    try:
        for folder, value in ((one, 0), (other, 1)):
            changed = torch.zeros(SMALL)
            changed[12345] = value
            torch.save({"projector": changed}, folder / "mm_projector.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert fingerprint(str(one)) != fingerprint(str(other))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "preprocessor_config.json"])
def test_a_changed_tokenizer_changes_the_fingerprint(two, name):
    """And a processor."""
    one, other = two
    (other / name).write_text('{"a": 1}')
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_a_changed_tower_changes_the_fingerprint(tmp_path):
    """Where a folder beside the checkpoint holds its weights."""
    save_encoder(tmp_path / "clip", "clip_vision_model")
    config = CONFIG | {"mm_vision_tower": str(tmp_path / "clip")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    before = subject(str(tmp_path / "run")).fingerprint
    assert subject(str(tmp_path / "run")).fingerprint == before
    save_encoder(tmp_path / "clip", "clip_vision_model", seed=1)
    assert subject(str(tmp_path / "run")).fingerprint != before


def test_a_hub_id_without_a_network(monkeypatch):
    """Says that the cache does not hold it, and why nobody asked the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LawError, match=r"not in the hub's cache, .*HF_HUB_OFFLINE.*hf download"):
        subject("nobody/no-such-model")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_a_tower_that_moved(tmp_path, monkeypatch, recorded, relative):
    """Is said before anything is read, with the flag that helps, and that helps."""
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "towers" / "clip", "clip_vision_model")
    name = "towers/clip" if relative else str(tmp_path / "towers" / "clip")
    config = SimpleNamespace(**CONFIG, mm_vision_tower=name)
    if recorded:
        record(config, resolve(name))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(vars(config)))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    before = subject("run")
    (tmp_path / "towers").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=f"tower.* --tower-alias ({name}|OLD)=FOLDER"):
        main(["--run", "run", "--tasks", "no_such_task"])
    with pytest.raises(UsageError, match="unknown task 'no_such_task'"):
        main(["--run", "run", "--tasks", "no_such_task", "--tower-alias", f"{name}=moved/clip"])
    after = subject("run", towers=parse_replacements([f"{name}=moved/clip"]))
    assert (after.spec_hash, after.fingerprint) == (before.spec_hash, before.fingerprint)
    assert after.representation == before.representation


@pytest.fixture
def world(tmp_path):
    """A run's folder, and tasks of text in a folder of each of two ranks."""
    (tmp_path / "run").mkdir()
    config = CONFIG | {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    records = [{"id": i, "question": f"{i}?", "answer": "yes"} for i in range(5)]
    for name in ("one", "two", "gone"):
        for rank in (0, 1):
            write_local_task(tmp_path / f"tasks{rank}", name, records, tmp_path)
    return tmp_path


@pytest.mark.parametrize("model", ["law_llava", "llava", "stub", "other"])
def test_tasks_are_asked_as_they_say_for_a_model(world, model):
    """law_llava gets the prompts of lmms-eval's own `llava`."""
    register()
    path = world / "tasks0" / "one.yaml"
    sections = "".join(f"  {name}: {{pre_prompt: 'To {name}. '}}\n" for name in ("llava", "stub"))
    path.write_text(path.read_text().replace("  default:\n", sections + "  default:\n"))
    if model == "other":
        manager = task_manager(["one"], [world / "tasks0"], model)
    else:
        flags = ["--run", str(world / "run"), "--tasks", "one", "--model", model]
        flags += ["--include-path", str(world / "tasks0")]
        manager = look(parser().parse_args(flags)).manager
    task = load_tasks(["one"], manager)["one"]
    told = {"law_llava": "To llava. 0?", "llava": "To llava. 0?", "stub": "To stub. 0?"}
    assert task.doc_to_text(task.eval_docs[0]) == told.get(model, "0?")


REFUSED = {
    "conv_template=llama_2: .* was trained with v1": "--conv-template llama_2",
    "cache_gb much: expected a number": "--model_args cache_gb=much",
    "dtype 'float17': expected float32": "--dtype float17",
    "results.csv: .*column": "--results results.csv",
    "file/environment.json: cannot be written: .*file is no folder": "--out file",
    "folder: cannot be written: is a folder": "--results folder",
}
"""What a call is told -> its flags."""


@pytest.mark.parametrize("told", REFUSED)
def test_a_check_refuses_what_the_call_would(world, monkeypatch, told):
    """And does so before it looks for tasks."""
    monkeypatch.chdir(world)
    (world / "results.csv").write_text("name,colour\na,blue\n")
    (world / "file").write_text("")
    (world / "folder").mkdir()
    flags = ["--run", "run", "--tasks", "no_such_task", "--check", *REFUSED[told].split()]
    with pytest.raises(LawError, match=told):
        main(flags)


def test_an_empty_table_of_results(world, monkeypatch):
    """Is one, and so is a table that holds no row yet."""
    monkeypatch.chdir(world)
    flags = ["--run", "run", "--tasks", "no_such_task", "--check", "--results", "results.csv"]
    for text in ("", ",".join(COLUMNS) + "\n"):
        (world / "results.csv").write_text(text)
        with pytest.raises(UsageError, match="unknown task"):
            main(flags)


@pytest.mark.slow
def test_processes_that_see_different_folders(world):
    """What rank zero has finished is finished; a task that one has no data for fails for all."""
    (world / "each.py").write_text(EACH)
    flags = ["--run", world / "run", "--model", "stub", "--device", "cpu", "--out", "outRANK"]
    flags += ["--include_path", "tasksRANK", "--tasks"]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))

    def call(tasks, *launcher):
        return subprocess.run(
            [str(word) for word in (sys.executable, *launcher, "each.py", *flags, tasks)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=world,
            capture_output=True,
            text=True,
            timeout=120,
        )

    two = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--")
    done = call("one")
    assert done.returncode == 0, done.stderr
    before = (world / "out0" / "one.json").read_text()
    done = call("one", *two)  # rank one has no result, and has nobody to ask with
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[0] == "one"
    assert (world / "out0" / "one.json").read_text() == before
    (world / "out0").rename(world / "out1")
    (world / "tasks1" / "gone.jsonl").unlink()
    done = call("one,two,gone", *two)  # now rank one alone has a result
    assert done.returncode == 1, done.stderr
    assert "gone: one of the processes cannot have its data" in done.stderr
    assert "law [1]: error: gone: gone: the data cannot be had" in done.stderr
    for name in ("one", "two"):
        found = json.loads((world / "out0" / f"{name}.json").read_text())
        assert (found["processes"], found["documents"]) == (2, 5)
    assert not (world / "out0" / "gone.json").exists()
