"""The YAML of a sweep, as dataclasses: representations, language model, data, scores, policy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava.errors import unknown_name
from llava.sweep.kinds import FOLDERS, GO_ON, KINDS, SEVERAL
from llava.sweep.step import StepConfig, check_steps

Flags = dict[str, Any]
"""Flags of a command without their dashes, e.g. {num_train_epochs: 2}; true stands alone."""


@dataclass(frozen=True)
class Search:
    """A space of representations: every combination of up to `up_to` of the encoders."""

    encoders: list[str]
    up_to: int
    """Encoders of a combination, at most."""
    without: list[list[str]] = field(default_factory=list)
    """Encoders that do not go together."""

    def __post_init__(self):
        if not 1 <= self.up_to <= len(self.encoders):
            raise ValueError(
                f"up_to: {self.up_to}; expected 1 to {len(self.encoders)}, the number of encoders"
            )


@dataclass(frozen=True)
class Features:
    """Tower tokens that training and scoring read from a store, so that no tower runs twice."""

    images: Path
    """What training shows; searched whole."""
    flags: Flags = field(default_factory=dict)
    """Of `law features`."""
    evaluate: bool = False
    """Keep and read the tokens of benchmarks' images, too."""


@dataclass(frozen=True)
class Correspondence:
    """The C score: of every representation of the sweep, from the stored tokens of its towers."""

    data: Path
    """Of `law c-score --data`."""
    images: Path | None = None
    """Unset: JPEGImages in `data`."""
    features: Flags = field(default_factory=lambda: {"frame": "pad"})
    """Flags of `law features`."""
    flags: Flags = field(default_factory=dict)
    """Of `law c-score`."""

    @property
    def image_folder(self) -> Path:
        """Where `law features` finds the images."""
        return self.images or self.data / "JPEGImages"


@dataclass(frozen=True)
class Cosine:
    """The A score as cosine, to references that the YAML names."""

    benchmarks: list[str]
    """Whose images are looked at: lmms-eval tasks, or names for what `images` says."""
    references: list[str]
    """Representations whose projected tokens count as aligned; stage 1 is run on them, too."""
    images: dict[str, Path] = field(default_factory=dict)
    """Benchmark -> a folder, or a JSON of records."""
    flags: Flags = field(default_factory=dict)
    """Of `law a-score dump`."""


@dataclass(frozen=True)
class Likelihood:
    """The A score as negative log-likelihood of captions."""

    flags: Flags = field(default_factory=dict)
    """Of `law a-score nll`, over those of stage 1: data_path and a_score_samples, usually."""


@dataclass(frozen=True)
class Alignment:
    """Which A scores are measured, and which one the law takes."""

    law: Literal["cosine", "nll"]
    cosine: Cosine | None = None
    nll: Likelihood | None = None

    def __post_init__(self):
        if getattr(self, self.law) is None:
            raise ValueError(f"law: {self.law}, but there is no '{self.law}' beside it")


@dataclass(frozen=True)
class Evaluation:
    """Benchmarks of what stage 2 has trained."""

    tasks: list[str]
    flags: Flags = field(default_factory=dict)
    """Of `law evaluate`."""


@dataclass(frozen=True)
class Policy:
    """What is trained, and when it is enough."""

    stage1: Literal["all", "policy"] = "all"
    """all: every representation gets its A scores; policy: those that the policy asks for."""
    stage2: Literal["all", "policy"] = "policy"
    """all: everything is finetuned, whatever the policy says; policy: what it proposes."""
    first: list[str] = field(default_factory=list)
    """With `stage1: policy`, what it is run on before the policy is asked; unset: what is one
    encoder alone."""
    at_once: int = 1
    """Representations that are finetuned before the policy is asked again."""
    most_stage1: int | None = None
    """With `stage1: policy`, representations that get A scores at most, the first ones among them;
    unset: as many as there are."""
    most_stage2: int | None = None
    flags: Flags = field(default_factory=dict)
    """Of `law policy propose`: tolerance, paper, seed, rank-anyway, ..."""

    def __post_init__(self):
        for name in ("at_once", "most_stage1", "most_stage2"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if self.stage1 == "policy" and self.stage2 == "all":
            raise ValueError("stage1: policy needs stage2: policy; stage 2 begins with a projector")
        self._check_effects()

    def _check_effects(self) -> None:
        """Raises ValueError for what would be said in vain."""
        without_effect = {
            "stage1": {"first": self.first, "most_stage1": self.most_stage1},
            "stage2": {
                "at_once": self.at_once != 1,  # RUN/config.yaml has the defaults, too
                "most_stage2": self.most_stage2,
                "flags": self.flags,
            },
        }
        for stage, given in without_effect.items():
            for name in filter(given.get, given):
                if getattr(self, stage) == "all":
                    raise ValueError(
                        f"{name}: without effect beside {stage}: all; leave it out, or say "
                        f"{stage}: policy"
                    )


@dataclass(frozen=True)
class Cost:
    """How the plan counts GPU hours; see llava/costs.yaml and `law run --plan`."""

    model: str = "flops"
    """paper, authors, llava, or flops: FLOPs over a share of a GPU's peak."""
    gpu: str = "A100-80GB"
    utilisation: float = 0.4
    """Of the peak, with `flops`."""
    samples: dict[str, int] = field(default_factory=dict)
    """Records of data that are not here: stage1, stage2, correspondence, and benchmark names."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Text tokens of a record, on average, with `flops`: stage1, stage2."""


@dataclass(frozen=True)
class Launch:
    """Where steps run: here, or as jobs of a Slurm cluster."""

    how: Literal["here", "slurm"] = "here"
    at_once: int = 1
    """Steps that run here at the same time."""
    gpus: int | None = None
    """GPUs of this machine that steps share out among them; unset: all that are visible."""
    gpus_per_step: dict[str, int] = field(default_factory=dict)
    """stage1, nll, dump, stage2, evaluate -> GPUs of such a step (without GPUs: processes); others
    take one, or none."""
    launcher: Literal["torchrun", "accelerate", "deepspeed"] = "torchrun"
    """What starts the processes of steps that take several."""
    slurm: Flags = field(default_factory=dict)
    """submitit's parameters without their prefix, for every job: partition, time, ..."""
    slurm_per_step: dict[str, Flags] = field(default_factory=dict)
    """Kind of step -> its own over these."""

    def __post_init__(self):
        if self.at_once < 1:
            raise ValueError(f"at_once: expected 1 or more, got {self.at_once}")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus: expected 0 or more, got {self.gpus}")
        for kind, processes in self.gpus_per_step.items():
            if kind in KINDS and kind not in SEVERAL:
                takes = "one GPU" if KINDS[kind].gpu else "no GPU"
                raise ValueError(
                    f"gpus_per_step: {kind} takes {takes}; expected some of {', '.join(SEVERAL)}"
                )
            if kind not in KINDS:
                raise ValueError(f"gpus_per_step: {unknown_name('kind of step', kind, SEVERAL)}")
            if processes < 1:
                raise ValueError(f"gpus_per_step: {kind}: expected 1 or more, got {processes}")


@dataclass(frozen=True)
class SweepConfig:
    """One experiment, from encoders to a recommendation."""

    name: str
    run_dir: Path
    llm: str
    """Base language model: a folder or hub id."""
    stage1: Flags
    """Flags of `law train`: data_path, image_folder, epochs, ..."""
    stage2: Flags
    correspondence: Correspondence
    alignment: Alignment
    evaluation: Evaluation
    representations: list[str] = field(default_factory=list)
    search: Search | None = None
    towers: dict[str, str] = field(default_factory=dict)
    """Name -> the folder or hub id that a tower's weights are read from."""
    prepare: list[StepConfig] = field(default_factory=list)
    """Steps before all others: what makes data, models and towers."""
    finish: list[StepConfig] = field(default_factory=list)
    """Steps after all others."""
    features: Features | None = None
    """Unset: towers run during training."""
    policy: Policy = field(default_factory=Policy)
    report: Flags = field(default_factory=dict)
    """Flags of `law report`."""
    cost: Cost = field(default_factory=Cost)
    launch: Launch = field(default_factory=Launch)

    def __post_init__(self):
        if not self.representations and not self.search:
            raise ValueError("expected `representations` or `search`, what to choose among")
        self._check_most_stage1()
        steps = [*self.prepare, *self.finish]
        self._check_own_names(steps)
        check_steps(steps)

    def _check_most_stage1(self) -> None:
        encoders = [*self.representations, *(self.search.encoders if self.search else ())]
        alone = {name for name in encoders if "+" not in name}
        first, most = set(self.policy.first) or alone, self.policy.most_stage1
        if most is not None and len(first) > most:
            raise ValueError(
                f"policy: most_stage1: {most}, but {len(first)} get A scores before the policy is "
                "asked; expected as many or more, or fewer names in `first`"
            )

    def _check_own_names(self, steps: Sequence[StepConfig]) -> None:
        for step in steps:
            if step.name in (*KINDS, GO_ON):
                raise ValueError(
                    f"step '{step.name}': the sweep has steps of that name; give it another one"
                )
            if step.folder and Path(step.folder).parts[0] in FOLDERS:
                raise ValueError(
                    f"{step.name}: folder '{step.folder}' is the sweep's own; expected another one"
                )
