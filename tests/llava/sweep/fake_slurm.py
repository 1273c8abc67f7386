"""A Slurm of one machine for tests: sbatch, srun, sacct, scancel and scontrol over files.

`install(folder)` writes the commands. Jobs are processes that wait for their dependencies, as
`afterok` and `afterany` mean them, and for one of `FAKE_SLOTS` slots. GPUs, memory and time are
written down and ignored. `FAKE_REFUSE` holds a word of the names of jobs that sbatch refuses,
`FAKE_HOLD` of those that never begin.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def install(folder: Path) -> dict[str, str]:
    """The commands in a folder; returns the environment that finds them."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    for name in COMMANDS:
        path = binaries / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return {
        "FAKE_SLURM": str(folder),
        "FAKE_SLOTS": "3",
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }


def jobs(folder: Path) -> list[dict]:
    """All jobs, by id."""
    return [json.loads(p.read_text()) for p in sorted(folder.glob("job-*.json"), key=_number)]


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def home() -> Path:
    return Path(os.environ["FAKE_SLURM"])


@contextmanager
def locked():
    with open(home() / "lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def load(job: str) -> dict:
    return json.loads((home() / f"job-{job}.json").read_text())


def change(job: str, **told) -> dict:
    """Call it with the lock held."""
    path = home() / f"job-{job}.json"
    now = (json.loads(path.read_text()) if path.exists() else {}) | told
    path.with_suffix(".tmp").write_text(json.dumps(now))
    path.with_suffix(".tmp").replace(path)
    return now


def sbatch(words: list[str]) -> None:
    script = Path(words[-1]).read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    asked = {name: text.strip("'") for name, text in asked.items()}
    refused = os.environ.get("FAKE_REFUSE")
    if refused and refused in asked["job-name"]:
        sys.exit("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    with locked():
        job = str(len(list(home().glob("job-*.json"))) + 1)
        (home() / f"script-{job}.sh").write_text(script)
        change(job, id=job, name=asked["job-name"], asked=asked, state="PENDING", tasks=[])
    subprocess.Popen(
        [sys.executable, "-S", __file__, "batch", job],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f"Submitted batch job {job}")


def batch(words: list[str]) -> None:
    """The life of a job, in the background."""
    job = words[0]
    while not may_begin(job):
        time.sleep(0.05)
    if load(job)["state"] in ENDED:
        return
    asked = load(job)["asked"]
    environment = {
        **os.environ,
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": asked.get("nodes", "1"),
        "SLURM_NTASKS": asked.get("nodes", "1"),
        "SLURM_JOB_NODELIST": ",".join(["localhost"] * int(asked.get("nodes", "1"))),
    }
    with open(home() / f"batch-{job}.txt", "a") as out:
        process = subprocess.Popen(
            ["bash", home() / f"script-{job}.sh"], env=environment, stdout=out, stderr=out
        )
        code = process.wait()
    with locked():
        if load(job).get("requeued"):
            change(job, state="PENDING", requeued=False, tasks=[])
        elif load(job)["state"] not in ENDED:
            change(job, state="FAILED" if code else "COMPLETED")
    if load(job)["state"] == "PENDING":
        batch(words)


def may_begin(job: str) -> bool:
    """Whether it runs, or has ended without having run."""
    with locked():
        here = load(job)
        if here["state"] in ENDED:
            return True
        kind, *others = here["asked"].get("dependency", "none").split(":")
        states = [load(other)["state"] for other in others]
        if kind == "afterok" and any(s in ENDED and s != "COMPLETED" for s in states):
            assert here["asked"]["kill-on-invalid-dep"] == "yes"
            change(job, state="CANCELLED")
            return True
        running = [one for one in jobs(home()) if one["state"] == "RUNNING"]
        held = os.environ.get("FAKE_HOLD")
        if held and held in here["name"]:
            return False
        if any(s not in ENDED for s in states) or len(running) >= int(os.environ["FAKE_SLOTS"]):
            return False
        change(job, state="RUNNING")
        return True


def srun(words: list[str]) -> None:
    """The tasks of a job, one for each of its nodes."""
    flags = {}
    words = list(words)
    while words[0].startswith("--"):
        name, _, text = words.pop(0)[2:].partition("=")
        flags[name] = text or (words.pop(0) if name in ("output", "error") else "")
    job = os.environ["SLURM_JOB_ID"]
    tasks = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        names = {"%j": job, "%t": str(rank)}
        paths = [flags["output"], flags["error"]]
        for old, new in names.items():
            paths = [path.replace(old, new) for path in paths]
        with open(paths[0], "a") as out, open(paths[1], "a") as error:
            environment = os.environ | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}
            tasks.append(subprocess.Popen(words, env=environment, stdout=out, stderr=error))
    with locked():
        change(job, tasks=[task.pid for task in tasks], srun=flags)
    sys.exit(max(abs(task.wait()) for task in tasks))


def sacct(words: list[str]) -> None:
    asked = [words[i + 1] for i, word in enumerate(words) if word == "-j"]
    print("JobID|State|NodeList")
    for job in asked:
        with suppress(FileNotFoundError):
            print(f"{job}|{load(job)['state']}|localhost")


def scancel(words: list[str]) -> None:
    """Ends jobs, or sends a signal to the tasks of one, and to what they have started."""
    if "--signal" in words:
        job, _, name = words
        kill_all(load(job)["tasks"], getattr(signal, f"SIG{name}"))
        return
    for job in words:
        with locked():
            tasks = load(job)["tasks"]
            if load(job)["state"] not in ENDED:
                change(job, state="CANCELLED")
        kill_all(tasks)


def scontrol(words: list[str]) -> None:
    """`requeue`, whose job ends by itself, or is preempted: `requeue JOB now`."""
    with locked():
        tasks = change(words[1], requeued=True)["tasks"]
    if words[2:]:
        kill_all(tasks)


def kill_all(pids: list[int], number: int = signal.SIGKILL) -> None:
    """A signal for processes and what they have started."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            threads = Path(f"/proc/{pid}/task").glob("*/children")  # each may have started some
            children = [int(child) for path in threads for child in path.read_text().split()]
            kill_all(children, number)
            os.kill(pid, number)


if __name__ == "__main__":
    {f.__name__: f for f in (sbatch, batch, srun, sacct, scancel, scontrol)}[sys.argv[1]](
        sys.argv[2:]
    )
