"""The model of a run: language model, projector, tower, adapters; what of it is trained, in which
dtype.

Trained parameters are float32, so that small updates count, and autocast computes in bf16 or fp16.
DeepSpeed keeps float32 copies itself and is given the compute dtype; FSDP wants one dtype and casts
by itself, so it is given float32. A language model that is frozen whole (stage 1, LoRA, scoring)
takes the compute dtype; in stage 2 it is float32, also what --freeze_backbone freezes of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from llava.files import read_json
from llava.log import get_logger
from llava.model.builder import load_llava, quantization
from llava.model.checkpoint_layout import Checkpoint
from llava.model.comparison import dtype_difference
from llava.model.lora import add_lora
from llava.model.multimodal_encoder.frames import frame_of
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_projector.builder import projected_tokens
from llava.model.saving import load_projector, projector_file
from llava.model.segments import SEGMENTS
from llava.model.trainable import parameter_table, trainable
from llava.train.args import Arguments, DataArguments, ModelArguments, TrainingArguments

logger = get_logger("train")

COMPUTES_IN = {
    "bfloat16": "--bf16 True",
    "float16": "--fp16 True",
    "float32": "--bf16 False --fp16 False",
}
"""Dtype -> the flags of a run that computes in it."""


def frame(model: ModelArguments, data: DataArguments, representation: Representation) -> str:
    """How images meet the towers' inputs: one tower crops as its own processor does."""
    alone = len(representation.parts) == 1
    return frame_of(
        data.image_aspect_ratio, "own" if alone else model.mm_vision_geometry or "shared"
    )


def tokens_per_image(model: ModelArguments, representation: Representation | None) -> int:
    """Tokens that the language model sees of one view of an image."""
    if representation is None:
        return 0
    return projected_tokens(representation.tokens, model.mm_projector_type)


def projector_type(model: ModelArguments) -> str:
    """As asked for; else that of the LLaVA which is trained on; else mlp2x_gelu, the published."""
    own = Checkpoint(model.model_name_or_path).config.get("mm_projector_type")
    return model.mm_projector_type or own or "mlp2x_gelu"


def compute_dtype(training: TrainingArguments) -> torch.dtype:
    """What matrix products are computed in."""
    if training.bf16:
        return torch.bfloat16
    return torch.float16 if training.fp16 else torch.float32


def build_model(
    arguments: Arguments,
    representation: Representation | None,
    tokenizer: PreTrainedTokenizerBase,
    added: Sequence[int],
    stored: str | None = None,
) -> nn.Module:
    """Loads the weights, freezes what is not trained, prints what is.

    `added` are ids of image tokens that are new to the tokenizer, `stored` the dtype of features
    that are read in place of images.
    """
    model_arguments, data, training = arguments
    model = load_language_model(arguments)
    before, own = dict(vars(model.config)), model.mm_projector
    if representation is not None:
        alone = dataclasses.replace(model_arguments, pretrain_mm_mlp_adapter=None)
        model.initialize_vision_modules(
            alone,
            representation=representation,
            frame=frame(model_arguments, data, representation),
            dtype=compute_dtype(training),
            load_tower=data.vision_features == "live",
        )
        if stored:
            model.config.mm_vision_dtype = stored
        kept = before if model.mm_projector is own else {}
        check_dtype(arguments, representation, kept, model.config.mm_vision_dtype)
    record(arguments, model)
    trainable(
        model,
        1 if training.stage1 else 2,
        freeze_backbone=model_arguments.freeze_backbone,
        freeze_mm_mlp_adapter=training.freeze_mm_mlp_adapter,
    )
    if representation is not None:
        model.initialize_vision_tokenizer(model_arguments, tokenizer, added)
        if model_arguments.pretrain_mm_mlp_adapter:  # may hold rows of tokens that are new
            load_projector(model, model_arguments.pretrain_mm_mlp_adapter)
    if training.lora_enable:
        model = with_adapters(model, training)
    if training.a_score:
        model.requires_grad_(False)
    settle_dtypes(model, training)
    report(model)
    return model


def check_dtype(
    arguments: Arguments, representation: Representation, kept: Mapping[str, Any], dtype: str
) -> None:
    """Warns where the projector to begin with was trained on features of another dtype.

    It is the one that flags name, else that of the model whose config is `kept`.
    """
    model = arguments[0]
    if model.pretrain_mm_mlp_adapter:
        beside = projector_file(model.pretrain_mm_mlp_adapter).with_name("config.json")
        kept = read_json(beside) if beside.is_file() else {}
    if said := dtype_difference(kept, representation.parts, dtype):
        logger.warning(
            "%s %s; go on with %s, or with stored features of that dtype",
            model.pretrain_mm_mlp_adapter or model.model_name_or_path,
            said,
            COMPUTES_IN.get(kept["mm_vision_dtype"], "the dtype of then"),
        )


def load_language_model(arguments: Arguments) -> nn.Module:
    """The language model of --model_name_or_path as the LLaVA class of its architecture."""
    model_arguments, data, training = arguments
    options: dict[str, Any] = {
        "dtype": loading_dtype(training),
        "attn_implementation": attention(model_arguments, data, training),
    }
    if training.bits != 16:
        options["quantization_config"] = quantization(
            training.bits, compute_dtype(training), training.double_quant, training.quant_type
        )
    return load_llava(model_arguments.model_name_or_path, **options)


def loading_dtype(training: TrainingArguments) -> torch.dtype:
    """What the language model is read in; see the head of this file."""
    if training.deepspeed:
        return compute_dtype(training)
    frozen = training.stage1 or training.lora_enable or training.a_score
    return compute_dtype(training) if frozen and not training.fsdp else torch.float32


def attention(
    model: ModelArguments, data: DataArguments, training: TrainingArguments
) -> str | None:
    """The kernel: as asked for, flash attention where it is installed, else torch's own.

    Packed rows take torch's kernel segment by segment, not with a mask of all pairs.
    """
    asked = model.attn_implementation
    if asked and not (asked == "sdpa" and data.packing):
        return asked
    on_gpu = training.device.type == "cuda"
    half = compute_dtype(training) is not torch.float32
    if not asked and on_gpu and half and is_flash_attn_2_available():
        return "flash_attention_2"
    # On a CPU rows one after the other save what padding costs; a GPU would start more kernels.
    return "sdpa" if on_gpu and not data.packing else SEGMENTS


def record(arguments: Arguments, model: nn.Module) -> None:
    """What a checkpoint's config says besides the towers: the reference's fields and ours."""
    model_arguments, data, training = arguments
    config = model.config
    config.use_cache = False
    config.image_aspect_ratio = data.image_aspect_ratio
    config.image_grid_pinpoints = data.image_grid_pinpoints
    config.tokenizer_model_max_length = training.model_max_length
    config.tokenizer_padding_side = "right"
    config.tune_mm_mlp_adapter = model_arguments.tune_mm_mlp_adapter
    config.freeze_mm_mlp_adapter = training.freeze_mm_mlp_adapter
    config.mm_use_im_start_end = model_arguments.mm_use_im_start_end
    config.mm_use_im_patch_token = model_arguments.mm_use_im_patch_token
    config.mm_projector_lr = training.mm_projector_lr
    config.conversation_version = model_arguments.version
    if model.generation_config is not None:  # sampling fields without sampling cannot be saved
        model.generation_config.temperature = None
        model.generation_config.top_p = None


def with_adapters(model: nn.Module, training: TrainingArguments) -> nn.Module:
    """LoRA on every linear layer of the language model; the projector stays trained."""
    if training.bits != 16:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=bool(training.gradient_checkpointing)
        )
    return add_lora(
        model,
        training.lora_r,
        training.lora_alpha,
        training.lora_dropout,
        training.lora_bias,
        train_projector=not training.freeze_mm_mlp_adapter,
    )


def settle_dtypes(model: nn.Module, training: TrainingArguments) -> None:
    """Trained parameters to float32, unless DeepSpeed or FSDP settle it."""
    if training.deepspeed or training.fsdp:
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def report(model: nn.Module) -> None:
    """Logs which parts are trained and how many parameters they have."""
    parts = parameter_table(model)
    trained = sum(part.trained for part in parts)
    for part in parts if trained else ():
        logger.info(
            "%-14s %14s of %14s trained", part.name, f"{part.trained:,}", f"{part.parameters:,}"
        )
    if trained:
        logger.info("%-14s %14s", "in all", f"{trained:,}")
