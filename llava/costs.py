"""What finetuning costs, and what stopping early saves; the figures are data in costs.yaml."""

import functools
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml
from llava.errors import UsageError, unknown_name


@dataclass(frozen=True)
class CostModel:
    """GPU hours of one representation."""

    total: float
    """Both stages."""
    stage1: float | None
    """The projector alone, which the A score needs; None where the source does not say."""
    gpu: str
    source: str


@dataclass(frozen=True)
class Savings:
    """GPU hours of a policy against finetuning every candidate."""

    model: str
    all: float
    """Finetuning every candidate."""
    spent: float
    """The candidates finetuned, and stage 1 of every other one where its cost is known."""
    saved: float
    next: float
    """One more finetuning run; stage 1 is done already where its cost is known."""
    note: str


@functools.cache
def cost_models() -> dict[str, CostModel]:
    """Every cost model by name."""
    entries = read_yaml(Path(__file__).with_name("costs.yaml"))
    return {name: build(CostModel, entry, name) for name, entry in entries.items()}


def savings(name: str, candidates: int, finetuned: int) -> Savings:
    """What was saved when `finetuned` of `candidates` were run; raises UsageError on the name."""
    if name not in cost_models():
        raise UsageError(unknown_name("cost model", name, cost_models()))
    model = cost_models()[name]
    stage1 = model.stage1 or 0.0
    spent = finetuned * model.total + (candidates - finetuned) * stage1
    note = f"{model.gpu}; {model.source}"
    if model.stage1 is None:
        note += "; stage 1 of the candidates not finetuned (for their A score) is not included"
    return Savings(
        model=name,
        all=candidates * model.total,
        spent=spent,
        saved=candidates * model.total - spent,
        next=model.total - stage1,
        note=note,
    )
