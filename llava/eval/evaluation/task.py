"""One task asked of one model: its numbers, with what they rest on, and every answer."""

import argparse
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava.errors import LawError
from llava.eval.evaluation.answers import answers_kept
from llava.eval.evaluation.jobs import Job, unit_of
from llava.eval.evaluation.stderr import Spread, spread
from llava.eval.harness import harness

ELSEWHERE = ("submission",)
"""Metrics of lmms-eval that are files for a server elsewhere, not numbers."""
BOOTSTRAPS = 1000
"""Resamples for the few metrics whose error lmms-eval bootstraps, and no mean is."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def prepare(task: Any, job: Job) -> None:
    """Sets the prompt that `job` asks in, and leaves out what is no number."""
    if job.prompt_kwargs:
        task.lmms_eval_specific_kwargs.update(job.prompt_kwargs)
    for metric in ELSEWHERE:
        if metric not in {wanted.metric for wanted in job.wanted}:
            task.aggregation().pop(metric, None)


def documents(task: Any, limit: int | None) -> int:
    """How many documents are asked about."""
    return min(limit or len(task.eval_docs), len(task.eval_docs))


def described(task: Any, limit: int | None) -> dict[str, Any]:
    """What of a task its answers and numbers depend on, with hashes that tell a change.

    `questions` is over prompts, choices and targets, in order; images do not count, unless a task
    gives its documents a `digest` of theirs. `code` is over the files of functions that neither
    lmms-eval nor this package brings.
    """
    config = task.dump_config()
    settings = {name: value for name, value in config.items() if name != "dataset_kwargs"}
    prompt = task.lmms_eval_specific_kwargs or {}
    return {
        "output_type": task.OUTPUT_TYPE,
        "version": str(task.VERSION),
        "dataset": config.get("dataset_path"),
        "subset": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "prompt_kwargs": {k: v for k, v in _plain(prompt).items() if not isinstance(v, dict)},
        "generation_kwargs": _plain(config.get("generation_kwargs")),
        "config": _hash(settings),
        "code": _hash(_own_code(list(vars(task.config).values()))),
        "questions": _hash(list(_asked(task, documents(task, limit)))),
    }


def decoding(task: Any) -> str:
    """How answers come about, for the protocol: `greedy`, `beams5`, `sampled0.7`, `likelihood`."""
    if "generate" not in task.OUTPUT_TYPE:
        return "likelihood"
    given = task.config.generation_kwargs or {}
    temperature = given.get("temperature") or 0
    if temperature > 0:
        return f"sampled{temperature:g}"
    beams = given.get("num_beams") or 1
    return f"beams{beams}" if beams > 1 else "greedy"


def evaluate_task(
    lm: Any, job: Job, task: Any, manager: Any, limit: int | None, answers: Path, details: Path
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]] | None:
    """(metric -> its number, with error and n; a line for every document), None but on rank zero.

    Answers are kept below `answers` as they come; a task that writes files, such as MMBench its
    categories, does so below `details`. Raises whatever model or task raise, LawError for a task
    that gives no number.
    """
    files = argparse.Namespace(
        output_path=str(details),
        process_with_media=bool(task.config.process_results_use_image),
    )
    with answers_kept(lm, answers):
        found = harness("evaluator").simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=manager,  # it would index all that it ships, once more
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            cli_args=files,
            process_docs_parallel=1,  # tasks that draw at random draw the same every time
        )
    if found is None:
        return None
    samples = sorted(found["samples"][job.task], key=lambda sample: sample["doc_id"])
    numbers = _numbers(job, task, found["results"][job.task], samples)
    lacking = [wanted.metric for wanted in job.wanted if wanted.metric not in numbers]
    if lacking or not numbers:
        raise LawError(f"{job.task}: lmms-eval gives no number for {', '.join(lacking) or 'it'}")
    return numbers, [_line(sample, numbers) for sample in samples]


def _numbers(
    job: Job, task: Any, results: Mapping[str, Any], samples: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Every metric that is a number; of several filters the first."""
    filters: dict[str, list[str]] = {}
    for key in results:
        metric, comma, name = key.partition(",")
        if comma and metric in task.aggregation():
            filters.setdefault(metric, []).append(name)
    numbers = {}
    for metric, names in filters.items():
        value = results[f"{metric},{names[0]}"]
        if isinstance(value, bool) or not _is_number(value):
            continue
        found = _spread(job, task, metric, float(value), samples)
        if len(names) > 1:
            found = Spread(len(samples) // len(names), None, f"first of filters {names}")
        theirs = results.get(f"{metric}_stderr,{names[0]}")
        if found.stderr is None and _is_number(theirs) and theirs > 0:
            found = Spread(found.n, float(theirs), f"lmms-eval's, of {BOOTSTRAPS} resamples")
        numbers[metric] = {
            "value": float(value),
            "stderr": found.stderr,
            "stderr_of": found.how,
            "n": found.n,
            "higher_is_better": bool(task.higher_is_better().get(metric, True)),
            "filter": names[0],
        }
    return numbers


def _spread(
    job: Job, task: Any, metric: str, value: float, samples: list[dict[str, Any]]
) -> Spread:
    """Where lmms-eval takes the mean, that of a mean; else as the catalog says of the benchmark.

    Also of a metric that nobody asked for yet: a later call may, and finds it here.
    """
    values = [sample[metric] for sample in samples if metric in sample]
    if task.aggregation()[metric] is harness("api.metrics").mean:
        return spread("mean", values, value, "points")
    if job.entry is not None:
        return spread(job.entry.spread, values, value, unit_of(job, metric))
    return Spread(len(values), None, "the task's own way to aggregate is no mean")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | list) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _line(sample: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A document's line in the samples' file."""
    answers = sample["filtered_resps"]
    return {
        "doc_id": sample["doc_id"],
        "prompt": next((one for one in sample["arguments"] if isinstance(one, str)), None),
        "target": sample["target"],
        "answer": answers[0] if len(answers) == 1 else answers,
        "scores": {metric: sample[metric] for metric in numbers if metric in sample},
    }


def _asked(task: Any, count: int) -> Iterator[Any]:
    for place, doc in enumerate(task.eval_docs_no_media):
        if place == count:
            return
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
        asked = [task.doc_to_text(doc), choices, task.doc_to_target(doc)]
        yield [*asked, doc["digest"]] if "digest" in doc else asked


def _own_code(values: Any) -> list[str]:
    """The texts of the files that functions among `values` stand in, at any depth."""
    packages = [Path(harness().__file__).parent, Path(__file__).parents[1]]
    found = set()
    left = list(values)
    while left:
        one = left.pop()
        if isinstance(one, dict | list | tuple):
            left += one.values() if isinstance(one, dict) else one
        elif callable(one):
            file = _file_of(one)
            if file and not any(file.is_relative_to(package.resolve()) for package in packages):
                found.add(file.read_text(encoding="utf-8"))
    return sorted(found)


def _file_of(function: Any) -> Path | None:
    """Where a function is written; None for what is not written in Python."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(getattr(function, "func", function)))
    except TypeError:
        return None
    return Path(file).resolve() if file else None


def _hash(value: Any) -> str:
    """16 hex digits; functions count by their names."""
    text = ADDRESS.sub("", json.dumps(value, sort_keys=True, default=str))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
