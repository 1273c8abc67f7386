"""`law evaluate` in another interpreter and in several processes: what is run, and what is told."""

import json
import os
import subprocess
import sys

import pytest
from repository import ROOT
from world import make_world, stage1, stage2

from llava.errors import LawError, UsageError
from llava.eval.evaluate import main
from llava.eval.evaluation import launch as evaluation_launch
from llava.eval.evaluation import run as evaluation_run
from llava.eval.evaluation.launch import without
from llava.eval.harness import INSTALL, harness
from llava.eval.local_tasks import write_local_task
from llava.train.train import main as train

FLAGS = ["--run", "r", "--tasks", "mme", "--limit", "2"]


@pytest.fixture
def interpreter(tmp_path):
    """Makes a program that answers the probe with `missing` and records any other call."""

    def make(missing, code=0):
        path = tmp_path / "python"
        record = tmp_path / "called"
        path.write_text(
            "#!/bin/sh\n"
            f"if [ \"$1\" = -c ]; then echo '{json.dumps(missing)}'; exit 0; fi\n"
            f'for word in "$PYTHONPATH" "$@"; do echo "$word" >> {record}; done\n'
            f"exit {code}\n"
        )
        path.chmod(0o755)
        return path, record

    return make


@pytest.fixture
def becomes(monkeypatch):
    """Runs what this process would become beside it, and ends with its exit code."""

    def run(program, command, environment):
        assert program == command[0]
        raise SystemExit(subprocess.run(command, env=environment).returncode)

    monkeypatch.setattr(evaluation_launch.os, "execvpe", run)


@pytest.mark.usefixtures("becomes")
@pytest.mark.parametrize("code", [0, 1, 2])
def test_another_interpreter(interpreter, code):
    """Gets the same flags but its own, with this project on its path; its exit code is ours."""
    python, record = interpreter({}, code)
    with pytest.raises(SystemExit) as ended:
        main([*FLAGS, "--python", str(python), "--processes", "4"])
    assert ended.value.code == code
    path, *words = record.read_text().splitlines()
    assert path.split(os.pathsep)[0] == str(ROOT)
    assert words == ["-m", "llava", "evaluate", *FLAGS, "--processes", "4"]


@pytest.mark.usefixtures("becomes")
def test_an_installed_package_stays_where_it_is(interpreter, monkeypatch, tmp_path):
    """Beside it stand packages of this environment, which the other one must not see."""
    monkeypatch.setattr(evaluation_launch, "ROOT", tmp_path / "site-packages")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python, record = interpreter({})
    with pytest.raises(SystemExit):
        main([*FLAGS, "--python", str(python)])
    assert record.read_text().splitlines()[0] == ""


def test_an_interpreter_that_lacks_something(interpreter):
    """Says what, why, and the line to type; nothing is run."""
    python, record = interpreter({"lmms_eval.evaluator": "ModuleNotFoundError: lmms_eval"})
    with pytest.raises(LawError, match=r"lmms_eval.*ModuleNotFoundError.*--no-deps") as told:
        main([*FLAGS, f"--python={python}"])
    assert INSTALL in str(told.value)
    assert not record.exists()


def test_no_interpreter(tmp_path):
    """A path that is none, and a program that is no Python."""
    with pytest.raises(UsageError, match="cannot be run: No such file"):
        main([*FLAGS, "--python", str(tmp_path / "none")])
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho never heard of it >&2\n")
    other.chmod(0o755)
    with pytest.raises(UsageError, match=r"no Python interpreter.*never heard of it"):
        main([*FLAGS, "--python", str(other)])


def test_the_probe():
    """Of a real interpreter: what imports is not told, what does not is, with its reason."""
    done = subprocess.run(
        [sys.executable, "-c", evaluation_launch.PROBE, "json", "this", "no_such_module"],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == {
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"
    }
    assert "Zen" in done.stderr  # what an import prints is no answer


def test_several_processes(monkeypatch):
    """One launcher takes this one's place, after a look at the flags; a process that a launcher
    started does not launch again."""
    calls, looked = [], []

    def become(_, command, environment):
        calls.append((command, environment))
        raise SystemExit(3)

    monkeypatch.setattr(evaluation_launch.os, "execvpe", become)
    monkeypatch.setattr(evaluation_run, "look", looked.append)
    monkeypatch.setattr(evaluation_run, "run", lambda arguments: ("", {}))
    with pytest.raises(SystemExit) as ended:
        main([*FLAGS, "--processes", "2"])
    ((command, environment),) = calls
    assert ended.value.code == 3
    assert command[:4] == [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert command[4:] == ["--nproc_per_node", "2", "-m", "--", "llava", "evaluate", *FLAGS]
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    main([*FLAGS, "--processes", "2", "--check"])  # one process is enough
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    main([*FLAGS, "--processes", "2"])
    assert (len(calls), len(looked)) == (1, 1)


def test_wrong_flags_launch_nothing(monkeypatch, tmp_path):
    """They are told once, by this process."""
    monkeypatch.setattr(evaluation_launch.os, "execvpe", lambda *_: pytest.fail("launched"))
    flags = ["--run", str(tmp_path), "--tasks", "mme", "--processes", "2"]
    with pytest.raises(LawError, match=r"no config\.json"):
        main(flags)


def test_a_folder_of_our_name(monkeypatch, tmp_path):
    """In the current directory, it is not taken for this package."""
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "__init__.py").write_text("")
    (tmp_path / "llava" / "__main__.py").write_text("raise SystemExit('another')")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "llava", "evaluate", "--help"],
        env=evaluation_launch._environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("usage: law evaluate"), done.stderr


def test_a_flag_is_taken_out():
    """In both of its forms, and no other."""
    words = ["--a", "--python", "p", "--pythonic", "--python=q", "b"]
    assert without(words, "--python") == ["--a", "--pythonic", "b"]


@pytest.mark.slow
def test_law_llava_alone_and_shared(tmp_path):
    """The same answers and numbers from lmms-eval called plainly, from one process, and from two
    of another interpreter; what one has done the other does not do again."""
    world = make_world(tmp_path / "world")
    train(stage1(world, world / "stage1"))
    projector = world / "stage1" / "mm_projector.bin"
    train(stage2(world, world / "stage2", projector, max_steps=8, learning_rate=1e-2))
    asked, chosen = [], []
    for i in range(7):
        record = {"id": i, "image": f"{i}.png", "question": f"What is it, {i}?"}
        asked.append(record | {"answer": "a red fox"})
        chosen.append(record | {"choices": ["a red fox", "trees", "one"], "answer": "trees"})
    write_local_task(tmp_path / "tasks", "vqa", asked, world / "images", "generate")
    write_local_task(tmp_path / "tasks", "choice", chosen, world / "images", "choice")
    flags = ["--tasks", "vqa,choice", "--include_path", tmp_path / "tasks", "--device", "cpu"]
    command = [str(word) for word in ("--run", world / "stage2", *flags)]
    main(command)
    manager = harness("tasks").TaskManager(
        include_path=str(tmp_path / "tasks"), include_defaults=False
    )
    plain = harness("evaluator").simple_evaluate(
        model="law_llava",
        model_args=f"pretrained={world / 'stage2'}",
        tasks=["vqa", "choice"],
        batch_size=1,
        device="cpu",
        task_manager=manager,
    )
    shared = tmp_path / "shared"
    elsewhere = ["--out", str(shared), "--python", sys.executable, "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "llava", "evaluate", *command, *elsewhere],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["benchmark", "vqa", "choice"]
    for task, metric in (("vqa", "exact_match"), ("choice", "acc")):
        one, two = (read(out / f"{task}.json") for out in (world / "stage2" / "eval", shared))
        assert (one["processes"], two["processes"]) == (1, 2)
        assert one["metrics"] == two["metrics"]
        assert one["identity"] == two["identity"]
        assert one["settings"]["conv_template"] == "vicuna_v1"
        assert one["metrics"][metric]["value"] == plain["results"][task][f"{metric},none"]
        theirs = {sample["doc_id"]: sample["filtered_resps"] for sample in plain["samples"][task]}
        for out in (world / "stage2" / "eval", shared):
            lines = (out / f"{task}_samples.jsonl").read_text().splitlines()
            answers = {one["doc_id"]: one["answer"] for one in map(json.loads, lines)}
            assert list(answers) == list(range(7))
            for document, (answer, *more) in theirs.items():
                if not more:
                    assert answers[document] == answer
                    continue
                nll = [value for value, _ in (answer, *more)]
                assert [value for value, _ in answers[document]] == pytest.approx(nll, rel=1e-5)
    released = tmp_path / "released"
    more = ["--model", "llava", "--model_args", "device_map=auto", "--out", str(released)]
    main([*command, *more])
    for task in ("vqa", "choice"):
        one, two = (read(out / f"{task}.json") for out in (shared, released))
        for numbers in (*one["metrics"].values(), *two["metrics"].values()):
            numbers.pop("protocol")  # it names the class
        assert one["metrics"] == two["metrics"]
        assert two["model_args"]["conv_template"] == "vicuna_v1"
    before = [path.stat().st_mtime_ns for path in sorted(shared.glob("*.json*"))]
    main([*command, "--out", str(shared)])
    assert [path.stat().st_mtime_ns for path in sorted(shared.glob("*.json*"))] == before


def read(path):
    """A JSON file."""
    return json.loads(path.read_text())
