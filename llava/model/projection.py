"""Tower and projector of a run, without its language model: images to projected tokens.

What computes is LLaVA itself over a language model of no layers, so rows are those that the whole
model would put between the words, bit for bit, and nothing of the language model is read.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.errors import UsageError
from llava.files import read_json
from llava.mm_utils import process_images
from llava.model.builder import (
    as_dtype,
    attach_tower,
    config_fields,
    llava_config,
    load_tower,
    partial_weights,
    tower_weights,
)
from llava.model.checkpoint_layout import CONVERTED, LLAVA, LORA, STAGE1, TEXT, Checkpoint
from llava.model.checkpoint_layout import llava_fields as own_fields
from llava.model.converted import llava_key
from llava.model.language_identity import identity
from llava.model.language_model import llava_class
from llava.model.multimodal_encoder.preprocess import VERSION
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_projector.builder import projected_tokens
from llava.model.representation import dtype_name, spec_hash
from llava.model.saving import State, of_projector, read_tensors, take_trained

NO_LAYERS = {
    "vocab_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""A LLaMA that is as wide as the run's language model and holds nothing."""
STAGES = {STAGE1: "stage1", LORA: "lora", LLAVA: "whole", CONVERTED: "whole"}
"""Layout of a checkpoint -> which training its projector went through last."""


class Projection:
    """Tower and projector of a folder of stage 1, of adapters, or of a whole LLaVA.

    The projector is read at once, the tower when the first image comes. The dtype of both is the
    one that the config records (`mm_vision_dtype`, else that of the weights) unless another is
    asked for. `tower_replacements` are as for `load_pretrained_model`. Raises UsageError for a
    folder without a projector, LawError for files that are missing or do not fit.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        tower_replacements: Mapping[str, str] | None = None,
    ):
        self.path = str(path)
        self.checkpoint = Checkpoint(self.path)
        if self.checkpoint.kind == TEXT:
            raise UsageError(
                f"{self.path} is a language model without a vision tower; expected a run of stage "
                "1, with its config.json and mm_projector, or a whole LLaVA"
            )
        self.device = torch.device(device)
        fields = config_fields(self.checkpoint)
        self.model = _without_layers(fields)
        _read_projector(self.model, self.checkpoint)
        self.projector_digest = _digest(
            (name, value) for name, value in self.model.named_parameters() if of_projector(name)
        )
        self.model.to(self.device, _dtype(dtype, fields, self.device)).eval()
        if attach_tower(self.model, self.checkpoint, tower_replacements) is None:
            raise UsageError(f"{self.path}: its config names no vision tower (mm_vision_tower)")

    @property
    def representation(self) -> Representation:
        """The towers."""
        return self.model.get_vision_tower().representation

    @property
    def dtype(self) -> str:
        """Of towers, projector and rows."""
        return dtype_name(self.model.dtype)

    @property
    def width(self) -> int:
        """Width of a row: that of the language model."""
        return self.model.config.hidden_size

    @property
    def tokens(self) -> int | None:
        """Rows of an image; None where they depend on its size."""
        if self.model.config.image_aspect_ratio == "anyres":
            return None
        return projected_tokens(self.representation.tokens, self.model.config.mm_projector_type)

    @property
    def stage(self) -> str:
        """`stage1`, `lora` or `whole`."""
        return STAGES[self.checkpoint.kind]

    @cached_property
    def language_model(self) -> str:
        """Identity of the language model that the run or its config names; else ''."""
        here = Path(self.path)
        run = here.parent if here.name.startswith("checkpoint-") else here
        said = read_json(run / "run.json") if (run / "run.json").is_file() else {}
        flags = said.get("flags") or {}
        named = flags.get("model_name_or_path") or self.checkpoint.config.get("_name_or_path")
        return identity(str(named or ""))

    @cached_property
    def tower_digest(self) -> str:
        """64 hex digits over tower weights that the checkpoint brings with it; '' without any."""
        found = tower_weights(self.checkpoint)
        return _digest(found.items()) if found else ""

    def facts(self) -> dict[str, Any]:
        """What an image's rows depend on besides its pixels, as plain values."""
        config, representation = self.model.config, self.representation
        return {
            "representation": representation.name,
            "spec_hash": spec_hash(representation),
            "join": representation.join,
            "grid_align": representation.grid_align,
            "tower_weights": self.tower_digest,
            "projector": self.projector_digest,
            "dtype": self.dtype,
            "frame": self.model.get_vision_tower().frame,
            "image_aspect_ratio": config.image_aspect_ratio,
            "image_grid_pinpoints": getattr(config, "image_grid_pinpoints", None),
            "mm_patch_merge_type": getattr(config, "mm_patch_merge_type", None) or "flat",
            "preprocessing": VERSION,
        }

    def __call__(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """[rows, width] of every image, on the CPU; one image's last digits depend on the others'.

        Rows of a batch are summed in another order than those of an image alone.
        """
        tower = self.model.get_vision_tower()
        if not tower.is_loaded:
            load_tower(self.model, self.checkpoint)
        pixels = process_images(images, tower.image_processor, self.model.config)
        return self._rows(pixels, [image.size for image in images])

    def of_features(self, tokens: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same of the towers' tokens [N, C], which a feature store may hold."""
        return self._rows(None, None, torch.stack(list(tokens)))

    def _rows(
        self, pixels: Any, sizes: Any, features: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        with torch.no_grad():
            rows, counts = self.model.encode_images(pixels, sizes, features, self.device)
        return [one.cpu().clone() for one in rows.split(counts)]


def _without_layers(fields: Mapping[str, Any]) -> torch.nn.Module:
    """The LLaVA of a config, in float32, over a language model of no layers."""
    made = llava_class("llama")
    width = llava_config(fields)[0].hidden_size
    config = made.config_class(hidden_size=width, **NO_LAYERS, **own_fields(fields))
    config.image_aspect_ratio = getattr(config, "image_aspect_ratio", None) or "square"
    config.mm_projector_type = getattr(config, "mm_projector_type", None) or "linear"
    return made(config)


def _read_projector(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copies the projector's weights, and what ends the rows of tiles, out of any layout."""
    if checkpoint.kind in (STAGE1, LORA):
        path = partial_weights(checkpoint)
        state = {key: value for key, value in read_tensors(path).items() if of_projector(key)}
    else:
        path, state = Path(checkpoint.path), _of_whole(model, checkpoint)
    take_trained(model, state, path)


def _of_whole(model: torch.nn.Module, checkpoint: Checkpoint) -> State:
    """The projector's weights out of a whole LLaVA; a newline that nothing uses stays behind."""
    named = llava_key if checkpoint.kind == CONVERTED else str
    found = checkpoint.tensors(lambda key: of_projector(named(key)))
    own = {name for name, _ in model.named_parameters()}
    return {named(key): value for key, value in found.items() if named(key) in own}


def _dtype(
    asked: torch.dtype | str | None, fields: Mapping[str, Any], device: torch.device
) -> torch.dtype:
    """As asked for, else as recorded, else as `load_pretrained_model` takes it."""
    recorded = (fields.get(key) for key in ("mm_vision_dtype", "dtype", "torch_dtype"))
    return as_dtype(asked or next(filter(None, recorded), None), device.type == "cuda")


def _digest(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """64 hex digits over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(weights, key=lambda item: item[0]):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
