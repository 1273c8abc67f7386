"""Files of what was trained in part: projectors and adapters, written and read.

Weights come as already gathered tensors where a trainer has them in pieces (`state_dict`); keys are
those of the model's `named_parameters`. A torch file is written for LLaVA's own readers, and a
safetensors file beside it.
"""

import contextlib
import io
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.errors import LawError, UsageError
from llava.files import read_json, write_bytes, write_json
from llava.model.comparison import difference

PROJECTOR = "mm_projector"
NEWLINE = "image_newline"
OTHERS = "non_lora_trainables"
ADAPTERS = "adapter_model"
ADAPTER_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."

Given = Mapping[str, torch.Tensor]
State = dict[str, torch.Tensor]


def of_projector(key: str) -> bool:
    """Whether a parameter is the projector's, what ends the rows of tiles included."""
    return f"{PROJECTOR}." in key or key.endswith(NEWLINE)


def save_projector(
    model: nn.Module, folder: str | os.PathLike, state_dict: Given | None = None
) -> None:
    """Writes `mm_projector.bin`, `mm_projector.safetensors` and `config.json` into a folder.

    Keys are LLaVA's, `model.mm_projector.*`; what else is in `state_dict` goes along (embeddings
    that were trained, too). Without a `state_dict` the projector's own weights are taken.
    """
    if state_dict is None:
        state_dict = {k: v for k, v in model.named_parameters() if of_projector(k)}
    if not any(f"{PROJECTOR}." in key for key in state_dict):
        raise LawError("nothing to save: none of the weights given is the projector's")
    _write_both(Path(folder) / PROJECTOR, {_llava_key(k): v for k, v in state_dict.items()})
    write_config(model, folder)


def kept(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What a partial checkpoint holds: all that is trained, and the projector, trained or not."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or of_projector(name):
            yield name, parameter


def save_lora(model: nn.Module, folder: str | os.PathLike, state_dict: Given | None = None) -> None:
    """Writes adapters of a peft model, and what else was trained, in LLaVA's layout.

    `adapter_model.safetensors`, `adapter_config.json`, `non_lora_trainables.bin` (and
    `.safetensors`; keys `base_model.model.model.mm_projector.*`) and `config.json`.
    """
    if state_dict is None:
        state_dict = dict(kept(model))
    name = model.active_adapter
    adapters = {k.replace(f".{name}.", "."): v for k, v in state_dict.items() if "lora_" in k}
    others = {PEFT_PREFIX + _llava_key(k): v for k, v in state_dict.items() if "lora_" not in k}
    if not adapters:
        raise LawError("nothing to save: none of the weights given is an adapter's")
    folder = Path(folder)
    _write_safetensors(folder / f"{ADAPTERS}.safetensors", adapters)
    config = model.peft_config[name].to_dict() | {"inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    write_json(folder / ADAPTER_CONFIG, {k: getattr(v, "value", v) for k, v in plain.items()})
    _write_both(folder / OTHERS, others)
    write_config(model, folder)


def write_config(model: nn.Module, folder: str | os.PathLike) -> None:
    """Writes the model's config.json."""
    write_json(Path(folder) / "config.json", json.loads(model.config.to_json_string()))


def load_projector(model: nn.Module, source: str | os.PathLike) -> None:
    """Reads a projector into a model: from a file, or from a folder of stage 1 or of LoRA.

    What else the file holds (`image_newline`, embeddings) is read, too. Raises LawError where keys
    or widths are not those of the model, or where a config beside the file names another tower.
    """
    path = projector_file(source)
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    config = path.with_name("config.json")
    if config.is_file():
        _check_tower(path, read_json(config), model.config)
    take_trained(model, read_tensors(path), path)


def take_trained(model: nn.Module, state: Given, path: Path) -> None:
    """Copies what `path` held, under any prefix, into the model; every projector key must be there.

    Raises LawError naming the keys or the widths that do not fit.
    """
    state = {_llava_key(key): value for key, value in state.items()}
    own = {_llava_key(name): parameter for name, parameter in model.named_parameters()}
    expected = {name for name in own if of_projector(name)}
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - set(own))
    if missing or unknown:
        kind = getattr(model.config, "mm_projector_type", None)
        raise LawError(
            f"{path} does not fit a projector of type {kind}: "
            + "; ".join(
                f"{what} {', '.join(keys[:4])}"
                for what, keys in (("it lacks", missing), ("nothing is called", unknown))
                if keys
            )
        )
    for key, value in state.items():
        if _shape(own[key]) != value.shape:
            raise LawError(_misfit(path, key, value, own[key], model.config))
    with _whole(own[key] for key in state), torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)


def projector_file(source: str | os.PathLike) -> Path:
    """The file that holds a projector: `source` itself, or the one in that folder."""
    source = Path(source)
    if source.is_file():
        return source
    for name in (PROJECTOR, OTHERS):
        for ending in ("safetensors", "bin"):
            if (path := source / f"{name}.{ending}").is_file():
                return path
    raise LawError(
        f"{source}: no such file, and no folder with {PROJECTOR}.bin, {PROJECTOR}.safetensors or "
        f"{OTHERS}.bin (seen from {Path.cwd()})"
    )


def read_tensors(path: str | os.PathLike) -> State:
    """Tensors of a safetensors or torch file, on the CPU; a torch file's code is never run."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise LawError(f"{path}: cannot be read as a file of tensors: {first}") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise LawError(f"{path}: expected a dictionary of tensors")
    return state


def _write_both(path: Path, state: Given) -> None:
    buffer = io.BytesIO()
    torch.save({key: _plain(value) for key, value in state.items()}, buffer)
    write_bytes(path.with_suffix(".bin"), buffer.getvalue())
    _write_safetensors(path.with_suffix(".safetensors"), state)


def _write_safetensors(path: Path, state: Given) -> None:
    tensors = {key: _plain(value) for key, value in state.items()}
    write_bytes(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().clone().contiguous()


def _llava_key(key: str) -> str:
    """`model.mm_projector.*` whatever stands before; other keys without what peft adds."""
    for name in (f"{PROJECTOR}.", NEWLINE):
        if name in key:
            return f"model.{key[key.index(name) :]}"
    return key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def _shape(parameter: torch.Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _misfit(path: Path, key: str, given: torch.Tensor, own: torch.Tensor, config: Any) -> str:
    """Says which widths and towers do not go together, or which weight is of another shape."""
    shape = _shape(own)
    if f"{PROJECTOR}." in key and given.ndim == 2 and given.shape[0] == shape[0]:
        config_beside = path.with_name("config.json")
        trained = ""
        if config_beside.is_file():
            trained = f" ({read_json(config_beside).get('mm_vision_tower')})"
        return (
            f"{path} projects tokens {given.shape[1]} wide{trained}, and those of "
            f"{getattr(config, 'mm_vision_tower', 'this tower')} are {shape[1]} wide; take the "
            "projector that was trained with this representation"
        )
    return f"{path}: {key} is {tuple(given.shape)}, and the model's is {tuple(shape)}"


def _check_tower(path: Path, beside: Mapping[str, Any], config: Any) -> None:
    """Raises UsageError where the config beside a projector is of another representation."""
    if said := difference(beside, config):
        raise UsageError(
            f"{path} {said}; take the projector of this representation (or, if it is the same "
            "under another name, a copy of the file without the config.json beside it)"
        )


@contextlib.contextmanager
def _whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Under ZeRO-3 parameters are gathered to be written, and split again."""
    parameters = list(parameters)
    if is_deepspeed_zero3_enabled() and any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            yield
    else:
        yield
