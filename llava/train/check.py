"""`law train --check`: what would stop or spoil a run, found without a GPU and before one is taken.

Every part is looked at, whatever the others found; problems come together at the end.
"""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.dataset import ConversationDataset
from llava.data.images import ImageError
from llava.data.packing import efficiency, pack
from llava.data.survey import Survey
from llava.errors import LawError
from llava.estimate import (
    Sizes,
    Way,
    disk,
    gpu_hours,
    gpus,
    memory,
    training_flops,
)
from llava.files import read_json
from llava.log import progress
from llava.model.builder import config_fields, llava_config
from llava.model.checkpoint_layout import Checkpoint
from llava.model.lora import lora_parameters
from llava.model.multimodal_encoder.registry import Representation, tower_class
from llava.model.saving import load_projector
from llava.model.trainable import parameter_table, trainable
from llava.tokenization import add_image_tokens, load_tokenizer
from llava.train.args import Arguments
from llava.train.build import check_dropped, check_model, examine, representation_of
from llava.train.checkpoint import choose
from llava.train.model import (
    check_dtype,
    compute_dtype,
    frame,
    loading_dtype,
    projector_type,
    tokens_per_image,
)

GB = 1e9
TERA = 1e12
SHOWN = 10
"""Bad images that are named; all are counted."""


@dataclass
class _Found:
    """What the parts hand on, and what is wrong."""

    arguments: Arguments
    problems: list[str] = field(default_factory=list)
    representation: Representation | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    added: list[int] = field(default_factory=list)
    """Ids of image tokens that are new to the tokenizer."""
    dataset: ConversationDataset | None = None
    survey: Survey | None = None
    sizes: Sizes | None = None

    @cached_property
    def packs(self) -> list[list[int]]:
        """What --packing makes of the samples."""
        training = self.arguments[2]
        return pack(self.survey.tokens, training.model_max_length, training.seed)


def main(arguments: Arguments) -> None:
    """Prints the report; exits 1 where something is wrong."""
    found = _Found(arguments)
    for title, part in PARTS.items():
        print(f"\n{title}", flush=True)
        try:
            for line in part(found):
                print(f"  {line}", flush=True)
        except LawError as error:
            found.problems.append(str(error))
            print(f"  wrong: {error}", flush=True)
    if found.problems:
        print(f"\n{len(found.problems)} problem(s):")
        for problem in found.problems:
            print(f"- {problem}")
        sys.exit(1)
    print("\nNothing is wrong.")


def _towers(found: _Found) -> Iterator[str]:
    model, data, _ = found.arguments
    check_model(found.arguments)
    model.mm_projector_type = projector_type(model)
    found.representation = representation_of(model)
    if found.representation is None:
        yield "none: a language model alone"
        return
    for spec in found.representation.parts:
        rows, columns = spec.grid
        read = f"hidden state {spec.block}" if spec.t is None else f"block {spec.up_ft_index}"
        alone = ", of which the class token alone is read" if spec.select == "cls" else ""
        yield (
            f"{spec.id}: {spec.size} px, {rows} x {columns} patches{alone}, {read} of "
            f"{spec.depth}, width {spec.dim}"
        )
    shown = frame(model, data, found.representation)
    tokens = found.representation.tokens
    yield (
        f"together {tokens} token{'s' * (tokens != 1)} {found.representation.dim} wide; "
        f"{tokens_per_image(model, found.representation)} of an image reach the language model "
        f"(frame {shown})"
    )


def _data(found: _Found) -> Iterator[str]:
    model, data, training = found.arguments
    found.tokenizer = load_tokenizer(model.model_name_or_path, training.model_max_length)
    found.added = add_image_tokens(found.tokenizer, model)
    found.dataset, found.survey = examine(found.arguments, found.representation, found.tokenizer)
    survey = found.survey
    yield f"{len(survey.keep)} of {survey.records} records are used"
    for why, count in survey.counts.items():
        yield f"{count} left out: {why}"
    if survey.unseen:
        yield f"{survey.unseen} have an image that their text does not speak of"
    check_dropped(survey, data)


def _images(found: _Found) -> Iterator[str]:
    dataset, wanted = found.dataset, found.arguments[2].check_images
    if dataset is None or dataset.images is None:
        yield "none"
        return
    places = [i for i in range(len(dataset)) if dataset.has_image(i)]
    if 0 <= wanted < len(places):
        places = [places[int(i)] for i in np.linspace(0, len(places) - 1, wanted)] if wanted else []
    bad = []
    for i in progress(places, "images"):
        record = dataset.records[dataset.record_index(i)]
        try:
            for name in dataset.fitter.images_of(record):
                dataset.images.check(name, "decode")
        except ImageError as error:
            bad.append(f"record {dataset.record_index(i)}: {error}")
    yield f"{len(places)} samples' images decoded, {len(bad)} bad"
    yield from bad[:SHOWN]
    if bad and dataset.images.policy == "error":
        raise LawError(
            f"{len(bad)} of {len(places)} decoded images are bad, {bad[0]}; mend them, or leave "
            "such samples out with --image_policy skip"
        )


def _sample(found: _Found) -> Iterator[str]:
    """The first sample as the model sees it; [[what is learned]] is marked."""
    if found.dataset is None or not len(found.dataset):
        yield "none"
        return
    dataset, tokenizer = found.dataset, found.tokenizer
    fitted = dataset.fitter(dataset.records[dataset.record_index(0)])
    shown, run, learned = "", [], False
    for token, label in [*zip(fitted.input_ids, fitted.labels, strict=True), (None, None)]:
        is_learned = label is not None and label != IGNORE_INDEX
        if run and (is_learned != learned or token in (None, IMAGE_TOKEN_INDEX)):
            text = tokenizer.decode(run)
            shown += f"[[{text}]]" if learned else text
            run = []
        learned = is_learned
        if token == IMAGE_TOKEN_INDEX:
            shown += " <image> "
        elif token is not None:
            run.append(token)
    yield json.dumps(shown.strip(), ensure_ascii=False)
    yield f"{fitted.tokens} tokens, {fitted.supervised} of them supervised"


def _lengths(found: _Found) -> Iterator[str]:
    if found.survey is None:
        yield "not known"
        return
    tokens, training = found.survey.tokens, found.arguments[2]
    half, most = np.percentile(tokens, [50, 95]).astype(int)
    yield (
        f"mean {tokens.mean():.0f}, half up to {half}, 95 % up to {most}, longest {tokens.max()} "
        f"of {training.model_max_length} allowed"
    )
    share = found.survey.cut / len(tokens)
    yield f"{found.survey.cut} ({100 * share:.2f} %) are cut to the maximum length"
    batch = training.per_device_train_batch_size
    order = np.random.default_rng(0).permutation(len(tokens))
    rows = [tokens[order[i : i + batch]] for i in range(0, len(order), batch)]
    padded = sum(int(row.max()) * len(row) for row in rows)
    yield (
        f"random batches of {batch} are {100 * tokens.sum() / padded:.0f} % full; --packing True "
        f"makes {len(found.packs)} sequences, "
        f"{100 * efficiency(found.packs, tokens, training.model_max_length):.0f} % full"
    )


def _model(found: _Found) -> Iterator[str]:
    """Language model and projector on the meta device: shapes, no memory."""
    model_arguments, data, training = found.arguments
    config, made = llava_config(config_fields(Checkpoint(model_arguments.model_name_or_path)))
    before = dict(vars(config))
    with torch.device("meta"):
        model = made(config)
        own = model.mm_projector
        if found.representation is not None:
            model.initialize_vision_modules(
                dataclasses.replace(model_arguments, pretrain_mm_mlp_adapter=None),
                representation=found.representation,
                frame=frame(model_arguments, data, found.representation),
                dtype=compute_dtype(training),
                load_tower=False,
            )
    stage = 1 if training.stage1 else 2
    trainable(model, stage, model_arguments.freeze_backbone, training.freeze_mm_mlp_adapter)
    if found.representation is not None and found.tokenizer is not None:
        model.initialize_vision_tokenizer(model_arguments, found.tokenizer, found.added)
    adapters = 0
    if training.lora_enable:
        adapters = lora_parameters(model, training.lora_r)
        yield f"{'adapters':<14} {adapters:>15,} parameters, all trained"
    trained = 0
    for part in parameter_table(model):
        count = part.trained if not training.lora_enable or part.name == "projector" else 0
        trained += count
        yield f"{part.name:<14} {part.parameters:>15,} parameters, {count:>14,} trained"
    total = sum(p.numel() for p in model.parameters())
    specs = found.representation.parts if found.representation else ()
    costs = [tower_class(spec).cost(spec) for spec in specs]
    found.sizes = Sizes(
        frozen=total - trained,
        trained=trained + adapters,
        tower=sum(cost.parameters for cost in costs),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        tower_flops=sum(cost.flops for cost in costs),
    )
    if found.representation is not None:
        features = found.dataset.features if found.dataset else None
        dtype = features.dtype if features else config.mm_vision_dtype
        kept = before if model.mm_projector is own else {}
        check_dtype(found.arguments, found.representation, kept, dtype)
    if found.representation is not None and model_arguments.pretrain_mm_mlp_adapter:
        load_projector(model, model_arguments.pretrain_mm_mlp_adapter)
        yield f"{model_arguments.pretrain_mm_mlp_adapter} fits"
    elif not training.stage1 and model.mm_projector is not own:
        yield "the projector is new; --pretrain_mm_mlp_adapter gives that of stage 1"
    longest = getattr(config, "max_position_embeddings", training.model_max_length)
    if training.model_max_length > longest:
        raise LawError(
            f"--model_max_length {training.model_max_length}: the language model has {longest} "
            "positions"
        )


def _needs(found: _Found) -> Iterator[str]:
    """Memory, hours and disk."""
    if found.sizes is None or found.survey is None:
        yield "not known"
        return
    training, sizes, survey = found.arguments[2], found.sizes, found.survey
    way = _way(found)
    parts = memory(sizes, way)
    needed = sum(parts.values())
    shown = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    yield f"about {_bytes(needed)} on a GPU at {way.processes} process(es): {shown}"
    fitting = [card.name for card in gpus().values() if card.memory * GB > 1.1 * needed]
    yield f"fits into: {', '.join(fitting) or 'none of the known GPUs; take ZeRO-3 or less batch'}"
    steps, epochs = _length_of_run(found)
    tokens, images = int(survey.tokens.sum() * epochs), int(_image_count(found) * epochs)
    flops = training_flops(sizes, tokens, images, bool(training.gradient_checkpointing))
    hours = {card.name: gpu_hours(flops, card) for card in gpus().values()}
    yield (
        f"{flops / TERA:.4g} TFLOP for {epochs:.3g} epoch(s); GPU hours at 40 % of the peak: "
        + ", ".join(f"{name} {max(value, 0.01):.3g}" for name, value in hours.items())
    )
    every = training.save_steps if training.save_steps >= 1 else training.save_steps * steps
    saves = max(1, steps // max(1, int(every)))
    partial = training.stage1 or training.lora_enable
    size = disk(sizes, way, partial, training.save_total_limit, saves)
    folder = Path(training.output_dir)
    free = shutil.disk_usage(_existing(folder)).free
    yield f"{steps} steps; up to {_bytes(size)} of checkpoints, {_bytes(free)} free"
    if size > free:
        raise LawError(
            f"{folder}: checkpoints take up to {_bytes(size)} and {_bytes(free)} are free; "
            "lower --save_total_limit or choose another --output_dir"
        )
    resumed = choose(folder, training.resume_from_checkpoint)
    yield f"begins {'anew' if resumed is None else f'at {resumed}'}"


def _length_of_run(found: _Found) -> tuple[int, float]:
    """Steps, and how many times the data are seen in them."""
    _, data, training = found.arguments
    sequences = len(found.packs) if data.packing else len(found.survey.keep)
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    batch *= training.world_size
    if training.max_steps > 0:
        return training.max_steps, training.max_steps * batch / sequences
    epochs = training.num_train_epochs
    return math.ceil(math.ceil(sequences / batch) * epochs), epochs


def _way(found: _Found) -> Way:
    training = found.arguments[2]
    zero: dict = {}
    if training.deepspeed:
        zero = read_json(str(training.deepspeed)).get("zero_optimization", {})
    survey = found.survey
    longest = training.model_max_length if found.arguments[1].packing else survey.tokens.max()
    return Way(
        batch=training.per_device_train_batch_size,
        length=int(longest),
        processes=training.world_size,
        zero=int(zero.get("stage", 0)),
        offload_weights=_offloaded(zero, "offload_param"),
        offload_optimizer=_offloaded(zero, "offload_optimizer"),
        half=training.bf16 or training.fp16,
        frozen_bytes=loading_dtype(training).itemsize,
        checkpointing=bool(training.gradient_checkpointing),
        supervised=min(1.0, float((survey.supervised / survey.tokens).max())),
    )


def _offloaded(zero: dict, what: str) -> bool:
    """Whether DeepSpeed's config puts something into the host's memory, or on its disk."""
    return (zero.get(what) or {}).get("device", "none") != "none"


def _features(found: _Found) -> Iterator[str]:
    """Whether reading tower tokens from a store is worth its disk."""
    if found.sizes is None or found.survey is None:
        yield "not known"
        return
    if found.representation is None:
        yield "no towers"
        return
    images = _image_count(found)
    size = images * found.representation.tokens * found.representation.dim * 2
    tokens = int(found.survey.tokens.sum())
    checkpointing = bool(found.arguments[2].gradient_checkpointing)
    whole = training_flops(found.sizes, tokens, images, checkpointing)
    share = images * found.sizes.tower_flops / whole
    _, epochs = _length_of_run(found)
    yield (
        f"{images} images take {_bytes(size)} in 16 bits and save {100 * share:.0f} % of the "
        f"FLOPs of every epoch; making them costs one epoch's towers, so with {epochs:.3g} "
        "epoch(s) "
        + (
            "they pay"
            if epochs > 1
            else "they pay where several runs share them (other projectors, seeds, combinations)"
        )
    )


def _bytes(size: float) -> str:
    """In the unit that fits, e.g. `13.5 GB`."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _image_count(found: _Found) -> int:
    return int(found.dataset.records.image_counts[found.survey.keep].sum())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


PARTS: dict[str, Callable[[_Found], Iterator[str]]] = {
    "Towers": _towers,
    "Data": _data,
    "Images": _images,
    "A sample, [[what is learned]] marked": _sample,
    "Tokens of a sample": _lengths,
    "Model": _model,
    "Memory, time, disk": _needs,
    "Stored features": _features,
}
