"""CLIP, SigLIP, DINOv2 and DINOv3 through transformers, each tapped at one block.

A tower's tokens equal `hidden_states[spec.block]` of its model; no final norm is in them.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from llava.errors import LawError
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.known import check_packages
from llava.model.multimodal_encoder.pretrained import first_line, unread
from llava.model.multimodal_encoder.tap import tap


class TransformersTower(VisionTower):
    """A vision transformer of transformers, described by where its parts stand."""

    models: ClassVar[dict[str, str]]
    """`model_type` -> class of transformers."""
    blocks: ClassVar[str] = "encoder.layers"
    embedded: ClassVar[str] = "embeddings"
    """The module that gives hidden state 0."""
    unused: ClassVar[tuple[str, ...]] = ("post_layernorm", "head")
    """Modules that only what follows the tap needs."""

    loads_in_dtype = True

    def load(self) -> None:
        """Reads the weights, settles positions for the input size, drops what is never run."""
        check_packages(self.spec)
        self.model = self._read()
        self.resize_positions()
        blocks = self.model.get_submodule(self.blocks)
        if len(blocks) != self.spec.depth:
            raise LawError(f"{self.source} has {len(blocks)} blocks, expected {self.spec.depth}")
        self._tapped = self.spec.block - 1
        del blocks[self.spec.block :]
        for name in self.unused:
            if hasattr(self.model, name):
                setattr(self.model, name, nn.Identity())

    def encode(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """Hidden state `spec.block`, [B, class token + registers + H*W, C]."""
        if self._tapped < 0:
            module = self.model.get_submodule(self.embedded)
        else:
            module = self.model.get_submodule(self.blocks)[self._tapped]
        return tap(module, lambda: self.model(pixels_BCSS))

    def resize_positions(self) -> None:
        """Fits the position table to the grid, where a family can."""

    def _read(self) -> nn.Module:
        import transformers

        kind = self._model_type()
        model_class = getattr(transformers, self.models[kind])
        try:
            with quiet():
                model, found = model_class.from_pretrained(
                    self.source, dtype=self.dtype, output_loading_info=True
                )
        except Exception as error:  # OSError, UnpicklingError, SafetensorError, KeyError, ...
            raise LawError(unread(self.spec.id, self.source, error)) from error
        if found["missing_keys"]:
            raise LawError(
                f"{self.source}: {len(found['missing_keys'])} weights are missing, such as "
                f"{sorted(found['missing_keys'])[0]}; expected a whole {model_class.__name__}"
            )
        return getattr(model, "vision_model", model)

    def _model_type(self) -> str:
        """Which of the family's models it is; a family of one kind need not look."""
        if len(self.models) == 1:
            return next(iter(self.models))
        import transformers

        try:
            kind = transformers.AutoConfig.from_pretrained(self.source).model_type
        except (OSError, ValueError) as error:
            raise LawError(f"{self.source}: no config: {first_line(error)}") from error
        if kind not in self.models:
            raise LawError(f"{self.source} is a {kind}, expected one of {', '.join(self.models)}")
        return kind


class ClipTower(TransformersTower):
    """OpenAI CLIP and OpenCLIP; hidden state 0 is taken after the first norm."""

    models: ClassVar = {"clip_vision_model": "CLIPVisionModel"}
    embedded: ClassVar = "pre_layrnorm"


class SiglipTower(TransformersTower):
    """SigLIP and fixed-size SigLIP 2."""

    models: ClassVar = {"siglip_vision_model": "SiglipVisionModel"}


class Dinov2Tower(TransformersTower):
    """DINOv2, whose position table is resized to the grid once, when the weights are read."""

    models: ClassVar = {
        "dinov2": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
    }
    blocks: ClassVar = "encoder.layer"
    unused: ClassVar = ("layernorm",)

    def resize_positions(self) -> None:
        """As `spec.position_resize` says: both forms exist, and weights were trained with one."""
        embeddings = self.model.embeddings
        table = embeddings.position_embeddings
        rows, columns = self.grid
        if table.shape[1] == 1 + rows * columns:
            return
        if self.spec.position_resize == "transformers-4":
            resized = resize_as_transformers_4(table, rows, columns)
        else:
            tokens = torch.empty(1, 1 + rows * columns, table.shape[2])
            resized = embeddings.interpolate_pos_encoding(tokens, self.spec.size, self.spec.size)
        embeddings.position_embeddings = nn.Parameter(resized.detach().clone())


class Dinov3Tower(TransformersTower):
    """DINOv3; its rotary positions fit any grid."""

    models: ClassVar = {"dinov3_vit": "DINOv3ViTModel"}
    blocks: ClassVar = "model.layer"
    unused: ClassVar = ("norm",)


def resize_as_transformers_4(table_1NC: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A class token's row and a square table of positions, resized to [1, 1 + rows * columns, C].

    transformers up to 4.4x passed scale factors with .1 cells added against rounding, so the
    sampling points differ from those of an explicit size (spec of the 4.38 release, measured on
    released weights).
    """
    side = math.isqrt(table_1NC.shape[1] - 1)
    dim = table_1NC.shape[2]
    grid = table_1NC[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    resized = nn.functional.interpolate(
        grid.float(), scale_factor=factors, mode="bicubic", align_corners=False
    ).to(table_1NC.dtype)
    if resized.shape[-2:] != (rows, columns):
        raise RuntimeError(f"resized to {tuple(resized.shape[-2:])}, expected {(rows, columns)}")
    return torch.cat([table_1NC[:, :1], resized.permute(0, 2, 3, 1).reshape(1, -1, dim)], 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' report and bar, where what it reports is known or checked by us."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
