"""What an evaluation leaves: a summary and a file of answers per task, and rows of a results table.

A summary says what was asked of what; the same question asked again is answered by the file.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llava import __version__, results
from llava.errors import UsageError
from llava.eval.evaluation.jobs import Job, own_numbers
from llava.eval.evaluation.subject import Subject
from llava.files import read_json, write_json, write_text
from llava.sweep.run import commit

KEPT = ".answers"
"""Folder of the answers of tasks that are not finished."""
WITHOUT_EFFECT = (
    "attn_implementation",
    "batch_size",
    "cache_gb",
    "device",
    "device_map",
    "features",
    "max_batch_size",
)
"""Arguments of a model that change no answer, but for rounding."""
ALSO_SAME = ("config", "questions", "code")
"""Of tasks that a user may have changed since."""


def identity(
    who: Subject, model: str, model_args: Mapping[str, Any], job: Job, limit: int | None
) -> dict[str, Any]:
    """What tells one evaluation from another, before a task or a model is loaded."""
    return {
        "fingerprint": who.fingerprint,
        "model": model,
        "model_args": {
            name: str(value)
            for name, value in sorted(model_args.items())
            if name not in (*WITHOUT_EFFECT, "pretrained", "conv_template")
        },
        "template": who.template,
        "task": job.task,
        "prompt": job.prompt,
        "judge": job.judge,
        "limit": limit,
        "lmms_eval": harness_version(),
    }


def fitting(
    path: Path,
    same: Mapping[str, Any],
    job: Job,
    overwrite: bool,
    described: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The summary at `path` where it is of the same evaluation; None where there is none.

    `described` is what the task is made of now, for tasks that may have been changed. Raises
    UsageError that names the difference, unless `overwrite`, which makes it None.
    """
    if not path.is_file():
        return None
    found = read_json(path, "delete it, and the task is evaluated again")
    was, task = found.get("identity", {}), found.get("task", {})
    differing = [name for name in same if was.get(name) != same[name]]
    if described is not None:
        differing += [name for name in ALSO_SAME if task.get(name) != described[name]]
    asked = {wanted.metric for wanted in job.wanted}
    lacking = sorted(asked - set(found.get("metrics", {})))
    if not differing and not lacking:
        return found
    if overwrite:
        return None
    told = [f"{name} (was {was[name]}, is {same[name]})" for name in differing if name in was]
    told += [f"the task's {name}" for name in differing if name not in was]
    told += [f"it has no {name}" for name in lacking]
    raise UsageError(
        f"{path} is the result of another evaluation: {'; '.join(told)}. Pass --overwrite to "
        "replace results that differ, or another --out"
    )


def harness_version() -> str:
    """Of the lmms-eval that is installed."""
    return version("lmms_eval")


def protocol(who: Subject, job: Job, metric: str, decoded: str, limit: int | None) -> str:
    """How a number came about; docs/evaluation.md says what the parts are."""
    parts = [
        f"lmms-eval-{harness_version()}",
        job.task,
        metric,
        job.prompt,
        job.judge,
        who.template,
        decoded,
        f"limit-{limit}" if limit else "",
    ]
    return "/".join(part for part in parts if part)


def write(
    path: Path, summary: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], answers: Path
) -> None:
    """The answers' file, then the summary, which makes the task a finished one."""
    lines = (json.dumps(sample, ensure_ascii=False, default=str) for sample in samples)
    write_text(samples_of(path), "".join(f"{line}\n" for line in lines))
    write_json(path, summary)
    for folder in answers.parent.glob(f"{path.stem}@*"):
        shutil.rmtree(folder, ignore_errors=True)


def answers_of(path: Path, same: Mapping[str, Any], described: Mapping[str, Any]) -> Path:
    """The folder of the answers of an unfinished task; another question or model has another."""
    told = json.dumps([same, described], sort_keys=True).encode()
    return path.parent / KEPT / f"{path.stem}@{hashlib.sha256(told).hexdigest()[:16]}"


def samples_of(path: Path) -> Path:
    """The file of a task's answers, beside its summary."""
    return path.with_name(f"{path.stem}_samples.jsonl")


def rows(summary: Mapping[str, Any], job: Job) -> list[results.ResultRow]:
    """The rows of the results table that a finished task gives."""
    metrics, who = summary["metrics"], summary["subject"]
    return [
        results.ResultRow(
            representation=who["representation"],
            quantity="performance",
            benchmark=wanted.benchmark,
            value=metrics[wanted.metric]["value"],
            unit=wanted.unit,
            higher_is_better=metrics[wanted.metric]["higher_is_better"],
            stderr=metrics[wanted.metric]["stderr"],
            n=metrics[wanted.metric]["n"],
            protocol=metrics[wanted.metric]["protocol"],
            seed=who["seed"],
            spec_hash=who["spec_hash"],
            run_dir=who["path"],
            commit=summary["commit"],
            date=summary["date"],
        )
        for wanted in own_numbers(job, metrics)
    ]


def append_new(table: Path, made: Sequence[results.ResultRow]) -> None:
    """Adds those rows that the table does not hold yet, with their date and value."""
    held = set()
    if table.is_file():
        with open(table, encoding="utf-8-sig", newline="") as handle:
            held = {_known_by(row) for row in csv.DictReader(handle)}
    fresh = [row for row in made if _known_by(vars(row)) not in held]
    if fresh:
        results.append(table, fresh)


def _known_by(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        str(row.get(name)) for name in ("representation", "benchmark", "protocol", "date", "value")
    )


def now() -> str:
    """The time, as results have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """What an answer may depend on besides the model."""
    packages = ("lmms_eval", "torch", "transformers", "datasets")
    return {"law": __version__} | {name: version(name) for name in packages}


def code() -> str:
    """The commit of this code, empty outside of a checkout."""
    return commit() or ""
