"""One step in its own process: its command, its environment, what it left and what it cost."""

import contextlib
import itertools
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from llava.errors import LawError
from llava.exits import PEAK_VARIABLE
from llava.files import read_json, write_json
from llava.log import get_logger
from llava.sweep.fingerprint import same_folder
from llava.sweep.launchers import Nodes, words
from llava.sweep.ledger import Entry, Ledger
from llava.sweep.left import judged
from llava.sweep.processes import MARK, kill_tree
from llava.sweep.relay import relay
from llava.sweep.said import why
from llava.sweep.step import Step

logger = get_logger("run")

ALIVE = "alive.txt"
"""Touched while a step runs, so that its time is known where its end is not seen."""
BEAT = 5.0
"""Seconds between two touches."""


@dataclass(frozen=True)
class _End:
    """How a process ended: exit code, what it used, why it failed."""

    code: int
    usage: resource.struct_rusage
    error: str


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
        """Runs a step and writes its end into the ledger; the ledger's state is the answer.

        Once it is stopped nothing is begun or written; the next run counts what it took.
        """
        facts = {"fingerprint": fingerprint, "gpus": len(gpus) * self.nodes.count}
        if self.job:
            facts["job"] = self.job
        with self._lock:
            if self._stopped:
                return
            node = os.uname().nodename
            ledger.append(step.name, "running", **facts, host=node, pid=os.getpid())
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        if step.rows:
            (self.run_dir / step.rows).unlink(missing_ok=True)  # else a second try doubles its rows
        for peak in folder.glob("peak*"):
            peak.unlink()
        start = time.monotonic()
        end = self._process(step, folder, gpus)
        if end is None:
            return
        seconds = time.monotonic() - start
        error, outputs = judged(step, self.run_dir, end.error)
        with self._lock:
            if self._stopped:
                return
            ledger.append(
                step.name,
                "failed" if error else "done",
                **facts,
                seconds=round(seconds, 3),
                cpu_seconds=round(end.usage.ru_utime + end.usage.ru_stime, 3),
                gpu_hours=round(seconds * facts["gpus"] / 3600, 6),
                peak_memory=end.usage.ru_maxrss * 1024,
                peak_gpu_memory=_peak_gpu(folder),
                exit_code=end.code,
                error=error,
                outputs={name: state.plain() for name, state in outputs.items()},
            )

    def follow(self, step: Step, gpus: Sequence[str]) -> None:
        """Runs this node's part of a step whose first node keeps the ledger.

        Raises LawError where it failed.
        """
        folder = self.folder(step) / f"node{self.nodes.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        end = self._process(step, folder, gpus)
        error = end.error if end else "stopped"
        if error:
            raise LawError(f"{step.name}, node {self.nodes.rank}: {error}")

    def folder(self, step: Step) -> Path:
        """Where a step's log and output are kept."""
        return self.run_dir / "steps" / step.slug

    def stop(self) -> None:
        """Kills every step that runs, with the processes that it has started; none begins after."""
        with self._lock:
            self._stopped = True
            for pid in self.running:
                kill_tree(pid)

    def _process(self, step: Step, folder: Path, gpus: Sequence[str]) -> _End | None:
        """Runs the step's process to its end; None where all is stopped before it begins."""
        command = [sys.executable, *words(step, self.launcher, self.nodes)]
        with contextlib.ExitStack() as stack:
            copy = stack.enter_context(open(folder / "stdout.txt", "wb"))
            log = None if self.shown else stack.enter_context(open(folder / "log.txt", "ab"))
            since = log.tell() if log else 0  # what stands before it is an earlier attempt's
            with self._lock:  # `stop` sees either that it runs, or that it will not
                if self._stopped:
                    return None
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if self.shown else copy,
                    stderr=log,
                    env=self._environment(folder, gpus),
                )
                self.running[process.pid] = process
            if process.stdout:
                stack.enter_context(process.stdout)
            try:
                with _beating(folder):
                    if self.shown:
                        relay(process, copy)
                    _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                kill_tree(process.pid)
                process.wait()
                raise
            finally:
                with self._lock:
                    del self.running[process.pid]
            code = process.returncode = os.waitstatus_to_exitcode(status)
        return _End(code, usage, why(code, None if self.shown else folder / "log.txt", since))

    def _environment(self, folder: Path, gpus: Sequence[str]) -> dict[str, str]:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        environment[MARK] = str(self.run_dir.resolve())
        environment[PEAK_VARIABLE] = str((folder / "peak").resolve())
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return environment


@contextlib.contextmanager
def _beating(folder: Path) -> Iterator[None]:
    """Touches a file of the folder every few seconds."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                (folder / ALIVE).touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _peak_gpu(folder: Path) -> int | None:
    """The largest peak that a process of the step wrote, bytes."""
    peaks = []
    for path in folder.glob("peak*"):
        with contextlib.suppress(OSError, ValueError):
            peaks.append(int(path.read_text()))
    return max(peaks, default=None)


def seconds_seen(folder: Path, began: str) -> float:
    """Of an attempt whose end nobody saw: until it was last seen to run, or to write."""
    written = [path.stat().st_mtime for path in folder.glob("*.txt")]
    seconds = max(written, default=0.0) - datetime.fromisoformat(began).timestamp()
    return round(max(0.0, seconds), 3)


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
