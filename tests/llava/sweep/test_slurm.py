"""A sweep as jobs, on a Slurm of one machine (fake_slurm.py), with stand-ins for commands."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time as clock
from pathlib import Path

import pytest

from llava.results import COLUMNS
from llava.sweep import graph, run
from llava.sweep import step as step_module
from llava.sweep.asking import gpus_of, minutes, of_kind
from llava.sweep.chain import Chain
from llava.sweep.config import Launch
from llava.sweep.jobs import GoOn, StepJob
from llava.sweep.slurm import Submitter
from llava.sweep.step import Step
from llava.sweep.work import write_step

pytest.importorskip("submitit")
HERE = Path(__file__).parent
SWEEP = """
name: small
run_dir: {folder}/run
prepare:
  - {{name: world, command: "prepare {{run_dir}}/world.txt", outputs: [world.txt]}}
llm: "{{run_dir}}/llm"
representations: [clip336, dinov2]
stage1: {{data_path: captions.json, learning_rate: 1e-3}}
stage2: {{data_path: conversations.json, learning_rate: 2e-5}}
correspondence: {{data: pairs}}
alignment: {{law: nll, nll: {{}}}}
evaluation: {{tasks: [quiz]}}
launch:
  how: slurm
  gpus_per_step: {{stage1: 4}}
  slurm: {{partition: gpu, time: 1-12, python: {python}, setup: [export FAKE=1]}}
  slurm_per_step: {{c-score: {{mem_gb: 64}}, continue: {{partition: cpu}}}}
"""
CLIP, DINO = "openai/clip-vit-large-patch14-336", "facebook/dinov2-large"


def _fake():
    spec = importlib.util.spec_from_file_location("fake_slurm", HERE / "fake_slurm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _fake()


class Cluster:
    """A sweep in a folder, and the jobs that it leads to."""

    def __init__(self, folder: Path):
        self.run_dir = folder / "run"
        self.yaml = folder / "sweep.yaml"
        self.slurm = folder / "slurm"
        for name in ("captions.json", "conversations.json", "pairs/JPEGImages/1"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("[]")
        self.write(SWEEP.format(folder=folder, python=f"'{sys.executable} {HERE}/stub_job.py'"))
        self.environment = os.environ | fake.install(self.slurm)

    def write(self, text: str) -> None:
        self.yaml.write_text(text)

    def change(self, old: str, new: str) -> None:
        assert old in self.yaml.read_text()
        self.write(self.yaml.read_text().replace(old, new))

    def law_run(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, HERE / "stub_law.py", "run", self.yaml, *words],
            cwd=self.yaml.parent,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def jobs(self) -> list[dict]:
        return fake.jobs(self.slurm)

    def names(self) -> dict[str, dict]:
        """Jobs by what they do; the last of a name."""
        return {job["name"].removeprefix("small "): job for job in self.jobs()}

    def wait(self) -> None:
        """Until the chain has ended: no job waits or runs, and no new one comes."""
        self.until(lambda: all(job["state"] in fake.ENDED for job in self.jobs()))

    def until(self, true) -> None:
        deadline = clock.monotonic() + 240
        while not true():
            assert clock.monotonic() < deadline, self.said()
            clock.sleep(0.1)

    def said(self) -> str:
        """What the jobs have printed."""
        logs = [*self.run_dir.glob("slurm/*_log.*"), *self.slurm.glob("batch-*.txt")]
        return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(logs))

    def states(self) -> dict[str, str]:
        told = json.loads((self.run_dir / "summary.json").read_text())
        return {step["name"]: step["state"] for step in told["steps"]}

    def events(self, step: str) -> list[dict]:
        lines = (self.run_dir / "ledger.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["step"] == step]

    def table(self) -> list[tuple[str, ...]]:
        told = [name for name in COLUMNS if name not in ("run_dir", "commit", "date")]
        with open(self.run_dir / "results.csv", newline="") as handle:
            return [tuple(row[name] for name in told) for row in csv.DictReader(handle)]


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    while left := [job["id"] for job in made.jobs() if job["state"] not in fake.ENDED]:
        subprocess.run(["scancel", *left], env=made.environment, check=True)  # some submit more


def test_a_sweep_runs_as_jobs_to_the_same_table(cluster, tmp_path):
    first = cluster.law_run()
    assert first.returncode == 0, first.stderr
    assert "submitted: 1 job (1)" in first.stdout
    assert "job 2 goes on when they have ended" in first.stdout
    assert "`scancel 1 2` ends them" in first.stdout
    cluster.wait()
    assert set(cluster.states().values()) == {"done"}, cluster.said()
    assert {job["state"] for job in cluster.jobs()} == {"COMPLETED"}
    assert not (cluster.run_dir / "slurm" / "jobs.json").exists()
    asked_for_what_it_needs(cluster)
    waited_for_what_it_reads(cluster)
    assert [event["state"] for event in cluster.events("world")] == ["submitted", "running", "done"]
    number = len(cluster.jobs())
    again = cluster.law_run()
    assert again.returncode == 0, again.stderr
    assert len(cluster.jobs()) == number
    elsewhere = tmp_path / "elsewhere"
    cluster.change("how: slurm", "how: here")
    here = cluster.law_run("--run-dir", str(elsewhere))
    assert here.returncode == 0, here.stderr
    wanted = cluster.table()
    cluster.run_dir = elsewhere
    assert cluster.table() == wanted


def asked_for_what_it_needs(cluster) -> None:
    asked = {name: job["asked"] for name, job in cluster.names().items()}
    stage1 = asked[f"stage1 {CLIP}"]
    assert stage1["gpus-per-node"] == "4"
    assert stage1["cpus-per-task"] == "32"
    assert stage1["time"] == str(36 * 60)
    assert stage1["ntasks-per-node"] == "1"
    assert stage1["requeue"] == ""
    assert asked[f"stage2 {CLIP}"]["gpus-per-node"] == "1"
    assert asked["c-score"]["mem"] == "64GB"
    assert {name for name in asked if "gpus-per-node" not in asked[name]} == {
        "c-score", "propose 1", "propose 2", "propose 3", "report", "goes on",
    }  # fmt: skip
    assert asked["goes on"]["partition"] == "cpu"
    assert asked["goes on"]["time"] == "60"
    assert "export FAKE=1" in (cluster.slurm / "script-1.sh").read_text()


def waited_for_what_it_reads(cluster) -> None:
    jobs = cluster.names()
    assert "dependency" not in jobs["world"]["asked"]
    after = jobs[f"nll {DINO}"]["asked"]["dependency"]
    assert after == f"afterok:{jobs[f'stage1 {DINO}']['id']}"
    after = jobs["c-score"]["asked"]["dependency"]
    assert after.startswith("afterok:") and after.count(":") == 2
    goes_on = [job for job in cluster.jobs() if job["name"] == "small goes on"]
    assert goes_on[0]["asked"]["dependency"] == "afterany:1"
    assert goes_on[1]["asked"]["dependency"].count(":") == 7


@pytest.mark.slow
def test_a_failing_step_blocks_what_depends_on_it_and_is_not_tried_again(cluster):
    first = cluster.law_run(STUB_FAIL="train stage1/facebook")
    assert first.returncode == 0
    cluster.wait()
    found = cluster.states()
    assert found[f"stage1 {DINO}"] == "failed"
    assert found[f"nll {DINO}"] == "blocked"
    assert found[f"evaluate {CLIP}"] == found["report"] == "done"
    names = [job["name"] for job in cluster.jobs()]
    assert names.count(f"small stage1 {DINO}") == 1
    jobs = cluster.names()
    assert jobs[f"stage1 {DINO}"]["state"] == "FAILED"
    assert jobs[f"nll {DINO}"]["state"] == "CANCELLED"
    assert jobs["goes on"]["state"] == "FAILED"
    assert "the stub was told to fail" in cluster.said()
    number = len(names)
    assert cluster.law_run().returncode == 0
    cluster.wait()
    assert set(cluster.states().values()) == {"done"}
    assert cluster.names()["goes on"]["state"] == "COMPLETED"
    again = {job["name"].removeprefix("small ").split()[0] for job in cluster.jobs()[number:]}
    assert "features" not in again and "c-score" not in again


def test_a_run_is_refused_while_its_jobs_run(cluster):
    assert cluster.law_run(STUB_SLEEP="60").returncode == 0
    cluster.until(lambda: cluster.run_dir.joinpath("steps/world/stdout.txt").exists())
    second = cluster.law_run()
    assert second.returncode == 1
    assert "jobs of an earlier `law run` wait or run: 1 (world: RUNNING)" in second.stderr
    assert "`squeue --jobs 1,2` shows them, `scancel 1 2` ends them" in second.stderr
    subprocess.run(["scancel", "1", "2"], env=cluster.environment, check=True)
    cluster.change("how: slurm", "how: here")
    runs = []

    def goes_on():  # a job that was told to end may still be about it
        runs.append(cluster.law_run())
        return "jobs of an earlier" not in runs[-1].stderr

    cluster.until(goes_on)
    assert runs[-1].returncode == 0, runs[-1].stderr
    states = [event["state"] for event in cluster.events("world")]
    assert {"lost", "failed"} & set(states)
    assert states[-1] == "done"


def test_a_preempted_step_is_queued_again_and_goes_on(cluster):
    assert cluster.law_run(STUB_SLEEP="5").returncode == 0
    cluster.until(lambda: cluster.run_dir.joinpath("steps/world/stdout.txt").exists())
    send = ["scancel", "1", "--signal", "USR2"]
    subprocess.run(send, env=cluster.environment, check=True)
    cluster.until(lambda: cluster.names()["world"]["state"] == "COMPLETED")
    told = [event["state"] for event in cluster.events("world")]
    # the signal may reach the step before it reaches who would write `lost`
    assert told.pop(2) in ("lost", "failed")
    assert told == ["submitted", "running", "running", "done"]
    assert {event["job"] for event in cluster.events("world") if "job" in event} == {"1"}


def test_a_step_that_is_told_to_end_leaves_the_last_word_to_slurm(cluster):
    """SIGTERM comes first where a partition preempts; a job that failed then would be over."""
    log = cluster.yaml.with_name("commands.txt")
    assert cluster.law_run(STUB_SLEEP="8", STUB_LOG=str(log)).returncode == 0
    cluster.until(log.exists)
    send = ["scancel", "1", "--signal", "TERM"]
    subprocess.run(send, env=cluster.environment, check=True)
    cluster.until(lambda: cluster.events("world")[-1]["state"] == "failed")
    assert "killed by SIGTERM" in cluster.events("world")[-1]["error"]
    assert cluster.names()["world"]["state"] == "RUNNING"
    requeue = ["scontrol", "requeue", "1", "now"]
    subprocess.run(requeue, env=cluster.environment, check=True)
    cluster.until(lambda: cluster.names()["world"]["state"] == "COMPLETED")
    assert [event["state"] for event in cluster.events("world")][-2:] == ["running", "done"]


def test_a_job_that_died_without_a_word_is_told(cluster):
    assert cluster.law_run(STUB_SLEEP="60").returncode == 0
    cluster.until(lambda: cluster.run_dir.joinpath("steps/world/stdout.txt").exists())
    fake.kill_all(cluster.names()["world"]["tasks"])
    cluster.until(lambda: cluster.run_dir.joinpath("report.html").exists() or "failed" in
                  cluster.states().values())  # fmt: skip
    assert cluster.states()["world"] == "failed"
    told = json.loads((cluster.run_dir / "summary.json").read_text())["steps"][0]
    assert told["error"] == "its job 1 ended: FAILED"


def test_a_job_that_slurm_refuses_takes_the_others_with_it(cluster):
    cluster.change("prepare:", "prepare:\n  - {name: first, command: prepare a}")
    failed = cluster.law_run(FAKE_REFUSE="world", STUB_SLEEP="30")
    assert failed.returncode == 1
    assert "Slurm takes no job for world, so that all are cancelled: sbatch:" in failed.stderr
    assert "QOS policy; where too many are in the queue, set launch.slurm.most" in failed.stderr
    assert [job["state"] for job in cluster.jobs()] == ["CANCELLED"]


def test_no_more_jobs_than_may_be_in_the_queue(cluster):
    """What is left is submitted by the job that goes on, before the next stage."""
    steps = "".join(f"  - {{name: s{n}, command: prepare {n}, after: []}}\n" for n in range(3))
    cluster.change("prepare:\n", f"prepare:\n{steps}")
    cluster.change("partition: gpu", "most_jobs: 3")
    first = cluster.law_run(STUB_FAIL="features")
    assert "submitted: 3 jobs (1, 2, 3)" in first.stdout, first.stderr
    assert cluster.states()["world"] == "waiting"
    cluster.until(lambda: "world" in cluster.names())
    assert cluster.names()["world"]["id"] == "5"
    assert cluster.names()["goes on"]["asked"]["dependency"] in ("afterany:1:2:3", "afterany:5")


def test_without_slurm_or_submitit_it_says_what_to_type(cluster, monkeypatch):
    cluster.environment["PATH"] = os.environ["PATH"]
    failed = cluster.law_run()
    assert failed.returncode == 1
    assert "no sbatch, srun, sacct, scancel is on the PATH; type this on a login" in failed.stderr
    from llava.errors import MissingPackageError
    from llava.sweep import chain

    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingPackageError, match="pip install 'submitit"):
        chain.submitit()


def test_a_step_on_two_nodes(cluster, monkeypatch, tmp_path):
    """Both are this machine: torchrun starts two processes on each, the first keeps the ledger."""
    here(cluster, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "ranks.py").write_text(
        "import os, pathlib\n"
        f"pathlib.Path({str(cluster.run_dir)!r}, 'rank' + os.environ['RANK']).write_text('')\n"
    )
    step = Step("two", "stage1", ("-m", "ranks"), outputs=("rank*",), processes=4)
    write_step(cluster.run_dir / "steps" / "two", step, "")
    asked = of_kind(Launch(slurm_per_step={"stage1": {"nodes": 2}}), "stage1", 4)
    assert asked["gpus_per_node"] == gpus_of(asked, 4) == 2
    work = StepJob(cluster.run_dir, "two", (), gpus_of(asked, 4), 2, "torchrun")
    Submitter("small", Chain(cluster.run_dir)).submit(work, "two", asked, None)
    cluster.wait()
    assert cluster.names()["two"]["state"] == "COMPLETED", cluster.said()
    assert sorted(path.name for path in cluster.run_dir.glob("rank*")) == [
        "rank0", "rank1", "rank2", "rank3",
    ]  # fmt: skip
    assert [event["state"] for event in cluster.events("two")] == ["running", "done"]
    assert "kill-on-bad-exit" in cluster.names()["two"]["srun"]


def test_what_a_killed_submission_has_submitted_is_not_submitted_twice(cluster, monkeypatch):
    cluster.environment["FAKE_HOLD"] = "goes on"
    assert cluster.law_run().returncode == 0
    cluster.until(lambda: cluster.names()["world"]["state"] == "COMPLETED")
    here(cluster, monkeypatch)
    monkeypatch.setenv("FAKE_HOLD", "small")
    script = cluster.slurm / "killed.sh"
    script.write_text("#SBATCH --job-name='small killed'\n")
    subprocess.run(["sbatch", script], check=True)
    Chain(cluster.run_dir).add("3", f"features {CLIP}")
    run.go_on(cluster.run_dir, None, False, frozenset("1"))
    jobs = cluster.names()
    assert f"features {CLIP}" not in jobs
    assert jobs["c-score"]["asked"]["dependency"] == f"afterok:{jobs[f'features {DINO}']['id']}:3"
    last = cluster.jobs()[-1]
    assert last["name"] == "small goes on"
    assert last["asked"]["dependency"].startswith("afterany:3:")
    # and the job that handed over does nothing more when it is queued again
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    GoOn(cluster.run_dir, None, False, ("1",), begin=None)()


def here(cluster, monkeypatch) -> None:
    """This process sees the cluster, and `law` in steps is stub_law.py."""
    for name in ("PATH", "FAKE_SLURM", "FAKE_SLOTS"):
        monkeypatch.setenv(name, cluster.environment[name])
    monkeypatch.chdir(cluster.yaml.parent)
    for module in (graph, step_module):
        monkeypatch.setattr(module, "law", lambda *words: (str(HERE / "stub_law.py"), *words))


@pytest.mark.parametrize(
    ("time", "wanted"),
    [(90, 90), ("90:01", 91), ("1:30:00", 90), ("1-6", 1800), ("1-6:30", 1830), ("0-0:0:59", 1)],
)
def test_times_are_those_of_slurm(time, wanted):
    assert minutes(time) == wanted


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [({}, 8), ({"gpus_per_node": 0}, 0), ({"gres": "gpu:a100:8"}, 8), ({"gpus_per_node": 4}, 4)],
)
def test_gpus_are_asked_for_as_the_yaml_says(asked, gpus):
    made = of_kind(Launch(slurm=asked), "stage2", 8)
    assert gpus_of(made, 8) == gpus
    assert made.get("gpus_per_node") == (None if "gres" in asked or not gpus else gpus)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("c-score: {", "stage_1: {", "unknown kind of step 'stage_1'; did you mean 'stage1'"),
        ("partition: gpu", "partitions: gpu", "launch.slurm: Unknown argument 'partitions'"),
        ("partition: gpu", "dependency: x", "dependency is for the sweep to say"),
        ("partition: gpu", "most_jobs: 0", "most_jobs: expected 1 or more, got 0"),
        ("1-12", "one day", "time: one day; expected minutes"),
        ("c-score: {", "stage1: {nodes: 3, ", "is 4, all nodes together; expected a multiple of 3"),
        ("c-score: {", "evaluate: {nodes: 2, ", "nodes: 2 for evaluate, which runs on one"),
    ],
)
def test_what_slurm_cannot_be_asked_is_refused_before_a_job(cluster, old, new, message):
    cluster.change(old, new)
    failed = cluster.law_run()
    assert failed.returncode == 2
    assert message in failed.stderr
    assert cluster.jobs() == []
