"""Runs the steps of a graph on this machine, some at a time, each with GPUs of its own."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from llava.errors import UsageError
from llava.log import get_logger
from llava.sweep.config import SweepConfig
from llava.sweep.devices import visible_gpus
from llava.sweep.engine import Engine
from llava.sweep.kinds import WITHOUT_GPU
from llava.sweep.plan import RunConfig
from llava.sweep.step import Step
from llava.sweep.work import Work, clear_the_way, write_step

logger = get_logger("run")

SUMMARY_SECONDS = 5.0
"""Between two writings of the summary while steps run."""


class Here(Engine):
    """A run whose steps are processes of this machine.

    Raises UsageError where a kind of step would take more GPUs than there are.
    """

    def __init__(self, config: RunConfig | SweepConfig, source: Path | None, thorough: bool):
        super().__init__(config, source, thorough)
        self._work = Work(
            self.run_dir,
            threads=max(1, (os.cpu_count() or 1) // self.launch.at_once),
            launcher=self.launch.launcher,
            shown=isinstance(config, RunConfig),
        )
        self._free = visible_gpus(self.launch.gpus)
        self._gpus = len(self._free)
        self._check_gpus()
        self._pool = ThreadPoolExecutor(self.launch.at_once)
        self._said = 0.0

    def run(self) -> None:
        """Until nothing more can be run; steps end with it, however it ends."""
        with _ending_on_sigterm(), self._pool:
            try:
                super().run()
            except BaseException:
                self._work.stop()
                raise

    def _take(self, stage: list[Step]) -> bool:
        waiting = [step for step in stage if not step.left_out]
        running: dict[Future, tuple[Step, list[str]]] = {}
        while waiting or running:
            waiting = [step for step in waiting if not self._settled(step, stage)]
            for step in list(waiting):
                gpus = self._room(step, len(running))
                if gpus is not None and self._ready(step):
                    waiting.remove(step)
                    self._free = [gpu for gpu in self._free if gpu not in gpus]
                    running[self._start(step, gpus)] = (step, gpus)
            if running:
                self._write_now_and_then()
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    step, gpus = running.pop(future)
                    self._free = sorted([*self._free, *gpus])
                    future.result()
                    self._end(step)
        return True

    def _start(self, step: Step, gpus: list[str]) -> Future:
        entry, fingerprint = self.ledger.entry(step.name), self._fingerprint(step)
        clear_the_way(self.run_dir, step, entry, fingerprint)
        self._prepare(step)
        self.standing.put(step.name, "running")
        if step.kind == "report":
            self._write()
        write_step(self._work.folder(step), step, fingerprint)
        number = sum(map(self.standing.ended, self.standing.steps)) + 1
        logger.info("%s: begins (%d of %d)", step.name, number, len(self.standing.steps))
        return self._pool.submit(self._work.do, step, fingerprint, self.ledger, gpus)

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

    def _check_gpus(self) -> None:
        """Of all kinds at once: stage 2 comes when days of stage 1 are over."""
        for kind, wanted in self.launch.gpus_per_step.items():
            if not self._gpus and wanted > 1 and self.launch.launcher != "torchrun":
                raise UsageError(
                    f"launch.launcher: {self.launch.launcher} starts one process where no GPU is, "
                    f"and {kind} takes {wanted}; take torchrun"
                )
            if self._gpus and kind not in WITHOUT_GPU and wanted > self._gpus:
                raise UsageError(
                    f"{kind} takes {wanted} GPUs and {self._gpus} are here; change "
                    f"launch.gpus_per_step.{kind} or launch.gpus"
                )

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
