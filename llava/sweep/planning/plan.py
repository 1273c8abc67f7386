"""What a sweep will take: steps, GPU hours, disk and memory, before the policy and by its end."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from llava.config import to_plain
from llava.sweep.config import SweepConfig
from llava.sweep.planning.items import Basis
from llava.sweep.planning.kinds import Kind, Total, kinds_of, together, total_of
from llava.sweep.planning.notes import left_out, notes, problems
from llava.sweep.planning.vision import Candidate


@dataclass(frozen=True)
class Memory:
    """The largest training step of a stage."""

    stage: str
    representation: str
    shown: str
    """The representation as people say it."""
    gpus: int
    parts: dict[str, float]
    """Bytes on each GPU, by what takes them."""

    @property
    def bytes(self) -> float:
        """On each GPU."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Each:
    """GPU hours of one representation."""

    representation: str
    shown: str
    tokens: int
    """Of an image; 0 where that is not known."""
    stage1: float | None
    stage2: float | None
    evaluate: float | None


@dataclass(frozen=True)
class Saving:
    """GPU hours of finetuning everything beside those of the policy."""

    runs: float
    """Finetuned until the policy stops, as expected."""
    all_stage1: float
    all_stage2: float
    all_evaluate: float
    scores: float
    """Of the policy's way: features and A scores."""
    stage1_runs: float
    stage1: float
    stage2: float
    evaluate: float
    further: float
    """One more run of stage 2 and its benchmarks."""
    partial: bool
    """Whether hours are missing that are not known."""

    @property
    def all(self) -> float:
        """Finetuning and evaluating every candidate."""
        return self.all_stage1 + self.all_stage2 + self.all_evaluate

    @property
    def policy(self) -> float:
        """The policy's way."""
        return self.scores + self.stage1 + self.stage2 + self.evaluate

    @property
    def share(self) -> float | None:
        """Of the hours of finetuning all that are not spent."""
        return 1 - self.policy / self.all if self.all else None


@dataclass(frozen=True)
class Plan:
    """Of a whole sweep."""

    name: str
    candidates: int
    towers: int
    llm: str
    cost_model: str
    gpu: str
    gpu_memory: float
    """Bytes."""
    utilisation: float
    decided: bool
    """Whether the policy decides what is finetuned."""
    kinds: tuple[Kind, ...]
    before: Total
    expected: Total
    most: Total
    writing: float
    """Bytes on top while a checkpoint of the largest step is written."""
    memory: tuple[Memory, ...]
    each: tuple[Each, ...]
    saving: Saving
    problems: tuple[str, ...]
    """What would stop the sweep later."""
    left_out: tuple[str, ...]
    """What no sum holds, and why."""
    notes: tuple[str, ...]
    """What the numbers rest on."""

    def plain(self) -> dict:
        """As what JSON holds."""
        return to_plain(self)


def plan(
    config: SweepConfig,
    representations: Sequence[Candidate],
    references: Sequence[Candidate] = (),
) -> Plan:
    """What the sweep will take with these candidates; `references` are those of the cosine A score.

    Nothing is loaded. Raises UsageError naming the key to set where a number is missing.
    """
    basis = Basis(config, list(representations), list(references))
    kinds = kinds_of(basis, config.policy)
    decided = config.policy.stage2 == "policy"
    asked = (
        kinds if decided else kinds_of(basis, dataclasses.replace(config.policy, stage2="policy"))
    )
    runs = [run for several in basis.runs.values() for run in several if run]
    return Plan(
        name=config.name,
        candidates=len(basis.candidates),
        towers=len(basis.towers),
        llm=config.llm,
        cost_model=config.cost.model,
        gpu=config.cost.gpu,
        gpu_memory=basis.card.memory * 1e9,
        utilisation=config.cost.utilisation,
        decided=decided,
        kinds=tuple(kinds),
        before=together(kinds, "before"),
        expected=together(kinds, "expected"),
        most=together(kinds, "most"),
        writing=max((run.writing for run in runs), default=0.0),
        memory=tuple(_memory(basis)),
        each=tuple(_each(basis)),
        saving=_saving(basis, asked),
        problems=tuple(problems(basis)),
        left_out=tuple(left_out(basis)),
        notes=tuple(notes(basis)),
    )


def _memory(basis: Basis) -> list[Memory]:
    """The largest step of each stage that is known."""
    found = []
    for kind, stage in basis.stages.items():
        runs = zip(basis.aligned, basis.runs[kind], strict=True)
        made = [Memory(kind, v.name, v.shown, stage.gpus, run.memory) for v, run in runs if run]
        if made:
            found.append(max(made, key=lambda memory: memory.bytes))
    return found


def _each(basis: Basis) -> list[Each]:
    """Every candidate by itself."""
    stage1 = basis.stage1()[len(basis.references) :]
    rows = zip(basis.candidates, stage1, basis.stage2(), basis.evaluate(), strict=True)
    return [Each(v.name, v.shown, v.tokens, *(i.hours for i in items)) for v, *items in rows]


def _saving(basis: Basis, asked: list[Kind]) -> Saving:
    """`asked`: the kinds as they are where the policy decides."""
    own = {kind.name: kind.expected for kind in asked}
    scores = ("features", "c-score", "train-features", "nll", "dump", "cosine")
    stage2, evaluate = own["stage2"], own["evaluate"]
    return Saving(
        runs=stage2.steps,
        all_stage1=total_of(basis.stage1()[len(basis.references) :]).hours,
        all_stage2=total_of(basis.stage2()).hours,
        all_evaluate=total_of(basis.evaluate()).hours,
        scores=sum(own[name].hours for name in scores if name in own),
        stage1_runs=own["stage1"].steps,
        stage1=own["stage1"].hours,
        stage2=stage2.hours,
        evaluate=evaluate.hours,
        further=(stage2.hours + evaluate.hours) / stage2.steps,
        partial=any(kind.unknown for kind in asked),
    )
