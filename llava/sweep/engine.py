"""Goes through a run's graph: what is done is kept, what can be run is run, the rest is said."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from llava.errors import LawError
from llava.log import get_logger
from llava.sweep.config import Launch, SweepConfig
from llava.sweep.devices import visible_gpus
from llava.sweep.digests import compare
from llava.sweep.fingerprint import fingerprint
from llava.sweep.graph import TABLE, Sweep
from llava.sweep.ledger import Ledger
from llava.sweep.plan import RunConfig
from llava.sweep.standing import Standing, counted
from llava.sweep.step import Step, file_name, listed_steps
from llava.sweep.table import compose
from llava.sweep.work import Work, kill_orphans, set_aside, write_step

logger = get_logger("run")

WITHOUT_GPU = ("c-score", "cosine", "propose", "report")
SUMMARY_SECONDS = 5.0
"""Between two writings of the summary while steps run."""


class Engine:
    """A run in its folder; `standing` says how far it is."""

    def __init__(self, config: RunConfig | SweepConfig, source: Path | None, thorough: bool):
        self.run_dir = config.run_dir
        self.thorough = thorough
        self.launch = config.launch if isinstance(config, SweepConfig) else Launch()
        self.ledger = Ledger(self.run_dir)
        self.standing = Standing(config.name, self.run_dir, source, self.ledger)
        self.work = Work(
            self.run_dir,
            threads=max(1, (os.cpu_count() or 1) // self.launch.at_once),
            launcher=self.launch.launcher,
            shown=isinstance(config, RunConfig),
        )
        self._fingerprints: dict[str, str] = {}
        self._free = visible_gpus(self.launch.gpus)
        self._gpus = len(self._free)
        self._said = 0.0
        self._sweep: Sweep | None = None
        if isinstance(config, SweepConfig):
            self._sweep = Sweep(config, self.standing.is_done)
            self._stages: Iterable[list[Step]] = self._sweep.stages()
        else:
            self._stages = [listed_steps(config.steps)]

    def run(self) -> None:
        """Until nothing more can be run."""
        self._settle_the_past()
        finished = False
        try:
            with _ending_on_sigterm(), ThreadPoolExecutor(self.launch.at_once) as pool:
                try:
                    for stage in self._stages:
                        self._take(stage, pool)
                except BaseException:
                    self.work.stop()
                    raise
            finished = not self.standing.failures()
        finally:
            self._write(finished)

    def _take(self, stage: list[Step], pool: ThreadPoolExecutor) -> None:
        """Runs a stage until all its steps have come to an end."""
        for step in stage:
            self._check_gpus(step)
            self.standing.add(step)
            if step.left_out:
                logger.warning("step %s is left out: %s", step.name, step.left_out)
        waiting = [step for step in stage if not step.left_out]
        running: dict[Future, tuple[Step, list[str]]] = {}
        while waiting or running:
            waiting = [step for step in waiting if not self._settled(step, stage)]
            for step in list(waiting):
                gpus = self._room(step, len(running))
                if gpus is not None and self._ready(step):
                    waiting.remove(step)
                    self._free = [gpu for gpu in self._free if gpu not in gpus]
                    running[self._start(step, gpus, pool)] = (step, gpus)
            if running:
                self._write_now_and_then()
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    step, gpus = running.pop(future)
                    self._free = sorted([*self._free, *gpus])
                    future.result()
                    self._end(step)
        self._write()

    # what is to be done ------------------------------------------------------------------------

    def _settled(self, step: Step, stage: list[Step]) -> bool:
        """Whether a waiting step has come to an end without being run; its state is then set."""
        for name in step.after:
            state, why = self.standing.states[name], self.standing.why[name]
            if state == "left out":
                self.standing.put(step.name, "left out", f"{name} is left out")
                return True
            if state in ("failed", "blocked"):
                cause = why if state == "blocked" else f"{name} has failed"
                self.standing.put(step.name, "blocked", cause)
                return True
        if not self._ready(step) or not self._up_to_date(step, stage):
            return False
        self.standing.put(step.name, "done")
        return True

    def _ready(self, step: Step) -> bool:
        return all(map(self.standing.is_done, step.after)) and all(
            map(self.standing.ended, step.settled)
        )

    def _fingerprint(self, step: Step) -> str:
        """Of a step whose predecessors' are known."""
        if step.name not in self._fingerprints:
            done = [name for name in step.settled if self.standing.is_done(name)]
            before = [self._fingerprints[name] for name in (*step.after, *done)]
            self._fingerprints[step.name] = fingerprint(step, self.run_dir, before)
        return self._fingerprints[step.name]

    def _up_to_date(self, step: Step, stage: list[Step]) -> bool:
        """Whether the step was done before, and what it left is as it was."""
        if not self._was_done(step):
            return False
        damage = compare(self.run_dir, self.ledger.entry(step.name).outputs, self.thorough)
        if not damage:
            return True
        if step.disposable and set(damage.values()) == {"missing"}:
            return all(self._was_done(other) for other in stage if step.name in other.after)
        shown = ", ".join(f"{name} is {how}" for name, how in list(damage.items())[:3])
        logger.warning("%s is done again: %s", step.name, shown)
        if step.folder and "changed" in damage.values():
            set_aside(self.run_dir, step.folder, "it was damaged")
        return False

    def _was_done(self, step: Step) -> bool:
        entry = self.ledger.entry(step.name)
        return entry.state == "done" and entry.fingerprint == self._fingerprint(step)

    # doing it ----------------------------------------------------------------------------------

    def _start(self, step: Step, gpus: list[str], pool: ThreadPoolExecutor) -> Future:
        self._clear_the_way(step)
        if step.table:
            self._compose(self.run_dir / step.table, step.settled)
        self.standing.put(step.name, "running")
        if step.kind == "report":
            self._write()
        write_step(self.work.folder(step), step, self._fingerprint(step))
        number = sum(map(self.standing.ended, self.standing.steps)) + 1
        logger.info("%s: begins (%d of %d)", step.name, number, len(self.standing.steps))
        return pool.submit(self.work.do, step, self._fingerprint(step), self.ledger, gpus)

    def _clear_the_way(self, step: Step) -> None:
        """What stands in the step's folder is gone on with, or is moved out of its way."""
        if not step.folder:
            return
        entry = self.ledger.entry(step.name)
        if not entry.state:
            set_aside(self.run_dir, step.folder, "the ledger does not know it")
        elif entry.fingerprint != self._fingerprint(step):
            set_aside(self.run_dir, step.folder, "it was made of something else")
        elif not step.resumes:
            shutil.rmtree(self.run_dir / step.folder, ignore_errors=True)

    def _end(self, step: Step) -> None:
        entry = self.ledger.entry(step.name)
        self.standing.put(step.name, entry.state, entry.error)
        if entry.state == "failed":
            logger.error("%s failed: %s", step.name, entry.error)
        else:
            logger.info("%s: done", step.name)

    def _room(self, step: Step, running: int) -> list[str] | None:
        """The GPUs that a step may take now; None where it must wait."""
        wanted = self._wanted(step)
        if running >= self.launch.at_once or wanted > len(self._free):
            return None
        return self._free[:wanted]

    def _wanted(self, step: Step) -> int:
        return 0 if not self._gpus or step.kind in WITHOUT_GPU else step.processes

    def _check_gpus(self, step: Step) -> None:
        if self._wanted(step) > self._gpus:
            raise LawError(
                f"{step.name} takes {step.processes} GPUs and {self._gpus} are here; change "
                f"launch.gpus_per_step.{step.kind} or launch.gpus"
            )

    # the past ----------------------------------------------------------------------------------

    def _settle_the_past(self) -> None:
        """Ends what a killed run has left running, and what the ledger says of it."""
        if orphans := kill_orphans(self.run_dir):
            told = counted(len(orphans), "process", "processes")
            logger.warning("%s of a killed run ended", told)
        for name, entry in list(self.ledger.entries.items()):
            if entry.state == "running":
                seconds = self._lost(name, entry.began)
                self.ledger.append(name, "lost", error="killed", seconds=seconds)

    def _lost(self, name: str, began: str) -> float:
        """Seconds of an attempt whose end nobody saw: until its log was last written to."""
        folder = self.run_dir / "steps" / file_name(name)
        written = [path.stat().st_mtime for path in folder.glob("*.txt")]
        seconds = max(written, default=0.0) - datetime.fromisoformat(began).timestamp()
        return round(max(0.0, seconds), 3)

    # what is written ---------------------------------------------------------------------------

    def _compose(self, path: Path, names: Iterable[str]) -> None:
        rows = [self.standing.steps[name].rows for name in names if self.standing.is_done(name)]
        if any(rows):
            compose(path, [self.run_dir / name for name in rows if name])

    def _write(self, finished: bool = False) -> None:
        """The table and the summary, as they are now."""
        self._compose(self.run_dir / TABLE, self.standing.steps)
        self.standing.write_summary(self._sweep.rounds if self._sweep else [], finished)

    def _write_now_and_then(self) -> None:
        if time.monotonic() - self._said > SUMMARY_SECONDS:
            self._said = time.monotonic()
            self._write()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: its steps end with it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
