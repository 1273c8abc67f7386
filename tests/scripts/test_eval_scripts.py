"""The bash scripts of evaluation: inputs and GPUs; `law` and accelerate are recorders."""

import os
import shutil
import subprocess

import pytest
from repository import ROOT

from llava import catalog
from llava.eval.evaluate import parser
from llava.eval.evaluation.jobs import jobs_of

SCRIPTS = {
    "paper8": "paper8",
    "mmbench": "mmbench_en_dev",
    "mme": "mme",
    "okvqa": "ok_vqa_val2014",
    "seed": "seedbench",
    "mmmu": "mmmu_val",
    "textvqa": "textvqa_val",
    "vizwiz": "vizwiz_vqa_val",
    "sqa": "scienceqa_img",
}
"""Script -> what it evaluates."""
UPSTREAM = "lmms_eval"
FOLDER = ROOT / "scripts" / "v1_5" / "eval"


@pytest.fixture
def call(tmp_path):
    """Runs a script with recorders on the PATH."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("law", "accelerate"):
        recorder = f'#!/bin/sh\necho {name}\nfor word in "$@"; do printf "%s\\n" "$word"; done\n'
        (tools / name).write_text(recorder)
    (tools / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)

    def run(script, *flags, gpus=None, **given):
        if gpus is not None:
            lines = "".join(f"echo 'GPU {i}: a'\n" for i in range(gpus))
            (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "RUN": "runs/stage2", **given}
        return subprocess.run(
            ["bash", str(FOLDER / f"{script}.sh"), *flags],
            env={name: value for name, value in environment.items() if value is not None},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    return run


def words(done):
    """The words of a recorded call."""
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_script_is_listed():
    """And every benchmark of the paper has one."""
    found = {path.stem for path in FOLDER.glob("*.sh")}
    assert found == {*SCRIPTS, UPSTREAM, "common"}
    law = {entry.id for entry in catalog.benchmarks().values() if entry.in_law}
    assert set(SCRIPTS.values()) == law | {"paper8"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_launched(call, script):
    """`law evaluate` of these tasks, with flags that it knows, on every GPU there is."""
    expected = ["--run", "runs/stage2", "--tasks", SCRIPTS[script], "--processes"]
    assert words(call(script)) == ["law", "evaluate", *expected, "1"]
    said = words(call(script, "--ocr", gpus=8))
    assert said == ["law", "evaluate", *expected, "8", "--ocr"]
    arguments = parser().parse_args(said[2:])
    assert jobs_of(arguments.tasks, False, {})


def test_inputs(call):
    """Optional ones become flags; those behind the script's name win; CKPT is RUN."""
    given = {"OUT": "my out", "RESULTS": "r.csv", "BATCH": "4", "LIMIT": "8"}
    given |= {"EVAL_PYTHON": "py", "PYTHON": "that of run.sh"}
    said = words(call("mme", "--limit", "16", RUN=None, CKPT="a checkpoint", **given))
    arguments = parser().parse_args(said[2:])
    assert (arguments.run, str(arguments.out), str(arguments.results)) == (
        "a checkpoint",
        "my out",
        "r.csv",
    )
    assert (arguments.batch_size, arguments.limit, arguments.python) == (4, 16, "py")


def test_gpus(call):
    """As many as are visible, or as asked for; on a CPU as many processes as asked for."""
    for given, expected in (
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, "2"),
        ({"GPUS": "3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "1"),
        ({"GPUS": "0", "PROCESSES_ON_CPU": "2"}, "2"),
    ):
        said = words(call("mme", gpus=8, **given))
        assert said[said.index("--processes") + 1] == expected


@pytest.mark.parametrize("script", [*SCRIPTS, UPSTREAM])
def test_missing_inputs(call, script):
    """They are named, with the usage, and nothing is launched."""
    done = call(script, RUN=None)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not set: RUN" in done.stderr
    assert f"bash scripts/v1_5/eval/{script}.sh" in done.stderr
    assert call(script, "--help").returncode == 2


def test_the_upstream_way(call):
    """lmms-eval's own command with its own class, as its users type it."""
    said = words(call(UPSTREAM, "--verbosity", "DEBUG", gpus=4, LIMIT="8"))
    assert said[:5] == ["accelerate", "launch", "--num_processes=4", "-m", "lmms_eval"]
    flags = dict(zip(said[5::2], said[6::2], strict=False))
    assert flags["--model"] == "llava"
    assert flags["--model_args"] == "pretrained=runs/stage2,conv_template=vicuna_v1"
    paper8 = ",".join(job.task for job in jobs_of(["paper8"], False, {}))
    assert sorted(flags["--tasks"].split(",")) == sorted(paper8.split(","))
    assert said[-4:] == ["--limit", "8", "--verbosity", "DEBUG"]
    said = words(call(UPSTREAM, gpus=0, CONV="llama_2", MODEL="law_llava", TASKS="mme", OUT="o"))
    assert "pretrained=runs/stage2,conv_template=llama_2,device_map=auto" in said
    assert said[-2:] == ["--device", "cpu"]
    assert {"law_llava", "mme", "o"} < set(said)


def test_no_command_on_the_path(call):
    """Says what to activate."""
    done = call("mme", PATH="/usr/bin:/bin")
    assert done.returncode == 1
    assert "no law on the PATH" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    """Lint of bash, where there is one."""
    done = subprocess.run(
        ["shellcheck", "-x", "-P", "SCRIPTDIR", *map(str, FOLDER.glob("*.sh"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
