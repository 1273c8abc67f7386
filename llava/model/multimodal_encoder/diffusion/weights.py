"""Reads the parts of a model in diffusers layout, one by one: no pipeline, nothing unused."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from llava.errors import LawError, UsageError, unknown_name
from llava.model.multimodal_encoder.pretrained import unread
from llava.model.multimodal_encoder.spec import TowerSpec

ATTENTION = "LAW_ATTENTION"
"""Environment variable: `sdpa` (torch's, the default) or `xformers`. No feature depends on it
beyond rounding, so it is a matter of the machine and not of the spec."""

FILTERS = "".join(
    f" --{flag} '{pattern}'"
    for flag, patterns in (
        ("include", ("model_index.json", "*/*.json", "*/*.txt", "*/*.model")),
        ("include", ("*/*.safetensors", "*/*.bin")),
        ("exclude", ("*fp16*", "*non_ema*", "safety_checker/*", "text_encoder_3/*")),
    )
    for pattern in patterns
)
"""Of a download: repositories of diffusion models hold their weights several times."""

LONGEST_PROMPT = 10_000
"""Tokens; a tokenizer that states none says 10^30."""

_configs_only: ContextVar[bool] = ContextVar("configs_only", default=False)


@contextlib.contextmanager
def configs_only() -> Iterator[None]:
    """Towers built in here are made from configs, with random weights on the default device.

    On the meta device they cost no memory and tell shapes and FLOPs.
    """
    token = _configs_only.set(True)
    try:
        yield
    finally:
        _configs_only.reset(token)


def without_weights() -> bool:
    """Whether `configs_only` is in force."""
    return _configs_only.get()


def read_model(spec: TowerSpec, part: str, model_class: Any, dtype: torch.dtype) -> nn.Module:
    """One part (`unet`, `text_encoder`, ...) of the spec's model, frozen, in `dtype`.

    `model_class` is of diffusers or transformers. Raises LawError where it cannot be read whole.
    """
    source = spec.weights or spec.id
    is_diffusers = hasattr(model_class, "load_config")
    named = {"torch_dtype" if is_diffusers else "dtype": dtype}
    try:
        with quiet():
            if without_weights():
                return _from_config(source, part, model_class, dtype)
            model, found = model_class.from_pretrained(
                source, subfolder=part, output_loading_info=True, **named
            )
    except Exception as error:  # OSError, SafetensorError, UnpicklingError, KeyError, ...
        raise LawError(f"{part}: {_unread(spec, error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise LawError(
            f"{source}: {part} lacks {len(missing)} weights, such as {missing[0]}; expected a "
            f"whole {model_class.__name__}"
        )
    return model.requires_grad_(False).eval()


def _from_config(source: str, part: str, model_class: Any, dtype: torch.dtype) -> nn.Module:
    if hasattr(model_class, "load_config"):
        model = model_class.from_config(model_class.load_config(source, subfolder=part))
    else:
        model = model_class(model_class.config_class.from_pretrained(source, subfolder=part))
    return model.to(dtype).requires_grad_(False).eval()


def _unread(spec: TowerSpec, error: Exception) -> str:
    what = "configs" if without_weights() else "weights"
    return unread(spec.id, spec.weights or spec.id, error, what, FILTERS)


def read_text_encoder(
    spec: TowerSpec,
    classes: tuple[Any, Any],
    dtype: torch.dtype,
    number: str = "",
    limit: int | None = None,
) -> tuple[nn.Module, Any]:
    """(text encoder, tokenizer) of the spec's model; `number` is what stands behind their names.

    `classes` are transformers' of both. Raises LawError for a tokenizer that is not the encoder's
    own, UsageError for a prompt of more than `limit` tokens (the tokenizer's own, if not given).
    """
    source, part = spec.weights or spec.id, f"tokenizer{number}"
    encoder = read_model(spec, f"text_encoder{number}", classes[0], dtype)
    try:
        with quiet():
            tokenizer = classes[1].from_pretrained(source, subfolder=part)
            tokens = len(tokenizer(spec.prompt).input_ids)
    except Exception as error:  # OSError, ValueError, JSON and tokenizers' own
        raise LawError(f"{part}: {_unread(spec, error)}") from error
    size, most = len(tokenizer), encoder.config.vocab_size
    if not 0.9 * most < size <= most:  # T5 has rows to spare; without its files one is made empty
        raise LawError(
            f"{source}: {part} has {size} tokens and its encoder {most}; its vocabulary is "
            "missing, or of another model"
        )
    limit = limit or tokenizer.model_max_length
    if limit > LONGEST_PROMPT:
        raise LawError(f"{source}: {part}/tokenizer_config.json states no model_max_length")
    if tokens > limit:
        raise UsageError(f"prompt: {tokens} tokens, and {spec.id} takes {limit}; shorten it")
    return encoder, tokenizer


def read_scheduler(spec: TowerSpec, scheduler_class: Any) -> Any:
    """`scheduler_class` with the betas that the model was trained with."""
    source = spec.weights or spec.id
    try:
        # its table is read when a tower is made, also of one on the meta device
        with quiet(), torch.device("cpu"):
            return scheduler_class.from_config(
                scheduler_class.load_config(source, subfolder="scheduler")
            )
    except Exception as error:  # OSError, JSON, ValueError of its own fields
        raise LawError(f"scheduler: {_unread(spec, error)}") from error


def choose_attention(*models: nn.Module) -> None:
    """xformers' attention where LAW_ATTENTION asks for it; torch's needs no choosing.

    Raises UsageError where it is asked for and cannot be had.
    """
    name = os.environ.get(ATTENTION) or "sdpa"
    if name not in ("sdpa", "xformers"):
        raise UsageError(unknown_name(ATTENTION, name, ("sdpa", "xformers")))
    if name == "sdpa" or without_weights():
        return
    for model in models:
        try:
            model.enable_xformers_memory_efficient_attention()
        except (ImportError, ValueError, NotImplementedError) as error:
            raise UsageError(
                f"{ATTENTION}=xformers: {error}. It needs a CUDA device and `pip install "
                f'-e ".[xformers]"`; without it, type `unset {ATTENTION}`'
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers and transformers say of files that are read as they should be."""
    from diffusers.utils import logging

    from llava.model.multimodal_encoder.vit import quiet as quiet_transformers

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # a folder without safetensors is an ERROR to it
    logging.disable_progress_bar()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            # of huggingface_hub, about an argument that diffusers still passes
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
