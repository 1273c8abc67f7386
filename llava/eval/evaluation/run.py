"""From flags to finished tasks: everything is looked at, then the model is loaded, then asked."""

import argparse
import os
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from llava import results
from llava.errors import LawError, UsageError
from llava.eval.evaluation import files
from llava.eval.evaluation.jobs import Job, grouped, jobs_of, own_numbers
from llava.eval.evaluation.model import ASKED_AS, fitted, given_arguments, model_class
from llava.eval.evaluation.subject import Subject, subject
from llava.eval.evaluation.table import as_table
from llava.eval.evaluation.task import decoding, described, documents, evaluate_task, prepare
from llava.eval.evaluation.together import close_group, first_alone, of_first, open_group
from llava.eval.harness import INSTALL, harness, load_tasks, task_manager
from llava.files import write_json
from llava.launch import launch
from llava.log import get_logger
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.provenance import environment
from llava.results_csv import read_columns

logger = get_logger("eval")

MADE_FOR = INSTALL.rpartition("==")[2]
"""The version of lmms-eval whose tasks and functions the tests look at."""


@dataclass(frozen=True)
class Asked:
    """What all tasks of one call share."""

    who: Subject
    model: str
    cls: type
    model_args: dict[str, Any]
    out: Path
    limit: int | None
    overwrite: bool
    results: Path | None

    def path(self, job: Job) -> Path:
        """Where a task's summary is written."""
        return self.out / f"{job.stem(self.limit)}.json"

    def done(self, job: Job, task: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The summary of a finished task, where it is of this evaluation."""
        same = files.identity(self.who, self.model, self.model_args, job, self.limit)
        return files.fitting(self.path(job), same, job, self.overwrite, task)


@dataclass(frozen=True)
class Ready:
    """A task whose data are read."""

    job: Job
    task: Any
    manager: Any
    """lmms-eval's index of tasks."""
    described: dict[str, Any]

    def protocol(self, asked: Asked, metric: str) -> str:
        """Of one of its numbers."""
        same = files.identity(asked.who, asked.model, asked.model_args, self.job, asked.limit)
        return files.protocol(same, metric, decoding(self.task))


@dataclass(frozen=True)
class Plan:
    """What a call means, before data or a model are read."""

    asked: Asked
    jobs: list[Job]
    manager: Any
    """lmms-eval's index of tasks."""
    changeable: set[str]
    """Tasks or data of a user's own, which may have changed since they were evaluated."""


def look(arguments: argparse.Namespace) -> Plan:
    """What the flags mean; raises LawError for flags, a checkpoint or names that cannot be meant,
    and for places that cannot be written."""
    names = [name for given in arguments.tasks for name in given.split(",") if name]
    jobs = jobs_of(names, arguments.ocr, os.environ)
    _check_launcher()
    _check_version()
    asked = _asked(arguments)
    _check_places(asked)
    asked_as = ASKED_AS.get(asked.model, asked.model)
    manager = task_manager([job.task for job in jobs], arguments.include_path, asked_as)
    jobs = grouped(jobs, manager, arguments.ocr, os.environ)
    _check_limits(jobs, asked.limit)
    own = arguments.include_path
    changeable = {
        job.task
        for job in jobs
        if (job.entry and job.entry.local) or _is_below(manager, job.task, own)
    }
    return Plan(asked, jobs, manager, changeable)


def run(arguments: argparse.Namespace) -> tuple[str, dict[str, str]]:
    """Evaluates what has no fitting result yet: (table of all results, task -> why it failed).

    The table is empty but on rank zero. Whatever is wrong with flags, checkpoint or names is raised
    before a model is loaded.
    """
    plan = look(arguments)
    asked, jobs = plan.asked, plan.jobs
    if launch().world > 1:
        open_group(not torch.cuda.is_available() or asked.model_args.get("device") == "cpu")
    done = of_first(lambda: _done(asked, [job for job in jobs if job.task not in plan.changeable]))
    with first_alone():
        ready, failed = _load(asked, jobs, plan.manager, done)
    done |= of_first(lambda: _unchanged(asked, ready, plan.changeable))
    failed = {task: why for task, why in failed.items() if task not in done}
    ready = _agreed([one for one in ready if one.job.task not in done], failed)
    first = launch().rank == 0
    if arguments.check:
        close_group()
        return _told_ahead(asked, ready, done) if first else "", failed
    if first:
        _open_files(asked, jobs, ready, done)
    if ready:
        _evaluate(asked, ready, done, failed)
    close_group()
    rows = [row for job in jobs if job.task in done for row in files.rows(done[job.task], job)]
    return as_table(rows) if first else "", failed


def _asked(arguments: argparse.Namespace) -> Asked:
    """The checkpoint, looked at, and the class that will ask it."""
    cls = model_class(arguments.model)
    given = given_arguments(arguments)
    aliases = [one for one in str(given.get("tower_alias", "")).split(";") if one]
    who = subject(
        arguments.run,
        given.get("model_base"),
        given.get("conv_template"),
        parse_replacements(aliases),
    )
    folder = Path(arguments.run)
    beside = folder / "eval" if folder.is_dir() else Path("eval") / arguments.run.replace("/", "--")
    model_args = fitted(cls, arguments.model, given, who.template)
    if hasattr(cls, "check"):  # ours refuses without a model what it would refuse with one
        cls.check(**model_args)
    return Asked(
        who,
        arguments.model,
        cls,
        model_args,
        arguments.out or beside,
        arguments.limit,
        arguments.overwrite,
        arguments.results,
    )


def _check_places(asked: Asked) -> None:
    """Raises LawError where results could not be written, or for a table that is another one."""
    if launch().rank:
        return
    _check_writable(asked.out / "environment.json")
    if asked.results:
        _check_writable(asked.results)
        if asked.results.is_file() and asked.results.stat().st_size:
            read_columns([asked.results])


def _check_writable(path: Path) -> None:
    """As far as can be told without making a file or folder."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    reasons = (
        (path.is_dir(), "is a folder"),
        (there != path and not there.is_dir(), f"{there} is no folder"),
        (not os.access(there, os.W_OK), f"no permission for {there}"),
    )
    for wrong, why in reasons:
        if wrong:
            raise LawError(f"{path}: cannot be written: {why}")


def _check_launcher() -> None:
    """lmms-eval takes its share by torchrun's variables alone; without them all would do all."""
    if launch().world > 1 and "RANK" not in os.environ:
        raise UsageError(
            f"{launch().world} processes without RANK and WORLD_SIZE, as srun starts them, would "
            "all evaluate everything; start torchrun inside of srun, or one process with "
            "--processes"
        )


def _check_version() -> None:
    """Says so where lmms-eval is another one; raises MissingPackageError where there is none."""
    harness()
    found = files.harness_version()
    if found != MADE_FOR and launch().rank == 0:
        logger.warning(
            "lmms-eval %s is installed, and this was made for %s: prompts and scores may differ, "
            "and protocols do",
            found,
            MADE_FOR,
        )


def _check_limits(jobs: Sequence[Job], limit: int | None) -> None:
    for job in jobs:
        together = job.entry.together if job.entry else 1
        if limit and limit % together:
            raise UsageError(
                f"--limit {limit}: {job.task} scores {together} neighbouring documents together; "
                f"pass a multiple of {together}"
            )


def _is_below(manager: Any, task: str, folders: Sequence[str]) -> bool:
    """Whether a task is a user's own, which may have changed since it was evaluated."""
    path = Path(manager.task_index[task]["yaml_path"]).resolve()
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _done(asked: Asked, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """Task -> summary, of those that are finished."""
    return {job.task: found for job in jobs if (found := asked.done(job))}


def _unchanged(
    asked: Asked, ready: Sequence[Ready], changeable: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Task -> summary, of a user's own tasks that are finished and are what they were then."""
    return {
        one.job.task: found
        for one in ready
        if one.job.task in changeable and (found := asked.done(one.job, one.described))
    }


def _load(
    asked: Asked, jobs: Sequence[Job], manager: Any, done: Collection[str]
) -> tuple[list[Ready], dict[str, str]]:
    """(tasks whose data are read, task -> why its data cannot be had), but for what is `done`."""
    ready, failed = [], {}
    for job in jobs:
        if job.task in done:
            continue
        try:
            task = load_tasks([job.task], manager)[job.task]
            prepare(task, job)
            own_numbers(job, task.aggregation())
            made = described(task, asked.limit)
        except UsageError:
            raise
        except Exception as error:
            failed[job.task] = _told(error)
            logger.error("%s: %s", job.task, _told(error))
            continue
        ready.append(Ready(job, task, manager, made))
    return ready, failed


def _told_ahead(asked: Asked, ready: Sequence[Ready], done: dict[str, dict[str, Any]]) -> str:
    """What a call without --check would do."""
    lines = [f"{task}: is done" for task in done]
    for one in ready:
        count = documents(one.task, asked.limit)
        for wanted in own_numbers(one.job, one.task.aggregation()):
            protocol = one.protocol(asked, wanted.metric)
            lines.append(f"{one.job.task}: {count} documents, {protocol}")
    return "".join(f"{line}\n" for line in lines)


def _open_files(
    asked: Asked, jobs: Sequence[Job], ready: Sequence[Ready], done: dict[str, dict[str, Any]]
) -> None:
    """Sees that everything can be written; rows of what is done already are there afterwards."""
    if ready:
        write_json(asked.out / "environment.json", environment())
    if asked.results:
        results.append(asked.results, [])
    for job in jobs:
        if job.task in done:
            logger.info("%s: %s is there", job.task, asked.path(job))
            _append(asked, job, done[job.task])


def _append(asked: Asked, job: Job, summary: dict[str, Any]) -> None:
    if asked.results:
        results.append(asked.results, files.rows(summary, job), skip_known=True)


def _evaluate(
    asked: Asked,
    ready: Sequence[Ready],
    done: dict[str, dict[str, Any]],
    failed: dict[str, str],
) -> None:
    """Asks one model all that is ready; adds to `done` on rank zero, and to `failed`."""
    lm = asked.cls(**asked.model_args)
    for one in ready:
        started = time.monotonic()
        try:
            summary = _one(asked, one, lm)
        except Exception as error:
            if launch().world > 1:  # the other ranks wait for this one
                raise LawError(f"{one.job.task}: {_told(error)}") from error
            logger.error("%s failed:\n%s", one.job.task, "".join(traceback.format_exception(error)))
            failed[one.job.task] = _told(error)
            continue
        if summary is not None:
            done[one.job.task] = summary
            _append(asked, one.job, summary)
            logger.info("%s: %.0f s", asked.path(one.job), time.monotonic() - started)


def _agreed(ready: Sequence[Ready], failed: dict[str, str]) -> list[Ready]:
    """What is ready on every rank: the ranks ask together."""
    place = launch()
    if place.world == 1 or not distributed.is_initialized():
        return list(ready)
    everywhere: list[Any] = [None] * place.world
    distributed.all_gather_object(everywhere, [one.job.task for one in ready])
    common = set(everywhere[0]).intersection(*everywhere)
    for task in set().union(*everywhere) - common:
        failed.setdefault(task, "one of the processes cannot have its data, and says why")
    return [one for one in ready if one.job.task in common]


def _one(asked: Asked, one: Ready, lm: Any) -> dict[str, Any] | None:
    """Evaluates one task and writes what it leaves; its summary, None but on rank zero."""
    started = time.monotonic()
    job, path = one.job, asked.path(one.job)
    same = files.identity(asked.who, asked.model, asked.model_args, job, asked.limit)
    answers = files.answers_of(path, same, one.described)
    details = path.with_name(f"{path.stem}_details")
    found = evaluate_task(lm, job, one.task, one.manager, asked.limit, answers, details)
    if found is None:
        return None
    metrics, samples = found
    units = {wanted.metric: wanted.unit for wanted in own_numbers(job, metrics)}
    for metric, number in metrics.items():
        number["unit"] = units.get(metric)
        number["protocol"] = one.protocol(asked, metric)
    summary = {
        "identity": same,
        "metrics": metrics,
        "documents": _counted(asked, one),
        "task": one.described,
        "subject": asdict(asked.who),
        "model_args": files.redacted(asked.model_args),
        "settings": getattr(lm, "settings", None),
        "versions": files.versions(),
        "commit": files.code(),
        "processes": launch().world,
        "device": str(getattr(lm, "device", "")),
        "seconds": round(time.monotonic() - started, 1),
        "date": files.now(),
    }
    files.write(path, summary, samples, answers)
    return summary


def _counted(asked: Asked, one: Ready) -> int:
    """Documents that were asked about; of a whole benchmark they should be as many as ever."""
    count, entry = documents(one.task, asked.limit), one.job.entry
    if entry and entry.items and not asked.limit and count != entry.items:
        logger.warning(
            "%s: %d documents, where %d were expected: the data set changed, or it is another one",
            one.job.task,
            count,
            entry.items,
        )
    return count


def _told(error: BaseException) -> str:
    """What went wrong, in a line."""
    line = next(iter(str(error).splitlines()), "")
    return line if isinstance(error, LawError) else f"{type(error).__name__}: {line}"
