"""Models from folders or the hub: language models, projectors, adapters, whole LLaVAs."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
)
from llava.errors import LawError, MissingPackageError, UsageError
from llava.log import get_logger
from llava.model import converted
from llava.model.checkpoint_layout import CONVERTED, LLAVA, LORA, STAGE1, TEXT, Checkpoint
from llava.model.comparison import dtype_difference
from llava.model.language_model import llava_class
from llava.model.lazy_tower import LazyTower
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.vit import quiet
from llava.model.representation import dtype_name, frame_of_config, representation_of
from llava.model.saving import State, of_projector, read_tensors, take_trained
from llava.tokenization import load_tokenizer

logger = get_logger("model")

CONTEXT = 2048
"""Tokens that LLaVA counts on where a config says nothing."""
TOWER_KEYS = "model.vision_tower."
OF_ANOTHER_CLASS = ("model_type", "architectures", "_name_or_path", "transformers_version")


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str = "",
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    *,
    attn_implementation: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    dtype: torch.dtype | str | None = None,
    tower_replacements: Mapping[str, str] | None = None,
    customized_config: Mapping[str, Any] | str | None = None,
    **ignored: Any,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, ImageProcessor | None, int]:
    """(tokenizer, model, image processor, context length) of any layout that LLaVA has.

    A whole LLaVA; a projector of stage 1 or adapters (LoRA, merged), which need `model_base`; a
    folder of transformers' own LlavaForConditionalGeneration; a language model alone, whose image
    processor is None. `model_name` plays no part. Without a CUDA device everything is on the CPU.
    The default dtype is bfloat16 on CUDA and float32 on a CPU; where a tower's features are not
    those of training because of it, a warning says so. `tower_replacements` maps a tower's id to
    the folder or id that its weights are read from; `customized_config` holds config fields, or
    names a JSON file of them, that count before the model's own.

    Raises LawError for files that are missing or do not fit, UsageError for a missing `model_base`.
    """
    checkpoint = Checkpoint(model_path)
    options = _options(load_8bit, load_4bit, device_map, device)
    options["dtype"] = as_dtype(dtype or torch_dtype, "device_map" in options)
    if use_flash_attn:
        attn_implementation = attn_implementation or "flash_attention_2"
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    for name in sorted(set(ignored) - {"multimodal"}):
        logger.warning("load_pretrained_model: %s has no effect here", name)
    changes = _fields(customized_config)
    if checkpoint.kind in (STAGE1, LORA):
        model = _load_on_base(checkpoint, model_base, options, changes)
    elif checkpoint.kind == TEXT:
        model = AutoModelForCausalLM.from_pretrained(model_path, **options)
    else:
        model = load_llava(model_path, changes, **options)
    if checkpoint.kind != TEXT and attach_tower(model, checkpoint, tower_replacements):
        load_tower(model, checkpoint)
    tokenizer = load_tokenizer(_tokenizer_of(checkpoint, model_base))
    if checkpoint.kind != TEXT:
        _add_image_tokens(model, tokenizer)
    _place(model, options, device)
    model.eval()
    tower = model.get_vision_tower() if checkpoint.kind != TEXT else None
    context = getattr(model.config, "max_sequence_length", None) or CONTEXT
    return tokenizer, model, tower and tower.image_processor, context


def load_llava(
    path: str,
    changes: Mapping[str, Any] | None = None,
    projector_follows: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """The LLaVA in a folder or on the hub, or one made of a language model; without its tower.

    A LLaVA comes with its projector, a language model without one until it is initialised
    (`initialize_vision_modules`). `changes` are config fields, `options` go to `from_pretrained`.
    Raises LawError where weights are missing; a projector may be where it `projector_follows`.
    """
    checkpoint = Checkpoint(path)
    if checkpoint.kind in (STAGE1, LORA):
        raise UsageError(
            f"{path} holds a {checkpoint.kind} and no language model; load it by "
            "load_pretrained_model with a model_base"
        )
    if checkpoint.kind == CONVERTED:
        options["key_mapping"] = converted.KEYS
    fields = config_fields(checkpoint) | dict(changes or {})
    model = _model(path, fields, projector_follows, options)
    if checkpoint.kind == CONVERTED:
        model._weight_conversions = None  # saved under LLaVA's keys
    return model


def config_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of a model's config, as LLaVA calls them."""
    if checkpoint.kind == CONVERTED:
        return converted.llava_config(checkpoint)
    return dict(checkpoint.config)


def llava_config(fields: Mapping[str, Any]) -> tuple[PretrainedConfig, type]:
    """The config, and the class of the model, that a config.json of LLaVA or of text stands for."""
    kind = fields.get("model_type") or ""
    made = llava_class("llama" if kind == "llava" else kind)
    kept = {k: v for k, v in fields.items() if k not in OF_ANOTHER_CLASS}
    return made.config_class(**kept), made


def _model(
    path: str, fields: dict[str, Any], projector_follows: bool, options: dict[str, Any]
) -> PreTrainedModel:
    """A LLaVA with a config of `fields` and the weights of `path`."""
    config, made = llava_config(fields)
    options = dict(options)
    if "attn_implementation" in options:
        config._attn_implementation = options["attn_implementation"]
    with quiet():
        model, info = made.from_pretrained(path, config=config, output_loading_info=True, **options)
    _check(path, info, projector_follows)
    generation = model.generation_config
    if not generation.do_sample:  # what Vicuna's file holds besides cannot be saved again
        generation.temperature = generation.top_p = None
    return model


def _check(path: str, info: Mapping[str, Any], projector_follows: bool) -> None:
    """Raises LawError where weights are missing; tells of unknown ones."""
    missing = sorted(
        key for key in info["missing_keys"] if not (projector_follows and of_projector(key))
    )
    if missing:
        raise LawError(
            f"{path}: {len(missing)} weights are missing, such as {missing[0]}; expected a whole "
            "model as save_pretrained writes it"
        )
    unknown = sorted(info["unexpected_keys"])
    if unknown:
        logger.warning("%s: %d weights are not used, such as %s", path, len(unknown), unknown[0])


def _load_on_base(
    checkpoint: Checkpoint,
    model_base: str | None,
    options: dict[str, Any],
    changes: Mapping[str, Any],
) -> PreTrainedModel:
    """The base with the projector, or with the adapters merged, of a checkpoint."""
    if not model_base:
        named = checkpoint.config.get("_name_or_path")
        raise UsageError(
            f"{checkpoint.path} holds a {checkpoint.kind} and no language model; pass model_base"
            + (f" (its config names {named})" if named else "")
        )
    fields = checkpoint.llava_fields() | dict(changes)
    model = load_llava(model_base, fields, projector_follows=True, **options)
    vocabulary = checkpoint.config.get("vocab_size", model.config.vocab_size)
    if vocabulary != model.config.vocab_size:
        model.resize_token_embeddings(vocabulary)
    path = partial_weights(checkpoint)
    take_trained(model, read_tensors(path), path)
    return _merged(model, checkpoint) if checkpoint.kind == LORA else model


def partial_weights(checkpoint: Checkpoint) -> Path:
    """The file of a projector saved alone, or of what was trained beside adapters."""
    path = checkpoint.projector() if checkpoint.kind == STAGE1 else checkpoint.others()
    if path is None:
        raise LawError(f"{checkpoint.path}: no file of a projector beside its adapters")
    return path


def _merged(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingPackageError(
            f"{checkpoint.path} holds adapters; they need peft: type `pip install peft`"
        ) from error
    wrapped = PeftModel.from_pretrained(model, str(checkpoint.fetch_adapters()))
    return wrapped.merge_and_unload()


def attach_tower(
    model: PreTrainedModel, checkpoint: Checkpoint, replacements: Mapping[str, str] | None
) -> LazyTower | None:
    """Gives the model the tower that its config names, whose weights `load_tower` reads.

    None for adapters of a language model alone. Warns where its features are not those of training.
    """
    representation = representation_of(model.config, replacements)
    if representation is None:
        return None
    frame = frame_of_config(model.config, representation)
    fields, dtype = vars(model.config), dtype_name(model.dtype)
    if said := dtype_difference(fields, representation.parts, dtype):
        before = fields["mm_vision_dtype"]
        logger.warning(
            "%s %s; pass torch_dtype='%s' to load_pretrained_model, or --dtype %s to a command",
            checkpoint.path,
            said,
            before,
            before,
        )
    model.set_vision_tower(LazyTower(representation, frame, model.dtype))
    return model.get_vision_tower()


def load_tower(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Reads the model's tower, with the checkpoint's own weights where it has any."""
    tower = model.get_vision_tower()
    tower.load_model()
    if found := tower_weights(checkpoint):
        tower.load_weights({key.removeprefix(TOWER_KEYS): v for key, v in found.items()})


def tower_weights(checkpoint: Checkpoint) -> State:
    """The weights of towers that a whole LLaVA brings with it; empty where it has none."""
    if checkpoint.kind != LLAVA:
        return {}
    return checkpoint.tensors(lambda key: key.startswith(TOWER_KEYS))


def _options(load_8bit: bool, load_4bit: bool, device_map: Any, device: str) -> dict[str, Any]:
    """What `from_pretrained` gets: devices and quantisation."""
    options: dict[str, Any] = {}
    if torch.cuda.is_available() and torch.device(device).type == "cuda":
        options["device_map"] = device_map if device == "cuda" else {"": device}
    if not (load_8bit or load_4bit):
        return options
    if load_8bit and load_4bit:
        raise UsageError("load_8bit and load_4bit: expected one of them")
    return options | {"quantization_config": quantization(4 if load_4bit else 8)}


def quantization(
    bits: int, dtype: torch.dtype = torch.bfloat16, double: bool = True, kind: str = "nf4"
) -> Any:
    """The config of a model in 4 or 8 bits; projector and head stay as they are.

    Raises MissingPackageError without bitsandbytes.
    """
    if bits not in (4, 8):
        raise UsageError(f"bits {bits}: expected 4 or 8")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "4 and 8 bits need bitsandbytes; type `pip install bitsandbytes`, or load without"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=["mm_projector", "lm_head"],
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_quant_type=kind,
    )


def as_dtype(asked: torch.dtype | str | None, on_cuda: bool) -> torch.dtype:
    """The dtype that was asked for; without one bfloat16 on CUDA and float32 on a CPU."""
    if asked is None:
        return torch.bfloat16 if on_cuda else torch.float32
    found = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype '{asked}': expected float32, bfloat16 or float16")
    return found


def _fields(customized_config: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(customized_config, str):
        try:
            return dict(json.loads(Path(customized_config).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"customized_config {customized_config}: {error}") from error
    return dict(customized_config or {})


def _tokenizer_of(checkpoint: Checkpoint, model_base: str | None) -> str:
    """The checkpoint's own tokenizer, else the base's."""
    own = checkpoint.file("tokenizer_config.json") or checkpoint.file("tokenizer.model")
    return checkpoint.path if own is not None or not model_base else model_base


def _add_image_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokens that the config speaks of and an old tokenizer lacks."""
    names = []
    if getattr(model.config, "mm_use_im_patch_token", False):
        names.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if getattr(model.config, "mm_use_im_start_end", False):
        names += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    if names and tokenizer.add_tokens(names, special_tokens=True):
        model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))


def _place(model: PreTrainedModel, options: Mapping[str, Any], device: str) -> None:
    """A model without a map goes where it was asked for, if that is there."""
    wanted = torch.device(device)
    if "device_map" not in options and wanted.type not in ("cuda", "cpu"):
        model.to(wanted)
