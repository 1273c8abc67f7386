"""What `--tasks` asks for: lmms-eval's task, in which words, and which of its numbers are meant.

A name is a set (`paper8`), a benchmark by any of its names or its task, or any task of lmms-eval,
also `task:metric` and `task:metric:unit`. What the catalog lists is asked as the catalog says,
however it is spelled. What one task gives in one way of asking is one job.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llava import catalog
from llava.errors import UsageError, unknown_name
from llava.eval.harness import harness
from llava.log import get_logger
from llava.results import UNITS

logger = get_logger("eval")

FRACTIONS = ("acc", "acc_norm", "acc_mutual_info", "anls", "exact_match")
"""Metrics of lmms-eval that are fractions whatever the task."""
UNKNOWN_UNIT = "points"
"""Of another metric, where nobody says: converts into nothing else."""


@dataclass(frozen=True)
class Wanted:
    """A number of a task that is a row of the results table."""

    metric: str
    benchmark: str
    """What the table calls it."""
    unit: str


@dataclass(frozen=True)
class Job:
    """A task, asked in one way."""

    task: str
    wanted: tuple[Wanted, ...] = ()
    """Empty: every metric of it that is a number."""
    entry: catalog.Benchmark | None = None
    """What is known of the benchmark; None for a task of one's own."""
    prompt: str = ""
    """Which of the benchmark's ways to ask, where it has several."""
    prompt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What that sets of the task's lmms_eval_specific_kwargs."""
    judge: str = ""
    """Model of the grading service, where there is one."""

    def stem(self, limit: int | None) -> str:
        """What its files are called: ways to ask and limits stand beside each other."""
        usual = self.entry is not None and self.prompt == next(iter(self.entry.prompts), "")
        parts = [self.task, "" if usual else self.prompt, f"limit{limit}" if limit else ""]
        return "-".join(part for part in parts if part)


def jobs_of(names: Sequence[str], ocr: bool, environment: Mapping[str, str]) -> list[Job]:
    """The jobs behind `names`, in their order, each once.

    `ocr` takes the prompts with OCR tokens of the benchmarks that have some. `environment` tells
    whether a grading service can be asked. Raises UsageError for no name at all, a name in no form
    of a name, or a unit that is none. Whether a task exists is not looked at.
    """
    if not names:
        raise UsageError("--tasks: names no task; expected a set, benchmarks or tasks of lmms-eval")
    sets = catalog.benchmark_sets()
    found: dict[str, Job] = {}
    for name in (one for given in names for one in sets.get(given, [given])):
        _add(found, _job(name, ocr, environment))
    return list(found.values())


def grouped(
    jobs: Sequence[Job], manager: Any, ocr: bool, environment: Mapping[str, str]
) -> list[Job]:
    """`jobs` with lmms-eval's groups and tags taken apart; `manager` is its index of tasks.

    Raises UsageError for a group of which one number is asked, or `ocr` where no benchmark has
    such a prompt.
    """
    found: dict[str, Job] = {}
    for job in jobs:
        members = _members(job.task, manager)
        if members != [job.task] and job.wanted:
            raise UsageError(
                f"--tasks {job.entry.id if job.entry else job.task}: a group of tasks, which has "
                f"no number of its own; ask for {_inside(members, job)}"
            )
        for name in members:
            _add(found, job if name == job.task else _job(name, ocr, environment))
    if ocr and all(job.prompt != "ocr" for job in found.values()):
        having = [e.id for e in catalog.benchmarks().values() if "ocr" in e.prompts]
        raise UsageError(
            f"--ocr: of the tasks named none has a prompt with OCR tokens; {', '.join(having)} has"
        )
    return list(found.values())


def _inside(members: Sequence[str], job: Job) -> str:
    """The words that ask for the tasks of a group, and of each for what was asked of the group."""
    if job.entry:
        return " ".join(members)
    return " ".join(f"{name}:{wanted.metric}" for name in members for wanted in job.wanted)


def own_numbers(job: Job, metrics: Iterable[str]) -> tuple[Wanted, ...]:
    """The numbers wanted of `job`, out of the `metrics` that its task gives.

    Of several that nobody asked for by name each is called `task:metric`, a single one `task`.
    Raises UsageError for one that is asked for and not given.
    """
    metrics = list(metrics)
    for wanted in job.wanted:
        if wanted.metric not in metrics:
            raise UsageError(
                f"{job.task}: {unknown_name('metric', wanted.metric, metrics)}; as "
                f"{job.task}:METRIC"
            )
    if job.wanted:
        return job.wanted
    if not metrics:
        raise UsageError(f"{job.task}: gives no number, only submissions for a server elsewhere")
    alone = len(metrics) == 1
    return tuple(
        Wanted(name, job.task if alone else f"{job.task}:{name}", _usual_unit(name))
        for name in metrics
    )


def unit_of(job: Job, metric: str) -> str:
    """Of any number of a task: as it is asked for, as the catalog says, or as is usual."""
    asked = {wanted.metric: wanted.unit for wanted in job.wanted}
    entry = _entry(job.task, metric)
    return asked.get(metric) or (entry.unit if entry else _usual_unit(metric))


def _job(name: str, ocr: bool, environment: Mapping[str, str]) -> Job:
    job = _listed(name, environment) or _spelled(name, environment)
    return _asked(job, "ocr") if ocr and job.entry and "ocr" in job.entry.prompts else job


def _spelled(name: str, environment: Mapping[str, str]) -> Job:
    """A task of one's own, or one of a task's numbers, by name."""
    task, *rest = name.split(":")
    if len(rest) > 2 or not all([task, *rest]):
        raise UsageError(f"--tasks {name}: expected a name, task:metric or task:metric:unit")
    if not rest:
        return Job(task)
    metric, unit = rest[0], rest[1] if rest[1:] else None
    if unit is not None and unit not in UNITS:
        raise UsageError(f"--tasks {name}: {unknown_name('unit', unit, UNITS)}")
    job = _listed(f"{task}:{metric}", environment) or _listed(task, environment)
    if job is None:
        return Job(task, (Wanted(metric, task, unit or _usual_unit(metric)),))
    if entry := _entry(job.task, metric):
        if unit not in (None, entry.unit):
            raise UsageError(f"--tasks {name}: {metric} is in {entry.unit}; leave out the unit")
        return _by_task(entry, job.task, environment)
    wanted = Wanted(metric, f"{job.entry.id}:{metric}", unit or _usual_unit(metric))
    return replace(job, wanted=(wanted,))


def _entry(task: str, metric: str) -> catalog.Benchmark | None:
    """The benchmark that this number of a task is."""
    listed = catalog.benchmarks().values()
    return next((one for one in listed if task in one.tasks and metric == one.metric), None)


def _members(name: str, manager: Any) -> list[str]:
    """The tasks of a group or tag, or `name` alone."""
    entry = manager.task_index.get(name)
    if entry is None:
        raise UsageError(f"--tasks: a group holds {name}, which lmms-eval ships; name {name}, too")
    if "task" not in entry:
        return [name]
    inside = entry["task"]
    if entry["type"] == "group":
        inside = harness("utils").load_yaml_config(entry["yaml_path"], mode="simple")["task"]
    if not all(isinstance(one, str) for one in inside):
        raise UsageError(f"--tasks {name}: this group changes its tasks; name the tasks themselves")
    return [task for one in inside for task in _members(one, manager)]


def _listed(name: str, environment: Mapping[str, str]) -> Job | None:
    """A benchmark of the catalog by any of its names, or by a task; None for what is not listed."""
    known = catalog.benchmarks()
    entry = known.get(catalog.benchmark_id(name))
    if entry is not None:
        return _by_task(entry, _usual_task(entry, environment), environment)
    entry = next((one for one in known.values() if name in one.tasks), None)
    return entry and _by_task(entry, name, environment)


def _usual_task(entry: catalog.Benchmark, environment: Mapping[str, str]) -> str:
    """The task that measures a benchmark here; UsageError where none does."""
    if entry.pairs:
        raise UsageError(
            f"--tasks {entry.id}: no task of lmms-eval measures it, but a run of its own: "
            "law pairs run --scorer vqa --model-path RUN --results CSV ... (docs/pairs.md)"
        )
    if entry.grader is None:
        return entry.tasks[0]
    if entry.grader.judge(environment):
        return entry.grader.task
    logger.warning(
        "%s: %s is not set, so no service grades the answers; %s compares option letters instead, "
        "and its protocol is another one",
        entry.display,
        entry.grader.key(environment),
        entry.grader.without,
    )
    return entry.grader.without


def _by_task(entry: catalog.Benchmark, task: str, environment: Mapping[str, str]) -> Job:
    wanted = Wanted(entry.metric, entry.id, entry.unit)
    job = Job(task, (wanted,), entry)
    if entry.grader and task == entry.grader.task:
        judge = entry.grader.judge(environment)
        if judge is None:
            raise UsageError(
                f"--tasks {task}: a service grades the answers, and its key is not set; set "
                f"{entry.grader.key(environment)}, or evaluate {entry.grader.without}"
            )
        logger.warning("%s: %s grades the answers that need it, at its price", task, judge)
        job = replace(job, judge=judge)
    return _asked(job, next(iter(entry.prompts))) if entry.prompts else job


def _asked(job: Job, prompt: str) -> Job:
    return replace(job, prompt=prompt, prompt_kwargs=job.entry.prompts[prompt])


def _add(found: dict[str, Job], job: Job) -> None:
    known = found.get(job.task)
    found[job.task] = job if known is None else _merged(known, job)


def _merged(one: Job, other: Job) -> Job:
    """Both jobs' numbers: those of one benchmark twice, or several metrics of one task."""
    if not (one.wanted and other.wanted):  # all of them
        return replace(one, wanted=())
    wanted = tuple(dict.fromkeys([*one.wanted, *other.wanted]))
    metrics = [number.metric for number in wanted]
    for number in wanted:
        if metrics.count(number.metric) > 1:
            raise UsageError(f"--tasks: {one.task}:{number.metric} is asked for in two units")
    if len(wanted) > 1 and one.entry is None:
        wanted = tuple(replace(w, benchmark=f"{one.task}:{w.metric}") for w in wanted)
    return replace(one, wanted=wanted)


def _usual_unit(metric: str) -> str:
    return "fraction" if metric in FRACTIONS else UNKNOWN_UNIT
