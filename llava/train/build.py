"""From flags to what is trained: tokenizer, model and data, in this order."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from llava.data.collator import Collator
from llava.data.dataset import ConversationDataset
from llava.data.images import ImageSource
from llava.data.masks import Labeller
from llava.data.packing import PackedDataset, efficiency, pack
from llava.data.records import Records
from llava.data.stored import StoredFeatures
from llava.data.survey import Survey, survey
from llava.errors import LawError, UsageError
from llava.files import ensure_writable
from llava.log import get_logger
from llava.model.builder import config_fields
from llava.model.checkpoint_layout import CONVERTED, LLAVA, LORA, STAGE1, Checkpoint
from llava.model.comparison import difference, settings
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import Representation, parse_replacements, resolve
from llava.model.representation import dtype_name, record
from llava.tokenization import add_image_tokens, load_tokenizer
from llava.train.args import Arguments, DataArguments, ModelArguments, TrainingArguments
from llava.train.model import (
    build_model,
    compute_dtype,
    frame,
    projector_type,
    tokens_per_image,
)

logger = get_logger("train")

LISTED = 1000
"""Left-out records that data.json names; all are counted."""


@dataclass
class Prepared:
    """Everything that a run needs."""

    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    representation: Representation | None
    dataset: ConversationDataset | PackedDataset
    collator: Collator
    survey: Survey


def prepare(arguments: Arguments) -> Prepared:
    """Reads the data first, since that is what most often is wrong, and then the weights."""
    model_arguments, data, training = arguments
    ensure_writable(Path(training.output_dir) / "run.json")
    check_model(arguments)
    model_arguments.mm_projector_type = projector_type(model_arguments)
    representation = representation_of(model_arguments)
    tokenizer = load_tokenizer(model_arguments.model_name_or_path, training.model_max_length)
    added = add_image_tokens(tokenizer, model_arguments)
    with training.main_process_first(desc="survey of the data"):
        dataset, surveyed = examine(arguments, representation, tokenizer)
    check_dropped(surveyed, data)
    stored = dataset.features.dtype if dataset.features else None
    model = build_model(arguments, representation, tokenizer, added, stored)
    packed = data.packing and not training.a_score
    if packed:
        dataset = packed_dataset(dataset, training)
    collator = Collator(tokenizer.pad_token_id, packed)
    return Prepared(tokenizer, model, representation, dataset, collator, surveyed)


def check_model(arguments: Arguments) -> None:
    """Raises UsageError where --model_name_or_path is a part of a model, or lacks a projector."""
    model, _, training = arguments
    found = Checkpoint(model.model_name_or_path)
    if found.kind in (STAGE1, LORA):
        raise UsageError(
            f"--model_name_or_path {model.model_name_or_path} holds a {found.kind} and no language "
            "model; give the language model, and a projector as --pretrain_mm_mlp_adapter"
        )
    keeps = found.kind in (LLAVA, CONVERTED) and _inherit(arguments, config_fields(found))
    if training.a_score and not keeps and not model.pretrain_mm_mlp_adapter:
        raise UsageError(
            "--a_score scores a trained projector; --pretrain_mm_mlp_adapter is missing"
        )


def _inherit(arguments: Arguments, config: dict[str, Any]) -> bool:
    """Whether a LLaVA that is trained on keeps its projector, which is where its towers stay.

    It then sees as it did. What the flags change is said.
    """
    model, data, _ = arguments
    before, now = config.get("image_aspect_ratio"), data.image_aspect_ratio
    if before is not None and before != now:
        logger.warning("--image_aspect_ratio %s: the model was trained with %s", now, before)
    if not model.vision_tower:
        return False
    _leave_as_it_was(model, config)
    said = difference(config, _recorded(model))
    if not said and model.mm_vision_geometry is None:
        model.mm_vision_geometry = config.get("mm_vision_geometry") or "own"
    kind, asked = config.get("mm_projector_type"), model.mm_projector_type
    if asked not in (None, kind):
        said = said or f"has a projector of type {kind}, and --mm_projector_type is {asked}"
    if said and not model.pretrain_mm_mlp_adapter:
        logger.warning(
            "%s %s; its projector is not kept and starts anew", model.model_name_or_path, said
        )
    return not said


def _leave_as_it_was(model: ModelArguments, config: dict[str, Any]) -> None:
    """Sets what the flags leave open as a config has it, where its towers are theirs."""
    known = settings(config, representation_of(model))
    open_flags = {flag: value for flag, value in known.items() if getattr(model, flag) is None}
    filled = dataclasses.replace(model, **open_flags)
    try:
        representation_of(filled)
    except UsageError:  # with what the flags do say it cannot be computed
        return
    for flag, value in open_flags.items():
        setattr(model, flag, value)


def _recorded(model: ModelArguments) -> SimpleNamespace:
    """What the config of a model with the flags' towers will say of them."""
    config = SimpleNamespace()
    record(config, representation_of(model), model.mm_vision_geometry)
    return config


def representation_of(model: ModelArguments) -> Representation | None:
    """What the flags say of the towers; None for a language model alone."""
    if not model.vision_tower:
        return None
    return resolve(
        model.vision_tower,
        join=model.mm_vision_join,
        select=model.mm_vision_select_feature,
        layer=model.mm_vision_select_layer,
        grid_align=model.mm_vision_grid_align,
        replace=parse_replacements(model.tower_alias),
        diffusion=DiffusionOptions.of(model),
    )


def examine(
    arguments: Arguments,
    representation: Representation | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[ConversationDataset, Survey]:
    """The samples, and what reading all of them once found."""
    model, data, training = arguments
    _say_unused_layer(model, representation)
    records = Records(data.data_path)
    # Text is cut where images are counted, too: in the survey, which says how much was cut.
    labeller = Labeller(tokenizer, model.version, None, model.mm_use_im_start_end)
    images = image_source(model, data, representation)
    features = stored_features(arguments, representation)
    tokens = tokens_per_image(model, representation)
    surveyed = survey(
        records,
        labeller,
        images,
        tokens,
        training.model_max_length,
        features=features,
        verify_images=data.verify_images,
        workers=training.dataloader_num_workers,
        cache_dir=Path(training.output_dir) / "data",
    )
    dataset = ConversationDataset(
        records,
        labeller,
        images,
        tokens,
        training.model_max_length,
        survey=surveyed,
        features=features,
    )
    return dataset, surveyed


def _say_unused_layer(model: ModelArguments, representation: Representation | None) -> None:
    layer, parts = model.mm_vision_select_layer, representation.parts if representation else ()
    if layer is not None and parts and all(spec.t is not None for spec in parts):
        logger.warning(
            "--mm_vision_select_layer %d has no effect: %s has blocks, of which --up_ft_index "
            "chooses one",
            layer,
            representation.name,
        )


def image_source(
    model: ModelArguments, data: DataArguments, representation: Representation | None
) -> ImageSource | None:
    """Where images come from; None without a tower."""
    if representation is None:
        return None
    return ImageSource(
        data.image_folder,
        ImageProcessor(representation, frame(model, data, representation)),
        data.image_aspect_ratio,
        data.image_grid_pinpoints,
        data.image_policy,
        model.mm_patch_merge_type,
    )


def stored_features(
    arguments: Arguments, representation: Representation | None
) -> StoredFeatures | None:
    """What --vision_features store reads in place of images, in the run's dtype where it is there.

    Warns where the tower in the run's dtype would give other features.
    """
    model, data, training = arguments
    if data.vision_features != "store" or representation is None:
        return None
    dtype = dtype_name(compute_dtype(training))
    view = frame(model, data, representation)
    found = StoredFeatures(data.feature_store, representation, view, runs_in=dtype)
    for space in found.unlike(dtype):
        logger.warning(
            "%s: features of %s are stored in %s, and this run computes in %s: with compat "
            "'reference' the two differ by more than rounding; for those of this run, %s",
            data.feature_store,
            space.spec.id,
            space.dtype,
            dtype,
            found.command(data.image_folder, dtype),
        )
    return found


def check_dropped(found: Survey, data: DataArguments) -> None:
    """Raises LawError where more records are unusable than --max_dropped allows."""
    if found.share_dropped <= data.max_dropped:
        return
    reasons = "; ".join(f"{count} x {why}" for why, count in found.counts.items())
    longer = " raise --model_max_length," if "maximum length" in reasons else ""
    raise LawError(
        f"{data.data_path}: {len(found.dropped)} of {found.records} records cannot be used "
        f"({reasons}); mend them,{longer} or allow it with --max_dropped "
        f"{found.share_dropped + 0.005:.2f}"
    )


def packed_dataset(dataset: ConversationDataset, training: TrainingArguments) -> PackedDataset:
    """Sequences of model_max_length, full of whole samples."""
    lengths, capacity = dataset.lengths_in_tokens, training.model_max_length
    packs = pack(lengths, capacity, training.seed)
    logger.info(
        "packing: %d samples in %d sequences of up to %d tokens, %.1f %% full",
        len(lengths),
        len(packs),
        capacity,
        100 * efficiency(packs, lengths, capacity),
    )
    return PackedDataset(dataset, packs)


def data_report(found: Survey) -> dict[str, Any]:
    """What data.json of the run folder says."""
    report = found.plain()
    report["records_left_out"] = report["records_left_out"][:LISTED]
    return report
