"""Answers of a model, kept on disk as they come: a killed evaluation goes on inside of a task.

lmms-eval 0.7's own cache is no help: it writes when all answers of a task are there, and knows a
model by its arguments, not by its weights.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llava.eval.harness import harness
from llava.launch import launch
from llava.log import get_logger

logger = get_logger("eval")

AT_ONCE = 512
"""Requests that a model gets in one call, and that a kill costs at most."""
KEPT = ("generate_until", "loglikelihood")
"""Kinds of request; others are asked each time."""


@contextlib.contextmanager
def answers_kept(lm: Any, folder: Path) -> Iterator[None]:
    """Inside, what `lm` answers is written below `folder`, and what is there is not asked.

    `folder` belongs to one task asked of one model: requests are told by their text and arguments.
    Nor does `lm` lose its model when a task ends, as lmms-eval's classes do.
    """
    known = _read(folder)
    if known:
        logger.info("%s: %d answers are there already", folder.name, len(known))
    path = folder / f"rank{launch().rank}-{secrets.token_hex(4)}.jsonl"
    ours = {
        kind: partial(_answers, getattr(lm, kind), kind, known, path)
        for kind in KEPT
        if hasattr(lm, kind)
    }
    ours["clean"] = lambda: None
    for name, function in ours.items():
        setattr(lm, name, function)
    try:
        yield
    finally:
        for name in ours:
            delattr(lm, name)


def _answers(
    ask: Callable[[list[Any]], list[Any]],
    kind: str,
    known: dict[str, Any],
    path: Path,
    requests: Sequence[Any],
) -> list[Any]:
    """An answer to every request, in their order."""
    if any(_drawn(request) for request in requests):
        return ask(list(requests))
    keys = [_key(kind, request) for request in requests]
    open_ = [place for place, key in enumerate(keys) if key not in known]
    for start in range(0, len(open_), AT_ONCE):
        places = open_[start : start + AT_ONCE]
        said = ask([requests[place] for place in places])
        lines = []
        for place, one in zip(places, said, strict=True):
            known[keys[place]] = getattr(one, "text", one)
            lines.append(json.dumps({"key": keys[place], "answer": known[keys[place]]}))
        _append(path, lines)
        if len(open_) > AT_ONCE:
            done = start + len(places)
            logger.info("%s: %d of %d answered", path.parent.name, done, len(open_))
    if kind != "loglikelihood":
        return [known[key] for key in keys]
    made = harness("api.instance").GenerationResult  # of a plain tuple it would make a text
    return [made(tuple(known[key])) for key in keys]


def _drawn(request: Any) -> bool:
    """Whether the answer is drawn at random, and would be another one the next time.

    The temperature alone says so, whatever `do_sample` does, as in law_llava and in the protocol.
    """
    for given in request.args:
        if isinstance(given, dict):
            return (given.get("temperature") or 0) > 0
    return False


def _key(kind: str, request: Any) -> str:
    """A hash of what is asked; functions among the arguments say the same of every document."""
    plain = [one for one in request.args if not callable(one)]
    asked = [kind, request.task_name, request.doc_id, request.idx, plain]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _append(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        handle.writelines(f"{line}\n" for line in lines)
        handle.flush()
        os.fsync(handle.fileno())


def _read(folder: Path) -> dict[str, Any]:
    """Every whole line of every rank's file."""
    known = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the line a kill cut off
                entry = json.loads(line)
                known[entry["key"]] = entry["answer"]
    return known
