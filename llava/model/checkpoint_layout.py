"""What a folder or hub id holds, told by its files and its config.json, never by its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import cached_file

from llava.errors import LawError, UsageError
from llava.files import read_json
from llava.model.representation import DIFFUSION
from llava.model.saving import ADAPTER_CONFIG, ADAPTERS, OTHERS, PROJECTOR, State, read_tensors

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
LLAVA, STAGE1, LORA, CONVERTED, TEXT = "llava", "projector", "lora", "converted", "text"
"""A whole LLaVA; a projector alone; adapters; transformers' own Llava; a language model."""

LLAVA_FIELDS = ("vision_tower", "use_cache", "conversation_version", *DIFFUSION)
LLAVA_PREFIXES = ("mm_", "image_", "tokenizer_", "tune_mm", "freeze_mm", "use_mm")


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, in a folder or on the hub."""

    path: str

    def file(self, name: str) -> Path | None:
        """A file of it, fetched where it is on the hub; None where it has none of that name."""
        if Path(self.path).is_dir():
            path = Path(self.path) / name
            return path if path.is_file() else None
        try:
            found = cached_file(
                self.path,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except (OSError, ValueError) as error:
            first = next(iter(str(error).splitlines()), "")
            raise LawError(
                f"{self.path}: no such folder (seen from {Path.cwd()}) and not on the hub: {first}"
            ) from error
        return Path(found) if found else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; LawError where there is none."""
        path = self.file("config.json")
        if path is None:
            raise LawError(
                f"{self.path}: no config.json; expected a folder as training or save_pretrained "
                f"writes it, or a hub id (seen from {Path.cwd()})"
            )
        return read_json(path)

    @cached_property
    def kind(self) -> str:
        """One of llava, projector, lora, converted and text."""
        if self.file(ADAPTER_CONFIG) is not None:
            return LORA
        config = self.config
        if config.get("model_type") == "llava" and "text_config" in config:
            return CONVERTED
        if not config.get("mm_vision_tower"):
            return TEXT
        if any(self.file(name) is not None for name in WEIGHTS):
            return LLAVA
        if self.projector() is not None:
            return STAGE1
        raise LawError(
            f"{self.path} has a config.json and no weights; expected one of {', '.join(WEIGHTS)}, "
            f"{PROJECTOR}.bin or {ADAPTER_CONFIG}"
        )

    def projector(self) -> Path | None:
        """The file of a projector saved alone."""
        return self._either(PROJECTOR)

    def others(self) -> Path | None:
        """The file of what was trained beside adapters."""
        return self._either(OTHERS)

    def _either(self, stem: str) -> Path | None:
        return self.file(f"{stem}.safetensors") or self.file(f"{stem}.bin")

    def llava_fields(self) -> dict[str, Any]:
        """What of the config is LLaVA's, not the language model's."""
        return llava_fields(self.config)

    def fetch_adapters(self) -> Path:
        """The folder with adapters and their config, both fetched."""
        config = self.file(ADAPTER_CONFIG)
        weights = self._either(ADAPTERS)
        if config is None or weights is None:
            raise LawError(
                f"{self.path} has {ADAPTER_CONFIG} and no {ADAPTERS}.safetensors or .bin"
            )
        return config.parent

    def tensors(self, wanted: Callable[[str], bool]) -> State:
        """The weights whose keys are `wanted`; only files that hold some are opened."""
        found: State = {}
        for path in self._weight_files(wanted):
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as handle:
                    keys = filter(wanted, handle.keys())
                    found |= {key: handle.get_tensor(key) for key in keys}
            else:
                state = read_tensors(path)
                found |= {key: value for key, value in state.items() if wanted(key)}
        return found

    def _weight_files(self, wanted: Callable[[str], bool]) -> list[Path]:
        for whole in WEIGHTS[::2]:
            if (path := self.file(whole)) is not None:
                return [path]
            if (index := self.file(f"{whole}.index.json")) is not None:
                places = read_json(index)["weight_map"]
                names = sorted({place for key, place in places.items() if wanted(key)})
                return [self._shard(name) for name in names]
        raise UsageError(f"{self.path} has no weights; expected one of {', '.join(WEIGHTS)}")

    def _shard(self, name: str) -> Path:
        path = self.file(name)
        if path is None:
            raise LawError(f"{self.path}: its index names {name}, which is not there")
        return path


def llava_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config's fields is LLaVA's, not the language model's."""
    return {
        key: value
        for key, value in config.items()
        if key in LLAVA_FIELDS or key.startswith(LLAVA_PREFIXES)
    }
