"""What a plan's sums do not hold, and what its numbers rest on, in words."""

from collections.abc import Iterator
from pathlib import Path

from llava.sweep.planning.facts import facts
from llava.sweep.planning.items import Basis
from llava.sweep.planning.training import image_tokens, projector

SHOWN = 5
"""Names that a line has; the others are counted."""


def left_out(basis: Basis) -> Iterator[str]:
    """What no sum holds, by name."""
    unknown = [tower.name for tower in basis.towers if tower.spec and not tower.cost]
    if unknown:
        yield f"what these towers themselves take, which nobody has counted: {_names(unknown)}"
    absent = [vision.name for vision in basis.aligned if not vision.tokens]
    if absent:
        yield f"training on towers that `prepare` will make: {_names(absent)}"
    if basis.llm is None:
        yield f"the language model, and what follows from its size: no {basis.config.llm} here"
    for kind, stage in basis.stages.items():
        if stage.data is None:
            yield f"{kind}: `prepare` will make its data; cost: {{samples: {{{kind}: N}}}}"
    if basis.images is None:
        yield "features: `prepare` will make the images; cost: {samples: {correspondence: N}}"
    if basis.model and basis.model.stage1 is None:
        yield (
            f"stage 1 by itself: cost model {basis.config.cost.model} has no figure, so runs of "
            "stage 1 that no stage 2 follows count nothing; stage 2 below is both stages"
        )
    if basis.questions[1]:
        names = _names(basis.questions[1])
        yield f"benchmarks of unknown size: {names}; cost: {{samples: {{NAME: N}}}}"
    kind = basis.config.stage1.get("mm_projector_type")
    if kind and kind != "identity" and not projector({"mm_projector_type": kind}, 1, 1):
        yield f"the parameters of projector {kind}"
    for name, stage in basis.stages.items():
        listed = stage.flags.get("deepspeed")
        if isinstance(listed, str) and not Path(listed).is_file():
            yield f"{name}: DeepSpeed's sharding; {listed} is not there, so memory is too high"
    own = len(basis.config.prepare) + len(basis.config.finish)
    if own:
        yield f"steps of your own (prepare, finish): {own}"
    yield "c-score, cosine, the policy's questions, the report: minutes of a CPU"


def notes(basis: Basis) -> Iterator[str]:
    """What the numbers rest on."""
    cost = basis.config.cost
    yield "in turn: one step at a time, each on its GPUs"
    if basis.model:
        yield (
            f"stages: {basis.model.total:g} GPU hours a representation, whatever it is "
            f"({basis.model.gpu}; {basis.model.source})"
        )
    yield (
        f"FLOPs, of which {cost.gpu} does {100 * cost.utilisation:.0f} % of its "
        f"{basis.card.tflops:g} TFLOP/s in bf16 (measure yours with benchmarks/mfu.py; "
        "cost.utilisation). At 40 % LLaVA-1.5 would take 99 A100 hours; its README has 108"
    )
    for kind, stage in basis.stages.items():
        if stage.data:
            own = kind in cost.tokens
            yield (
                f"{kind}: {stage.data.records:,} records, {stage.data.images:,} with an image "
                f"({stage.data.source}); {stage.data.tokens} text tokens "
                f"({f'cost.tokens.{kind}' if own else f'assumed; cost.tokens.{kind}'})"
            )
    question = facts().question
    yield (
        f"evaluate: {basis.questions[0]:,} questions of {question.text} text tokens and "
        f"{question.answer} of answer at {100 * question.utilisation:.0f} % (assumed)"
    )
    if basis.images is not None:
        yield f"features: {basis.images:,} images"
    if basis.config.features and basis.trained is not None:
        yield f"train-features: {basis.trained:,} images (cost.samples.features)"
    if any(s.flags.get("image_aspect_ratio") == "anyres" for s in basis.stages.values()):
        yield "anyres: an image is counted as one view; it has up to five"


def problems(basis: Basis) -> Iterator[str]:
    """What would stop the sweep later."""
    for kind, stage in basis.stages.items():
        long = [v for v in basis.aligned if image_tokens(stage.flags, v) >= stage.max_length]
        if long:
            names = _names([f"{v.shown} ({v.tokens:,} tokens)" for v in long])
            yield f"{kind}: an image alone fills model_max_length {stage.max_length}: {names}"
    launch = basis.config.launch
    if launch.how == "here" and launch.gpus:
        for kind, wanted in launch.gpus_per_step.items():
            if wanted > launch.gpus:
                yield f"{kind} takes {wanted} GPUs (launch.gpus_per_step) of {launch.gpus}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
