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


@dataclass(frozen=True)
class PublishedSum:
    """One way to count what the paper's policy saves: `runs` of `candidates` finetuned."""

    meaning: str
    candidates: int
    runs: float

    @property
    def saved(self) -> float:
        """Share of the finetuning runs, and so of their GPU hours, that is not spent."""
        return 1 - self.runs / self.candidates


@dataclass(frozen=True)
class PublishedSaving:
    """The saving that the paper states, and the sums that it may come from."""

    saved: float
    """The share that is stated."""
    source: str
    hours_per_run: float
    """GPU hours of one finetuning run, as the paper counts them."""
    sums: list[PublishedSum]

    def __post_init__(self):
        if not self.sums:
            raise ValueError("sums: expected at least one")

    def hours(self, runs: float) -> float:
        """GPU hours of that many runs."""
        return runs * self.hours_per_run

    def lines(self) -> list[str]:
        """Every sum as a line of text, for plans and reports."""
        return [
            f"{entry.meaning}: {self.hours(entry.runs):,.0f} of "
            f"{self.hours(entry.candidates):,.0f} GPU hours, {100 * entry.saved:.2f} % saved"
            for entry in self.sums
        ]


def cost_models() -> dict[str, CostModel]:
    """Every cost model by name."""
    return {name: build(CostModel, entry, name) for name, entry in _file()["models"].items()}


def published_saving() -> PublishedSaving:
    """What the paper says its policy saves."""
    return build(PublishedSaving, _file()["published"], "published")


@functools.cache
def _file() -> dict:
    return read_yaml(Path(__file__).with_name("costs.yaml"))


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
