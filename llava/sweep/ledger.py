"""The ledger of a run folder: one JSON line for each beginning and end of a step.

What is done stands nowhere else. A line that is damaged is said and left out; the step that it
told of is then done again.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava.errors import LawError
from llava.log import get_logger
from llava.sweep.digests import FileState

logger = get_logger("run")

NAME = "ledger.jsonl"
COSTS = ("seconds", "cpu_seconds", "gpu_hours")
PEAKS = ("peak_memory", "peak_gpu_memory")


@dataclass
class Entry:
    """What is known of one step, over all attempts.

    Attributes:
        fingerprint: of the last attempt.
        state: `done`, `failed` or `running` (begun, and no end was written).
        gpus: that the last attempt took, on all nodes.
        job: of a cluster, that the last attempt was made in.
        outputs: what it left, by path below the run folder, where it is done.
        done: fingerprint -> outputs, of every attempt that came to a good end.
        costs: seconds, CPU seconds and GPU hours of all attempts, those that were killed included.
        peaks: bytes, the largest of all attempts.
    """

    fingerprint: str = ""
    state: str = ""
    began: str = ""
    error: str = ""
    gpus: int = 0
    job: str = ""
    outputs: dict[str, FileState] = field(default_factory=dict)
    done: dict[str, dict[str, FileState]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    peaks: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(PEAKS))

    def take(self, event: dict[str, Any]) -> None:
        """Brings it up to date; ValueError, KeyError or TypeError for what is no event.

        An end tells again what the beginning has told, so that either line may be lost.
        """
        state = event["state"]
        if state not in ("running", "submitted", "done", "failed", "lost"):
            raise ValueError(f"state {state!r}")
        if state == "submitted":  # nothing was tried yet
            return
        outputs = {name: FileState.read(one) for name, one in event.get("outputs", {}).items()}
        costs = {name: _number(event, name) for name in COSTS}
        peaks = {name: _whole(event, name) for name in PEAKS}
        before = Entry(fingerprint=event["fingerprint"]) if state == "running" else self
        fingerprint = _text(event, "fingerprint", before.fingerprint)
        job = _text(event, "job", before.job)
        gpus = before.gpus if event.get("gpus") is None else _whole(event, "gpus")
        error = _text(event, "error", "")
        if state == "lost" and "gpu_hours" not in event:
            costs["gpu_hours"] = costs["seconds"] * gpus / 3600
        if state == "running":
            datetime.fromisoformat(event["when"])
            self.began = event["when"]
        # all of it is sound
        self.fingerprint, self.job, self.gpus = fingerprint, job, gpus
        for name in COSTS:
            self.costs[name] += costs[name]
        for name in PEAKS:
            told = [n for n in (self.peaks[name], peaks[name]) if n is not None]
            self.peaks[name] = max(told, default=None)
        self.state = "failed" if state == "lost" else state
        self.error = error
        self.outputs = outputs
        if state == "done":
            self.done[self.fingerprint] = outputs


def _text(event: Mapping[str, Any], name: str, default: str) -> str:
    value = event.get(name, default)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, got {value!r}")
    return value


def _number(event: Mapping[str, Any], name: str) -> float:
    value = event.get(name) or 0
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _whole(event: Mapping[str, Any], name: str) -> int | None:
    value = event.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    return value


class Ledger:
    """The events of a run folder, read once and appended to."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / NAME
        self.entries: dict[str, Entry] = {}
        self.read()

    def read(self) -> None:
        """Reads the file anew: other processes append to it, too."""
        self.entries = {}
        for event in self._events():
            entry = self.entries.setdefault(event["step"], Entry())
            entry.take(event)

    def entry(self, step: str) -> Entry:
        """What is known of a step; an empty one for a step that was never begun."""
        return self.entries.get(step) or Entry()

    def append(self, step: str, state: str, **told: Any) -> None:
        """Adds an event in one locked, synced write."""
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {"step": step, "state": state, "when": when, **told}
        data = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        try:
            with open(self.path, "ab+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if handle.seek(0, os.SEEK_END):
                    handle.seek(-1, os.SEEK_END)
                    if handle.read(1) != b"\n":  # a killed process was writing its line
                        data = b"\n" + data
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise LawError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.entries.setdefault(step, Entry()).take(json.loads(data))

    def _events(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise LawError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                event = json.loads(line)
                if not isinstance(event["step"], str):
                    raise ValueError("no step's name")
                Entry().take(event)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s, line %d is damaged and left out: %s", self.path, number, error)
                continue
            yield event
