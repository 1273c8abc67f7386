"""What one run of stage 1 or stage 2 takes: GPU hours, memory of a GPU, disk."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.config import read_yaml
from llava.estimate import Sizes, Way, disk, gpu, gpu_hours, memory, training_flops
from llava.files import read_json
from llava.sweep.config import Flags, SweepConfig
from llava.sweep.planning.facts import facts
from llava.sweep.planning.language_model import LanguageModel
from llava.sweep.planning.records import Count, training_records
from llava.sweep.planning.vision import Vision

MLP = re.compile(r"mlp([1-9][0-9]*)x_gelu")
PERCEIVER_TOKENS = 64


@dataclass(frozen=True)
class Stage:
    """A training stage of the sweep: its flags, its data, its GPUs."""

    kind: str
    flags: Flags
    data: Count | None
    gpus: int
    stored: bool
    """Whether tower tokens are read from a store, and no tower is run."""

    def number(self, name: str, default: float) -> float:
        """A flag that is a number."""
        value = self.flags.get(name)
        return default if value is None else float(value)

    def true(self, name: str) -> bool:
        """A flag that is a truth value, however it is spelled."""
        return str(self.flags.get(name, False)).lower() in ("true", "1", "yes")

    @property
    def max_length(self) -> int:
        """Tokens of a sample, its image's included; 2048 is `law train`'s."""
        return int(self.number("model_max_length", 2048))

    @property
    def batch(self) -> int:
        """Samples of a step on one GPU; 8 is transformers'."""
        return int(self.number("per_device_train_batch_size", 8))

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return int(self.batch * self.number("gradient_accumulation_steps", 1) * self.gpus)

    @property
    def steps(self) -> int:
        """Of the whole run; 3 epochs are transformers'."""
        if self.number("max_steps", 0) > 0:
            return int(self.number("max_steps", 0))
        return math.ceil(self.data.records / self.global_batch * self._epochs)

    @property
    def samples(self) -> float:
        """Records that are seen, again in every epoch."""
        if self.number("max_steps", 0) > 0:
            return self.steps * self.global_batch
        return self.data.records * self._epochs

    @property
    def _epochs(self) -> float:
        return self.number("num_train_epochs", 3)

    @property
    def saves(self) -> int:
        """Checkpoints that are written; every 500 steps is transformers'."""
        if self.flags.get("save_strategy", "steps") != "steps":
            return 0 if self.flags["save_strategy"] == "no" else math.ceil(self._epochs)
        every = self.number("save_steps", 500)
        return int(self.steps // max(1, every if every >= 1 else every * self.steps))


@dataclass(frozen=True)
class Run:
    """One run of a stage."""

    hours: float
    """Of one GPU, in all."""
    kept: float
    """Bytes that stay in its folder."""
    writing: float
    """Bytes that come on top while a checkpoint is written."""
    memory: dict[str, float]
    """Bytes on each GPU, by what takes them."""


def stage_of(config: SweepConfig, kind: str) -> Stage:
    """`stage1` or `stage2` of the sweep."""
    flags: Flags = dict(getattr(config, kind))
    listed = flags.get("config")
    if isinstance(listed, str) and Path(listed).is_file():
        flags = {**read_yaml(listed), **flags}
    data = training_records(config, kind, str(flags.get("data_path") or ""))
    gpus = config.launch.gpus_per_step.get(kind, 1)
    return Stage(kind, flags, data, gpus, config.features is not None)


def projector(flags: Flags, dim: int, hidden: int) -> int:
    """Parameters of the projector; 0 of one that only building it would tell (perceiver)."""
    kind = flags.get("mm_projector_type") or "mlp2x_gelu"
    if kind == "linear":
        return dim * hidden + hidden
    if layers := MLP.fullmatch(kind):
        return (dim + 1) * hidden + (int(layers[1]) - 1) * (hidden + 1) * hidden
    return 0


def image_tokens(flags: Flags, vision: Vision) -> int:
    """Tokens of an image that reach the language model."""
    perceiver = str(flags.get("mm_projector_type") or "").startswith("perceiver")
    return PERCEIVER_TOKENS if perceiver else vision.tokens


def run_of(config: SweepConfig, stage: Stage, llm: LanguageModel, vision: Vision) -> Run:
    """What the stage takes with this representation."""
    sizes = _sizes(stage, llm, vision)
    seen, checkpointing = stage.samples, stage.true("gradient_checkpointing")
    images = seen * stage.data.images / max(1, stage.data.records)
    shown = image_tokens(stage.flags, vision)
    with_image = min(stage.max_length, shown + stage.data.tokens)
    without = min(stage.max_length, stage.data.tokens)
    tokens = images * with_image + (seen - images) * without
    flops = training_flops(sizes, tokens, images, checkpointing)
    way = _way(stage, shown)
    partial = stage.kind == "stage1" or stage.true("lora_enable")
    limit = int(stage.number("save_total_limit", 0))
    stay = min(stage.saves, limit) if limit else stage.saves
    kept, most = (disk(sizes, way, partial, None, n) for n in (stay, min(stay + 1, stage.saves)))
    return Run(
        hours=gpu_hours(flops, gpu(config.cost.gpu), config.cost.utilisation),
        kept=kept,
        writing=most - kept,
        memory=memory(sizes, way),
    )


def _sizes(stage: Stage, llm: LanguageModel, vision: Vision) -> Sizes:
    connector = projector(stage.flags, vision.dim, llm.hidden)
    if stage.kind == "stage1":
        frozen, trained = llm.parameters, connector
    elif stage.true("lora_enable"):
        adapters = llm.adapters(int(stage.number("lora_r", 64)))
        frozen, trained = llm.parameters, connector + adapters
    else:
        frozen, trained = 0, llm.parameters + connector
    return Sizes(
        frozen=frozen,
        trained=trained,
        tower=0 if stage.stored else vision.parameters,
        layers=llm.layers,
        hidden=llm.hidden,
        vocabulary=llm.vocabulary,
        tower_flops=0.0 if stage.stored else vision.flops,
    )


def _way(stage: Stage, shown: int) -> Way:
    zero: dict[str, Any] = {}
    listed = stage.flags.get("deepspeed")
    if isinstance(listed, str) and Path(listed).is_file():
        zero = read_json(listed).get("zero_optimization", {})
    half = stage.true("bf16") or stage.true("fp16")
    length, supervised = stage.max_length, 0.5
    if stage.flags.get("version") == "plain":
        length = min(length, shown + facts().longest_caption)
        supervised = min(1.0, facts().longest_caption / length)
    return Way(
        batch=stage.batch,
        length=length,
        processes=stage.gpus,
        zero=int(zero.get("stage", 0)),
        offload_weights=_offloaded(zero, "offload_param"),
        offload_optimizer=_offloaded(zero, "offload_optimizer"),
        half=half,
        frozen_bytes=2 if half else 4,
        checkpointing=stage.true("gradient_checkpointing"),
        supervised=supervised,
    )


def _offloaded(zero: dict[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"
