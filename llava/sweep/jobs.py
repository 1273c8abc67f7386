"""What runs in the jobs of a cluster: one step, or the submission of the next stage.

submitit keeps these objects as pickles beside the job's log and calls them in the job.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava.errors import LawError
from llava.log import get_logger
from llava.sweep.chain import Chain
from llava.sweep.devices import visible_gpus
from llava.sweep.fingerprint import fingerprint
from llava.sweep.inputs import Inputs
from llava.sweep.launchers import Nodes
from llava.sweep.ledger import Ledger
from llava.sweep.step import Step, file_name
from llava.sweep.work import Work, clear_the_way, read_step, seconds_seen, write_step

logger = get_logger("run")

Begin = Callable[[Path, Path | None, bool, frozenset[str]], None]

PATIENCE = 180.0
"""Seconds until what another node has written is seen here, at the latest."""
GRACE = 180.0
"""Seconds in which Slurm ends a job that it has told to end, or queues it again."""


@dataclass
class StepJob:
    """Runs a step; each node of the job calls it.

    Attributes:
        run_dir: of the run.
        name: of the step, which `write_step` has kept.
        before: steps whose fingerprints are in this one's.
        gpus: on each node.
        nodes: that share the step.
        launcher: what starts its processes.
    """

    run_dir: Path
    name: str
    before: tuple[str, ...]
    gpus: int
    nodes: int
    launcher: str
    _work: Work | None = field(default=None, init=False)
    _ending: bool = field(default=False, init=False)

    def __call__(self) -> None:
        """Raises LawError where the step fails, so that the job fails, too."""
        job = job_id()
        wait_for_record(self.run_dir, job)
        step, told = read_step(self._folder)
        ledger = Ledger(self.run_dir)
        entry = ledger.entry(self.name)
        if entry.state == "done" and entry.job == job:
            return  # queued again when it had just ended
        self._work = Work(
            self.run_dir,
            threads=max(1, len(os.sched_getaffinity(0)) * self.nodes // step.processes),
            launcher=self.launcher,
            nodes=self._seen_from_here(),
            job=job,
        )
        gpus = visible_gpus(self.gpus)
        signal.signal(signal.SIGTERM, self._told_to_end)
        try:
            with ThreadPoolExecutor(1) as pool:  # this thread is for signals
                if self._work.nodes.rank:
                    pool.submit(self._work.follow, step, gpus).result()
                else:
                    pool.submit(self._first, step, told, ledger, gpus).result()
        except LawError:
            if self._ending:  # a job that fails by itself now would not be queued again
                time.sleep(GRACE)
            raise

    def checkpoint(self) -> Any:
        """Ends the step, which goes on from where it was when the job runs again.

        submitit asks for it when the job is preempted or its time is over.
        """
        from submitit.core.utils import DelayedSubmission

        if self._work:
            self._work.stop()
            ledger = Ledger(self.run_dir)
            if ledger.entry(self.name).state == "running":
                self._lose(ledger, "its time was over, or its job was preempted")
        return DelayedSubmission(replace(self))

    def _told_to_end(self, *_) -> None:
        """Slurm tells every process of a job before it ends or preempts it; the step ends, too."""
        self._ending = True
        logger.warning("%s: its job is told to end", self.name)

    def _first(self, step: Step, told: str, ledger: Ledger, gpus: list[str]) -> None:
        """Runs the step on the first node, which alone writes to the ledger."""
        entry = ledger.entry(self.name)
        if entry.state == "running":
            self._lose(ledger, "its job ended and was queued again")
        undone = [name for name in step.after if ledger.entry(name).state != "done"]
        if undone:
            raise LawError(f"{self.name}: {', '.join(undone)} is not done")
        before = [ledger.entry(name).fingerprint for name in self.before]
        now = fingerprint(step, self.run_dir, before, Inputs(self.run_dir).digest)
        if now != told:  # a step before it has written what it reads
            write_step(self._folder, step, now)
        clear_the_way(self.run_dir, step, entry, now)
        self._work.do(step, now, ledger, gpus)
        entry = ledger.entry(self.name)
        if entry.state == "failed":
            raise LawError(f"{self.name} failed: {entry.error}")
        logger.info("%s: done", self.name)

    def _lose(self, ledger: Ledger, why: str) -> None:
        """Writes the end of an attempt, and what it cost, into the ledger."""
        seconds = seconds_seen(self._folder, ledger.entry(self.name).began)
        hours = round(seconds * self.gpus * self.nodes / 3600, 6)
        ledger.append(self.name, "lost", error=why, seconds=seconds, gpu_hours=hours)

    @property
    def _folder(self) -> Path:
        return self.run_dir / "steps" / file_name(self.name)

    def _seen_from_here(self) -> Nodes:
        """Where this node stands among those of the job."""
        if self.nodes == 1:
            return Nodes()
        from submitit.helpers import TorchDistributedEnvironment

        seen = TorchDistributedEnvironment()
        return Nodes(self.nodes, seen.rank, seen.master_addr, seen.master_port)


@dataclass
class GoOn:
    """Goes on with a run when the jobs of a stage have ended.

    Attributes:
        run_dir: of the run, which holds its resolved YAML.
        source: the YAML that was typed, for messages.
        thorough: read all outputs again.
        ended: jobs of the chain until now.
        begin: what runs what is left; given, since it imports all of this.
    """

    run_dir: Path
    source: Path | None
    thorough: bool
    ended: tuple[str, ...]
    begin: Begin

    def __call__(self) -> None:
        """Raises LawError at the end of the run where a step has failed."""
        job = job_id()
        chain = wait_for_record(self.run_dir, job)
        later = [one for one in chain.jobs if one not in (*self.ended, job)]
        if any(not chain.jobs[one] for one in later):
            return  # queued again when it had handed over
        self.begin(self.run_dir, self.source, self.thorough, frozenset(self.ended))


def job_id() -> str:
    """Of the job that this process is in."""
    from submitit import JobEnvironment

    return JobEnvironment().job_id


def wait_for_record(run_dir: Path, job: str) -> Chain:
    """The chain, once it knows this job: a job may begin before its submission is written down.

    Raises LawError where it does not, because a later `law run` has taken its place.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(LawError):  # a shared disk may lose a file that is being replaced
            chain = Chain(run_dir)
            if job in chain.jobs:
                return chain
        time.sleep(0.5)
    raise LawError(f"job {job} is not among those of {run_dir}'s last `law run`; it does nothing")
