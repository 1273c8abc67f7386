"""Every step that a sweep may run, with its GPU hours and disk, by kind."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava import catalog
from llava.costs import CostModel, cost_models
from llava.errors import UsageError, unknown_name
from llava.estimate import gpu, gpu_hours
from llava.model.multimodal_encoder.registry import resolve
from llava.sweep.config import Cosine, Flags, SweepConfig
from llava.sweep.planning.facts import facts
from llava.sweep.planning.language_model import LanguageModel, language_model
from llava.sweep.planning.records import correspondence_images, images_in
from llava.sweep.planning.training import Run, Stage, image_tokens, run_of, stage_of
from llava.sweep.planning.vision import Candidate, Tower, Vision, distinct_towers, vision_of

FLOPS = "flops"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PIECES = 100
"""Images of a benchmark, and records of a likelihood, as `law a-score` takes them by itself."""


@dataclass(frozen=True)
class Item:
    """One step."""

    name: str
    hours: float | None
    """Of GPUs, in all; None where it is not known."""
    disk: float | None = 0.0
    """Bytes that it leaves; None where that is not known."""


class Basis:
    """What a sweep's steps are counted from; each count is made once.

    Attributes:
        candidates: what is chosen among.
        references: those of the cosine A score that are no candidates.
    """

    def __init__(
        self,
        config: SweepConfig,
        representations: list[Candidate],
        references: list[Candidate],
    ):
        self.config = config
        self.candidates = [vision_of(one) for one in representations]
        names = {vision.name for vision in self.candidates}
        others = [vision_of(one) for one in references if one.name not in names]
        self.references = others if config.alignment.cosine else []
        self.stages = {kind: stage_of(config, kind) for kind in ("stage1", "stage2")}
        self.card = gpu(config.cost.gpu)
        models = [FLOPS, *cost_models()]
        if config.cost.model not in models:
            raise UsageError(f"cost: {unknown_name('model', config.cost.model, models)}")

    @cached_property
    def model(self) -> CostModel | None:
        """The named cost model; None where FLOPs are counted."""
        return cost_models().get(self.config.cost.model)

    @cached_property
    def llm(self) -> LanguageModel | None:
        """The language model's shape; None where a step of `prepare` will make it."""
        try:
            return language_model(self.config.llm)
        except UsageError:
            if self.config.prepare or self.model:
                return None
            raise

    @cached_property
    def images(self) -> int | None:
        """Images of the C score."""
        return correspondence_images(self.config)

    @cached_property
    def trained(self) -> int | None:
        """Images whose tokens training reads from a store."""
        features, samples = self.config.features, self.config.cost.samples
        if "features" in samples:
            return samples["features"]
        if Path(features.images).is_dir():
            return images_in(features.images)
        data = [stage.data for stage in self.stages.values()]
        return None if None in data else sum(entry.images for entry in data)

    @cached_property
    def aligned(self) -> list[Vision]:
        """What stage 1 may be run on, references first."""
        return [*self.references, *self.candidates]

    @cached_property
    def towers(self) -> list[Tower]:
        """Every tower of the candidates, once."""
        return distinct_towers(self.candidates)

    @cached_property
    def first(self) -> set[str]:
        """Names of what stage 1 is run on before the policy is asked."""
        policy = self.config.policy
        if policy.stage1 == "all":
            chosen = {vision.name for vision in self.candidates}
        elif policy.first:
            chosen = {self._full(name) for name in policy.first}
        else:
            chosen = {vision.name for vision in self.candidates if len(vision.towers) == 1}
        return chosen | {vision.name for vision in self.references}

    def _full(self, name: str) -> str:
        if any(name == vision.name for vision in self.candidates):
            return name
        try:
            return resolve(name, replace=self._moved(name)).name
        except UsageError:
            return name

    def _moved(self, name: str) -> dict[str, str]:
        return {old: new for old, new in self.config.towers.items() if old in name}

    # the steps of each kind ----------------------------------------------------------------------

    def features(self) -> list[Item]:
        """Tokens for the C score, of every tower."""
        return self._extracted(self.towers, self.images, self.config.correspondence.features)

    def c_score(self) -> list[Item]:
        """One step on the CPU."""
        return [Item("c-score", 0.0)]

    def train_features(self, among: list[Vision]) -> list[Item]:
        """Tokens that training reads, of every tower of `among`."""
        if not self.config.features:
            return []
        towers = distinct_towers(among)
        return self._extracted(towers, self.trained, self.config.features.flags)

    def _extracted(self, towers: list[Tower], images: int | None, flags: Flags) -> list[Item]:
        size = BYTES.get(str(flags.get("dtype", "float32")), 4)
        made = []
        for tower in towers:
            known = images is not None and tower.cost is not None
            hours = self._hours(images * tower.flops) if known else None
            settled = images is not None and tower.spec is not None
            disk = float(images) * tower.floats * size if settled else None
            made.append(Item(tower.name, hours, disk))
        return made

    @cached_property
    def runs(self) -> dict[str, list[Run | None]]:
        """Stage -> its run with each of `aligned`; None where it cannot be known."""
        return {kind: [self._run(s, v) for v in self.aligned] for kind, s in self.stages.items()}

    def _run(self, stage: Stage, vision: Vision) -> Run | None:
        if self.llm is None or stage.data is None or not vision.tokens:
            return None
        return run_of(self.config, stage, self.llm, vision)

    def stage1(self) -> list[Item]:
        """Of references and candidates."""
        return [
            Item(vision.name, self._stage_hours("stage1", run), run.kept if run else None)
            for vision, run in zip(self.aligned, self.runs["stage1"], strict=True)
        ]

    def stage2(self) -> list[Item]:
        """Of the candidates."""
        runs = self.runs["stage2"][len(self.references) :]
        return [
            Item(vision.name, self._stage_hours("stage2", run), run.kept if run else None)
            for vision, run in zip(self.candidates, runs, strict=True)
        ]

    def _stage_hours(self, kind: str, run: Run | None) -> float | None:
        if self.model is None:
            return run.hours if run else None
        if kind == "stage1":
            return self.model.stage1
        return self.model.total - (self.model.stage1 or 0.0)

    def nll(self) -> list[Item]:
        """Captions through every candidate, forward."""
        flags = {**self.config.stage1, **self.config.alignment.nll.flags}
        records = int(flags.get("a_score_samples") or PIECES)
        text = self.stages["stage1"].data
        return self._answered(records, (text.tokens if text else 0), self.config.cost.utilisation)

    def dump(self) -> list[Item]:
        """Projected tokens of benchmarks' images, of references and candidates."""
        cosine: Cosine = self.config.alignment.cosine
        images = int(cosine.flags.get("n") or PIECES) * len(cosine.benchmarks)
        width = self.llm.hidden if self.llm else 0
        half = self.stages["stage1"].true("bf16") or self.stages["stage1"].true("fp16")
        size = BYTES.get(str(cosine.flags.get("dtype")), 2 if half else 4)
        made = []
        for vision in self.aligned:
            known = all(tower.cost for tower in vision.towers)
            hours = self._hours(images * vision.flops) if known else None
            tokens = image_tokens(self.config.stage1, vision)
            disk = float(images) * tokens * width * size
            made.append(Item(vision.name, hours, disk or None))
        return made

    def cosine(self) -> list[Item]:
        """On the CPU."""
        return [Item(vision.name, 0.0) for vision in self.candidates]

    def evaluate(self) -> list[Item]:
        """Benchmarks of every candidate."""
        question = facts().question
        text = question.text + question.answer
        return self._answered(self.questions[0], text, question.utilisation)

    @property
    def benchmarks(self) -> list[str]:
        """What `evaluation` names, a set's members for its name."""
        sets, tasks = catalog.benchmark_sets(), self.config.evaluation.tasks
        return list(dict.fromkeys(name for task in tasks for name in sets.get(task, [task])))

    @cached_property
    def questions(self) -> tuple[int, list[str]]:
        """Questions of all benchmarks, and the benchmarks that have no known number of them."""
        limit, samples = self.config.evaluation.flags.get("limit"), self.config.cost.samples
        total, missing = 0, []
        for name in self.benchmarks:
            entry = catalog.benchmarks().get(catalog.benchmark_id(name))
            items = samples.get(name) or (entry.items if entry else None) or limit
            if items is None:
                missing.append(name)
            else:
                total += min(int(items), int(limit)) if limit else int(items)
        return total, missing

    def _answered(self, questions: int, text: int, utilisation: float) -> list[Item]:
        """Forward passes over image and text."""
        made = []
        for vision in self.candidates:
            hours = None
            if self.llm and vision.tokens:
                tokens = image_tokens(self.config.stage1, vision) + text
                flops = questions * (2.0 * self.llm.parameters * tokens + vision.flops)
                hours = gpu_hours(flops, self.card, utilisation)
            made.append(Item(vision.name, hours))
        return made

    def _hours(self, flops: float) -> float:
        return gpu_hours(flops, self.card, self.config.cost.utilisation)
