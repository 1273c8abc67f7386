"""Runs the steps of a graph as jobs of a Slurm cluster, submitted through submitit.

All steps of a stage are submitted at once, each with the jobs that it waits for; a last small job
waits for them all, whatever their end, and goes on with the next stage.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from llava.errors import LawError, UsageError
from llava.log import get_logger
from llava.sweep.asking import MOST, checked, gpus_of, most_jobs, of_going_on, of_kind
from llava.sweep.chain import NO_STEP, Chain, state, submitit
from llava.sweep.config import SweepConfig
from llava.sweep.engine import Engine
from llava.sweep.jobs import Begin, GoOn, StepJob
from llava.sweep.ledger import Entry
from llava.sweep.standing import counted
from llava.sweep.step import Step
from llava.sweep.work import write_step

logger = get_logger("run")

COMMANDS = ("sbatch", "srun", "sacct", "scancel")
"""What submitit calls."""


class Slurm(Engine):
    """A run whose steps are jobs.

    `begin` is what the last job calls. `ended` are the jobs of the chain that is gone on with, all
    of which have come to an end; None where a person begins a new chain, in which what has failed
    is tried again.
    """

    def __init__(
        self,
        config: SweepConfig,
        source: Path | None,
        thorough: bool,
        begin: Begin,
        ended: Collection[str] | None = None,
    ):
        super().__init__(config, source, thorough)
        self._source, self._begin = source, begin
        self._chain = Chain(self.run_dir)
        if ended is None:
            self._chain.clear()
        self._submitter = Submitter(config.name, self._chain)
        for asked in checked(config):
            self._submitter.executor("", asked, None)
        jobs = {step: job for job, step in self._chain.jobs.items() if step != NO_STEP}
        self._tried = {step: job for step, job in jobs.items() if job in (ended or ())}
        self._queued = {step: job for step, job in jobs.items() if step not in self._tried}
        self._next = ""

    def run(self) -> None:
        """Until the jobs of a stage are submitted, or nothing is left to submit."""
        try:
            super().run()
        except BaseException:
            self._submitter.cancel()
            raise
        if not self._next:
            self._chain.clear()

    def failures(self) -> str:
        """What failed; nothing where a later job will say it."""
        return "" if self._next else super().failures()

    def told(self) -> Iterator[str]:
        """How far it is, and which jobs go on."""
        yield from super().told()
        if self._next:
            jobs = list(self._queued.values())
            yield f"  submitted: {counted(len(jobs), 'job')} ({', '.join(jobs)})"
            yield f"  job {self._next} goes on when they have ended"
            yield f"  `squeue --me` shows them, `scancel {' '.join([*jobs, self._next])}` ends them"

    def _take(self, stage: list[Step]) -> bool:
        steps = [step for step in stage if not step.left_out]
        most = most_jobs(self.launch) or len(steps) + len(self._queued)
        for step in steps:
            if step.name in self._queued:  # by a job that was killed while it submitted
                self._fingerprint(step)
                self.standing.put(step.name, "submitted")
            elif not self._settled(step, stage) and self._ready(step) and len(self._queued) < most:
                self._submit(step)
        if not any(step.name in self._queued for step in steps):
            return True
        ended = tuple(self._chain.jobs)
        work = GoOn(self.run_dir, self._source, self.thorough, ended, self._begin)
        after = f"afterany:{':'.join(self._queued.values())}"
        self._next = self._submitter.submit(work, NO_STEP, of_going_on(self.launch), after)
        return False

    def _kept(self, step: Step, stage: list[Step]) -> bool:
        """Also what this chain has tried: nothing is tried twice in it."""
        job = self._tried.get(step.name)
        if not job:
            return super()._kept(step, stage)
        entry = self.ledger.entry(step.name)
        if entry.job == job:
            self._fingerprints[step.name] = entry.fingerprint
            self.standing.put(step.name, entry.state, entry.error)
        else:
            why = f"its job {job} ended before it began: {state(self._chain.folder, job)}"
            self.standing.put(step.name, "failed", why)
        return True

    def _ready(self, step: Step) -> bool:
        """Whether all that it waits for is done or on its way."""
        return all(
            self.standing.is_done(name) or name in self._queued for name in step.after
        ) and all(map(self.standing.ended, step.settled))

    def _lacks_inputs(self, step: Step) -> bool:
        """Once nothing is on its way that may make them."""
        return all(map(self.standing.is_done, step.after)) and super()._lacks_inputs(step)

    def _submit(self, step: Step) -> None:
        asked = of_kind(self.launch, step.kind, step.processes)
        self._prepare(step)
        if step.kind == "report":
            self._write()
        write_step(self.run_dir / "steps" / step.slug, step, self._fingerprint(step))
        done = [name for name in step.settled if self.standing.is_done(name)]
        work = StepJob(
            self.run_dir,
            step.name,
            before=(*step.after, *done),
            gpus=gpus_of(asked, step.processes),
            nodes=asked.get("nodes") or 1,
            launcher=self.launch.launcher,
        )
        jobs = [self._queued[name] for name in step.after if name in self._queued]
        after = f"afterok:{':'.join(jobs)}" if jobs else None
        job = self._submitter.submit(work, step.name, asked, after)
        self._queued[step.name] = job
        self.ledger.append(step.name, "submitted", job=job)
        self.standing.put(step.name, "submitted")
        logger.info("%s: submitted as job %s", step.name, job)

    def _settle_the_past(self) -> None:
        on_the_way = set(self._queued.values())
        for name, entry in list(self.ledger.entries.items()):
            if entry.state == "running" and entry.job not in on_the_way:
                self._lose(name, entry)

    def _cause(self, entry: Entry) -> str:
        if not entry.job:
            return super()._cause(entry)
        return f"its job {entry.job} ended: {state(self._chain.folder, entry.job)}"


class Submitter:
    """Hands jobs to Slurm, and keeps them in the chain."""

    def __init__(self, name: str, chain: Chain):
        self._name, self._chain = name, chain
        self._made: list[Any] = []
        submitit()
        lacking = [command for command in COMMANDS if not shutil.which(command)]
        if lacking:
            raise LawError(
                f"launch: how: slurm, but no {', '.join(lacking)} is on the PATH; type this on a "
                "login node of the cluster, or take `how: here`"
            )

    def submit(self, work: Any, step: str, asked: dict[str, Any], after: str | None) -> str:
        """The id of a new job; LawError with Slurm's own words where it is refused."""
        helpers = submitit().helpers
        kept = {name: text for name, text in os.environ.items() if name.startswith("SBATCH_")}
        with helpers.clean_env():  # a job that submits must not pass its own settings on
            os.environ.update(kept)  # these are the user's
            try:
                job = self.executor(step, asked, after).submit(work)
            except (RuntimeError, OSError) as error:
                raise LawError(
                    f"Slurm takes no job for {step or 'what follows'}, so that all are cancelled: "
                    f"{error}; where too many are in the queue, set launch.slurm.{MOST}"
                ) from error
        self._made.append(job)
        self._chain.add(job.job_id, step)
        return job.job_id

    def cancel(self) -> None:
        """Ends what it has submitted."""
        for job in self._made:
            logger.warning("job %s is cancelled", job.job_id)
            job.cancel(check=False)

    def executor(self, step: str, asked: dict[str, Any], after: str | None) -> Any:
        """submitit's, with its parameters; UsageError for one that it does not have."""
        own = {f"slurm_{name}": value for name, value in asked.items()}
        special = [f"slurm_{name}" for name in ("python", "max_num_timeout")]
        made = {name: own.pop(name) for name in special if name in own}
        executor = submitit().AutoExecutor(self._chain.folder, cluster="slurm", **made)
        name = {"slurm_job_name": f"{self._name} {step or 'goes on'}", "slurm_dependency": after}
        try:
            executor.update_parameters(**(name | own))
        except (NameError, AssertionError, TypeError, ValueError) as error:
            told = str(error).splitlines()[0]
            raise UsageError(f"launch.slurm: {told}") from error
        return executor
