"""One step in its own process: its command, its environment, what it left and what it cost."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from llava.errors import LawError
from llava.exits import PEAK_VARIABLE
from llava.files import read_json, write_json
from llava.log import get_logger
from llava.sweep.digests import FileState, states_of
from llava.sweep.fingerprint import same_folder
from llava.sweep.launchers import Nodes, words
from llava.sweep.ledger import Entry, Ledger
from llava.sweep.step import Step
from llava.sweep.table import check_rows

logger = get_logger("run")

MARK = "LAW_STEP"
"""Environment variable of a step's processes: the run folder that they work in."""
TAIL = 4096
"""Bytes of a step's log in which its error is looked for."""


@dataclass
class Work:
    """How steps are run in this process.

    Attributes:
        run_dir: of the run.
        threads: of a step's process, unless OMP_NUM_THREADS says otherwise.
        launcher: what starts a step of several processes.
        shown: whether a step's output goes to ours, too.
        nodes: that share each step.
        job: of a cluster, that this process is part of.
    """

    run_dir: Path
    threads: int
    launcher: str = "torchrun"
    shown: bool = False
    nodes: Nodes = field(default_factory=Nodes)
    job: str = ""
    running: dict[int, subprocess.Popen] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def do(self, step: Step, fingerprint: str, ledger: Ledger, gpus: Sequence[str]) -> None:
        """Runs a step and writes its end into the ledger; the ledger's state is the answer."""
        with self._lock:
            ledger.append(
                step.name,
                "running",
                fingerprint=fingerprint,
                processes=step.processes,
                host=os.uname().nodename,
                pid=os.getpid(),
                **({"job": self.job} if self.job else {}),
            )
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        if step.rows:
            (self.run_dir / step.rows).unlink(missing_ok=True)  # else a second try doubles its rows
        for peak in folder.glob("peak*"):
            peak.unlink()
        start = time.monotonic()
        code, usage = self._process(step, folder, gpus)
        seconds = time.monotonic() - start
        error, outputs = _judge(step, self.run_dir, folder, code)
        with self._lock:
            if self._stopped:
                return  # whoever stopped it is gone; the next run counts what it took
            ledger.append(
                step.name,
                "failed" if error else "done",
                seconds=round(seconds, 3),
                cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
                gpu_hours=round(seconds * len(gpus) * self.nodes.count / 3600, 6),
                peak_memory=usage.ru_maxrss * 1024,
                peak_gpu_memory=_peak_gpu(folder),
                exit_code=code,
                error=error,
                outputs={name: state.plain() for name, state in outputs.items()},
            )

    def follow(self, step: Step, gpus: Sequence[str]) -> None:
        """Runs this node's part of a step whose first node keeps the ledger.

        Raises LawError where it failed.
        """
        folder = self.folder(step) / f"node{self.nodes.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        code, _ = self._process(step, folder, gpus)
        if code:
            raise LawError(f"{step.name}, node {self.nodes.rank}: {_error(folder, code)}")

    def folder(self, step: Step) -> Path:
        """Where a step's log and output are kept."""
        return self.run_dir / "steps" / step.slug

    def stop(self) -> None:
        """Kills every step that runs, with the processes that it has started."""
        with self._lock:
            self._stopped = True
            for process in self.running.values():
                kill_tree(process.pid)

    def _process(self, step: Step, folder: Path, gpus: Sequence[str]):
        """(exit code, resource usage) of the step's process."""
        command = [sys.executable, *words(step, self.launcher, self.nodes)]
        with contextlib.ExitStack() as stack:
            copy = stack.enter_context(open(folder / "stdout.txt", "wb"))
            log = None if self.shown else stack.enter_context(open(folder / "log.txt", "ab"))
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.shown else copy,
                stderr=log,
                env=self._environment(folder, gpus),
            )
            self.running[process.pid] = process
            try:
                if self.shown:
                    for line in process.stdout:
                        copy.write(line)
                        sys.stdout.write(line.decode("utf-8", "replace"))
                    sys.stdout.flush()
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                self.running.pop(process.pid, None)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.stdout:
                process.stdout.close()
        return process.returncode, usage

    def _environment(self, folder: Path, gpus: Sequence[str]) -> dict[str, str]:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        environment[MARK] = str(self.run_dir.resolve())
        environment[PEAK_VARIABLE] = str((folder / "peak").resolve())
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return environment


def _judge(step: Step, run_dir: Path, folder: Path, code: int) -> tuple[str, dict[str, FileState]]:
    """(why it failed, or nothing; what it left)."""
    if code:
        return _error(folder, code), {}
    try:
        names = outputs(step, run_dir)
        if step.rows:
            check_rows(run_dir / step.rows, step.measures)
        return "", states_of(run_dir, names)
    except (LawError, OSError) as error:
        return str(error), {}


def outputs(step: Step, run_dir: Path) -> list[str]:
    """Every output of a step that has run; LawError naming those that are not there."""
    found: list[str] = []
    missing = []
    for pattern in step.outputs:
        paths = sorted(p for p in run_dir.glob(pattern) if p.is_file())
        found += [str(path.relative_to(run_dir)) for path in paths]
        if not paths:
            missing.append(str(run_dir / pattern))
    if missing:
        raise LawError(f"it left no {', '.join(missing)}")
    if step.listing:
        for named in read_json(run_dir / step.listing).get("folders", []):
            inside = Path(os.path.relpath(named, run_dir))
            found += [str(inside / path.name) for path in Path(named).iterdir() if path.is_file()]
    return found


def _error(folder: Path, code: int) -> str:
    """Why a command failed: its own last words where they are kept."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; the machine may have been out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {name}{memory}"
    try:
        with open(folder / "log.txt", "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - TAIL))
            lines = handle.read().decode("utf-8", "replace").strip().splitlines()
    except FileNotFoundError:  # it went to our own stderr
        return f"exit code {code}; what it printed stands above"
    told = [line for line in lines if "error:" in line.lower()] or lines or ["it said nothing"]
    return f"exit code {code}: {told[-1].strip()} ({folder / 'log.txt'})"


def _peak_gpu(folder: Path) -> int | None:
    """The largest peak that a process of the step wrote, bytes."""
    peaks = []
    for path in folder.glob("peak*"):
        with contextlib.suppress(OSError, ValueError):
            peaks.append(int(path.read_text()))
    return max(peaks, default=None)


def seconds_seen(folder: Path, began: str) -> float:
    """Of an attempt whose end nobody saw: until its log was last written to."""
    written = [path.stat().st_mtime for path in folder.glob("*.txt")]
    seconds = max(written, default=0.0) - datetime.fromisoformat(began).timestamp()
    return round(max(0.0, seconds), 3)


def kill_tree(pid: int) -> None:
    """Kills a process and all that it has started."""
    import psutil

    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_orphans(run_dir: Path) -> list[int]:
    """Kills steps of this folder whose run was killed; they would write beside the new ones.

    Returns their process ids. Only processes of this machine and user are seen.
    """
    import psutil

    here = str(run_dir.resolve())
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in own and process.environ().get(MARK) == here:
                orphans.append(process)
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(orphans, timeout=30)
    return [process.pid for process in orphans]


def clear_the_way(run_dir: Path, step: Step, entry: Entry, fingerprint: str) -> None:
    """What stands in the step's folder is gone on with, or is moved out of its way.

    `entry` is what the ledger knows of its last attempt, `fingerprint` what it is now.
    """
    if not step.folder:
        return
    if not entry.state:
        set_aside(run_dir, step.folder, "", "the ledger does not know it")
    elif not same_folder(entry.fingerprint, fingerprint):
        set_aside(run_dir, step.folder, entry.fingerprint, "it was made of something else")
    elif not step.resumes and fingerprint in entry.done:
        set_aside(run_dir, step.folder, "", "it is no longer whole")
    elif not step.resumes:
        shutil.rmtree(run_dir / step.folder, ignore_errors=True)


def set_aside(run_dir: Path, folder: str, fingerprint: str, why: str) -> None:
    """Moves a step's folder to `set-aside`, where nothing reads it; nothing is deleted.

    Under its `fingerprint` it is found again (`bring_back`); without one it is not.
    """
    place = run_dir / folder
    if not place.exists():
        return
    first = _aside(run_dir, folder, fingerprint)
    others = (first.with_name(f"{first.name}.{number}") for number in itertools.count(1))
    free = itertools.chain([first] if fingerprint else [], others)
    target = next(path for path in free if not path.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(place, target)
    logger.warning("%s is set aside as %s: %s", place, target, why)


def bring_back(run_dir: Path, step: Step, entry: Entry, fingerprint: str) -> bool:
    """Puts the folder that the step left under this fingerprint back in its place, if it is there.

    What stands there now is set aside in its turn. Without a folder of its own, whether what it
    left may still be there.
    """
    if not step.folder or same_folder(entry.fingerprint, fingerprint):
        return not step.folder
    kept = _aside(run_dir, step.folder, fingerprint)
    if not kept.is_dir():
        return False
    set_aside(run_dir, step.folder, entry.fingerprint, "it was made of something else")
    shutil.move(kept, run_dir / step.folder)
    logger.info("%s is back: it was made of just this", run_dir / step.folder)
    return True


def _aside(run_dir: Path, folder: str, fingerprint: str) -> Path:
    end = f".{fingerprint[:12]}" if fingerprint else ""
    return run_dir / "set-aside" / (folder.replace("/", "--") + end)


def write_step(folder: Path, step: Step, fingerprint: str) -> None:
    """Keeps what a step is beside its log, for a job of a cluster and for people."""
    write_json(folder / "step.json", {"fingerprint": fingerprint, **vars(step)})


def read_step(folder: Path) -> tuple[Step, str]:
    """(step, fingerprint) that `write_step` kept."""
    facts = read_json(folder / "step.json")
    fingerprint = facts.pop("fingerprint")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Step(**tuples), fingerprint
