"""What an evaluation leaves: a summary and a file of answers per task, and rows of a results table.

A summary says what was asked of what; the same question asked again is answered by the file.
"""

import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llava import __version__, results
from llava.errors import LawError, UsageError
from llava.eval.evaluation.jobs import Job, own_numbers
from llava.eval.evaluation.model import model_class
from llava.eval.evaluation.subject import Subject
from llava.eval.harness import harness
from llava.files import read_json, write_json, write_text
from llava.model.representation import dtype_name
from llava.provenance import commit

KEPT = ".answers"
"""Folder of the answers of tasks that are not finished."""
USUAL_MODEL = "law_llava"
"""The class that a protocol does not name."""
WITHOUT_EFFECT = (
    "any_template",
    "attn_implementation",
    "batch_size",
    "cache_gb",
    "device",
    "device_map",
    "features",
    "max_batch_size",
)
"""Arguments of a model that change no answer, but for rounding."""
TOLD_OTHERWISE = ("pretrained", "model_base", "conv_template")
"""By the fingerprint and the template."""
PLACES = ("tower_alias",)
"""Where what is the same by rights is read from: no part of a protocol."""
PLAIN = re.compile(r"[\w.+-]{1,40}")
"""A value that a protocol spells out; of others it holds a hash."""
HIDDEN = "[REDACTED]"
"""What lmms-eval writes for a secret."""
PARTS = {
    "identity": set(),
    "task": set(),
    "metrics": set(),
    "subject": {"representation", "spec_hash", "seed", "path"},
}
"""What a summary holds at least."""
NUMBER = {"value", "stderr", "n", "unit", "higher_is_better", "protocol"}
"""And of each metric."""
REMEDY = "delete it, and the task is evaluated again"
ALSO_SAME = ("config", "questions", "code")
"""Of tasks that a user may have changed since."""


def identity(
    who: Subject, model: str, model_args: Mapping[str, Any], job: Job, limit: int | None
) -> dict[str, Any]:
    """What tells one evaluation from another, before a task or a model is loaded.

    Of the model's arguments those that are not the class's usual ones and change answers; secrets
    are told apart by a hash.
    """
    signature = inspect.signature(model_class(model).__init__).parameters
    usual = {name: signature[name].default for name in model_args if name in signature}
    shown = redacted(model_args)
    spelled = {name: _spelled(name, value, usual.get(name)) for name, value in model_args.items()}
    return {
        "fingerprint": who.fingerprint,
        "model": model,
        "model_args": {
            name: value if shown[name] == model_args[name] else f"{HIDDEN} {_hash(value)}"
            for name, value in sorted(spelled.items())
            if name not in (*WITHOUT_EFFECT, *TOLD_OTHERWISE)
            and not (name in usual and str(usual[name]) == value)
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
    found = _read(path)
    was, task = found["identity"], found["task"]
    told = [
        f"{name} (was {was.get(name, 'not recorded')}, is {same[name]})"
        for name in same
        if name not in was or was[name] != same[name]
    ]
    if described is not None:
        told += [f"the task's {name}" for name in ALSO_SAME if task.get(name) != described[name]]
    asked = {wanted.metric for wanted in job.wanted}
    told += [f"it has no {name}" for name in sorted(asked - set(found["metrics"]))]
    if not told:
        return found
    if overwrite:
        return None
    raise UsageError(
        f"{path} is the result of another evaluation: {'; '.join(told)}. Pass --overwrite to "
        "replace results that differ, or another --out"
    )


def harness_version() -> str:
    """Of the lmms-eval that is installed."""
    return version("lmms_eval")


def protocol(same: Mapping[str, Any], metric: str, decoded: str) -> str:
    """How a number came about, of an `identity`; docs/evaluation.md says what the parts are."""
    parts = [
        f"lmms-eval-{same['lmms_eval']}",
        same["task"],
        metric,
        same["prompt"],
        same["judge"],
        same["template"],
        decoded,
        "" if same["model"] == USUAL_MODEL else same["model"],
        *(
            f"{name}-{value if PLAIN.fullmatch(value) else _hash(value)[:8]}"
            for name, value in same["model_args"].items()
            if name not in PLACES and not value.startswith(HIDDEN)
        ),
        f"limit-{same['limit']}" if same["limit"] else "",
    ]
    return "/".join(part for part in parts if part)


def redacted(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model as they may be written: keys and passwords are not told."""
    return harness("evaluator")._redact_eval_config_secrets(dict(model_args))


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
    told = json.dumps([same, described], sort_keys=True)
    return path.parent / KEPT / f"{path.stem}@{_hash(told)}"


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


def _read(path: Path) -> dict[str, Any]:
    """A summary in the form that `run` gives it."""
    found = read_json(path, REMEDY)
    parts = [(found.get(name), needed) for name, needed in PARTS.items()]
    if all(isinstance(part, dict) for part, _ in parts):
        parts += [(number, NUMBER) for number in found["metrics"].values()]
    whole = all(isinstance(part, dict) and needed <= set(part) for part, needed in parts)
    if not whole or not {"commit", "date"} <= set(found):
        raise LawError(f"{path}: is no summary of an evaluation; {REMEDY}")
    return found


def _spelled(name: str, value: Any, usual: Any) -> str:
    """One text for all that mean the same: `half` and `torch.float16`, 1 and True."""
    if name == "dtype":
        value = getattr(torch, str(value).removeprefix("torch."), value)
        return dtype_name(value)
    return str(bool(value) if isinstance(usual, bool) and isinstance(value, int) else value)


def _hash(value: Any) -> str:
    """16 hex digits."""
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]
