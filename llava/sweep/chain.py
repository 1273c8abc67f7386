"""The jobs that one `law run` has led to, kept in RUN/slurm/jobs.json.

A chain begins when a person types `law run` and ends when nothing is left to submit. In between the
record says which job has which step, so that no step is submitted twice and no second chain begins.
"""

from pathlib import Path
from types import ModuleType

from llava.errors import LawError, MissingPackageError
from llava.files import read_json, write_json

FOLDER = "slurm"
"""Below the run folder: the record, and what submitit keeps of each job."""
NO_STEP = ""
"""Stands for a step in the record of a job that goes on with the next stage."""


class Chain:
    """The record; `jobs` is the step of every job, in the order of their submission."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.folder = run_dir / FOLDER
        self.path = self.folder / "jobs.json"
        self.jobs: dict[str, str] = {}
        if self.path.exists():
            self.jobs = read_json(self.path, "remove it if `squeue --me` shows no job of this run")

    def add(self, job: str, step: str) -> None:
        """Keeps a job that was just submitted."""
        self.jobs[job] = step
        write_json(self.path, self.jobs)

    def clear(self) -> None:
        """Ends the chain."""
        self.jobs = {}
        self.path.unlink(missing_ok=True)

    def refuse_while_active(self) -> None:
        """Raises LawError, naming them, where jobs of the folder wait or run."""
        if not self.jobs:
            return
        told = states(self.folder, list(self.jobs))
        active = {job: state for job, state in told.items() if state}
        if not active:
            return
        shown = [f"{job} ({self.jobs[job] or 'goes on'}: {active[job]})" for job in active]
        more = ", ..." if len(shown) > 8 else ""
        raise LawError(
            f"{self.run_dir}: jobs of an earlier `law run` wait or run: {', '.join(shown[:8])}"
            f"{more}; `squeue --jobs {','.join(active)}` shows them, "
            f"`scancel {' '.join(active)}` ends them. If Slurm knows none of them any more, "
            f"remove {self.path}"
        )


def states(folder: Path, jobs: list[str]) -> dict[str, str]:
    """Slurm's word for every job that has not ended; nothing for one that has."""
    slurm_job = submitit().SlurmJob
    found = [slurm_job(folder, job) for job in jobs]  # all first: they are asked for at once
    return {one.job_id: "" if one.done() else one.state for one in found}


def state(folder: Path, job: str) -> str:
    """Slurm's word for a job."""
    return submitit().SlurmJob(folder, job).state


def submitit() -> ModuleType:
    """The package; raises MissingPackageError without it."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "jobs of Slurm need submitit; type `pip install 'submitit>=1.5.4'`"
        ) from error
    return submitit
