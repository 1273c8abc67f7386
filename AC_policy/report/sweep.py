"""A sweep as `law run` left it in `summary.json`: steps, rounds of the policy, and the plan."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava.config import build
from llava.errors import ConfigError, UsageError

BAD = ("failed", "blocked", "left out")
"""States of a step that the reader must know of first, in this order."""


@dataclass(frozen=True)
class Step:
    """One step: what it was, how it ended, what it cost."""

    name: str
    kind: str
    state: Literal["done", "failed", "blocked", "left out", "running", "submitted", "waiting"]
    representation: str | None = None
    """None: the step serves all of them."""
    seconds: float | None = None
    gpu_hours: float | None = None
    gpus: int | None = None
    peak_memory: int | None = None
    """Bytes of the host's memory."""
    peak_gpu_memory: int | None = None
    started: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over the steps, and how many are in which state."""

    seconds: float
    gpu_hours: float | None
    steps: dict[str, int]


@dataclass(frozen=True)
class Round:
    """One answer of the policy, and what was run on it."""

    round: int
    json: str
    """What `law policy propose` wrote, seen from the summary's folder."""
    stage1: list[str]
    stage2: list[str]
    stop: bool
    reason: str = ""


@dataclass(frozen=True)
class Saving:
    """GPU hours that the plan counted: of finetuning everything, and of the policy's way."""

    runs: float
    """Finetuned until the policy stops, as expected."""
    all_stage1: float
    all_stage2: float
    all_evaluate: float
    scores: float
    stage1: float
    stage2: float
    evaluate: float
    partial: bool = False
    """Whether hours are missing that were not known."""

    @property
    def all(self) -> float:
        """Of finetuning and evaluating every candidate."""
        return self.all_stage1 + self.all_stage2 + self.all_evaluate

    @property
    def policy(self) -> float:
        """Of the policy's way."""
        return self.scores + self.stage1 + self.stage2 + self.evaluate


@dataclass(frozen=True)
class Plan:
    """What the sweep was expected to take, before anything ran."""

    candidates: int
    cost_model: str
    gpu: str
    saving: Saving


@dataclass(frozen=True)
class Proposal:
    """What `law policy propose` said in a round; of each benchmark, what it then knew."""

    stage1: list[str]
    stage2: list[str]
    stop: bool
    reason: str
    finetuned: list[str]
    benchmarks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """`summary.json`, and the proposals that it names."""

    name: str
    config: str | None
    finished: bool
    steps: list[Step]
    totals: Totals
    rounds: list[Round] = field(default_factory=list)
    plan: Plan | None = None
    proposals: dict[int, Proposal] = field(default_factory=dict, init=False)
    """Round -> what was said in it; a round whose file is not there has none."""

    def of_state(self, state: str) -> list[Step]:
        """The steps in a state, in their order."""
        return [step for step in self.steps if step.state == state]

    def trained(self) -> list[str]:
        """Representations whose stage 2 is done."""
        return [
            step.representation
            for step in self.of_state("done")
            if step.kind == "stage2" and step.representation
        ]


def read(path: Path) -> Sweep:
    """The sweep of a summary; UsageError (file, key, what was expected) for another file."""
    found = _read(path)
    if isinstance(found, dict) and isinstance(found.get("plan"), dict):
        plan = _shown(Plan, found["plan"])
        if isinstance(plan.get("saving"), dict):
            plan["saving"] = _shown(Saving, plan["saving"])
        found = found | {"plan": plan}
    sweep = _build(Sweep, found, path, "`law run`")
    for entry in sweep.rounds:
        said = path.parent / entry.json
        if said.exists():
            found = _read(said)
            found = _shown(Proposal, found) if isinstance(found, dict) else found
            proposal = _build(Proposal, found, said, "`law policy propose --json`")
            sweep.proposals[entry.round] = proposal
    return sweep


def _shown(cls: type, found: dict[str, Any]) -> dict[str, Any]:
    """Without the keys of another command's output that the report has no use for."""
    return {key: value for key, value in found.items() if key in cls.__dataclass_fields__}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}") from error


def _build(cls: type, found: Any, path: Path, writer: str):
    try:
        return build(cls, found)
    except ConfigError as error:
        raise UsageError(f"{path}: {error}; expected what {writer} writes") from None


def seconds(steps: Iterable[Step]) -> float:
    """Time of the steps together; those that did not say count as none."""
    return sum(step.seconds or 0.0 for step in steps)


def gpu_hours(steps: Iterable[Step]) -> float:
    """GPU hours of the steps together."""
    return sum(step.gpu_hours or 0.0 for step in steps)
