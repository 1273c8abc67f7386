"""Several towers as one: the same interface, tokens joined by channel, appended or interleaved."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from llava.errors import UsageError, unknown_name
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.registry import JOINS, Representation


class PixelBatch:
    """One pixel tensor [B, 3, S_i, S_i] per part; sizes may differ, images are the same.

    An index into it is an index into the images, as of a tensor; of a single image, indexed out of
    a batch, the tensors are [3, S_i, S_i]. It is no Sequence: loaders would take it apart.
    """

    def __init__(self, parts: Sequence[torch.Tensor]):
        self.parts = tuple(parts)

    def __len__(self) -> int:
        if self.parts[0].ndim < 4:
            raise TypeError("a single image has no length; PixelBatch.stack makes a batch of some")
        return len(self.parts[0])

    def __getitem__(self, index: int | slice | torch.Tensor) -> "PixelBatch":
        return self._each(lambda part: part[index])

    def __iter__(self) -> Iterator["PixelBatch"]:
        return (self[i] for i in range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> "PixelBatch":
        """Each part moved or cast as `torch.Tensor.to` does."""
        return self._each(lambda part: part.to(*args, **kwargs))

    def pin_memory(self, device: Any = None) -> "PixelBatch":
        """Each part in page-locked memory, as a DataLoader asks for."""
        return self._each(lambda part: part.pin_memory())

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.parts[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parts."""
        return self.parts[0].dtype

    @staticmethod
    def stack(items: Sequence["PixelBatch"]) -> "PixelBatch":
        """A batch from single images, each indexed out of one."""
        columns = zip(*(item.parts for item in items), strict=True)
        return PixelBatch([torch.stack(parts) for parts in columns])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PixelBatch":
        return PixelBatch([change(part) for part in self.parts])

    def __repr__(self) -> str:
        return f"PixelBatch({', '.join(str(tuple(part.shape)) for part in self.parts)})"


class CombinedTower(nn.Module):
    """Runs every part on its own pixels and joins what they give."""

    def __init__(self, representation: Representation, parts: Sequence[VisionTower]):
        super().__init__()
        self.representation = representation
        self.parts = nn.ModuleList(parts)
        self.frame = parts[0].frame

    def preprocess(self, images: Sequence[Image.Image]) -> PixelBatch:
        """One float32 tensor [B, 3, S_i, S_i] per part."""
        return PixelBatch([part.preprocess(images) for part in self.parts])

    def tokens(self, pixels: PixelBatch | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tokens [B, N_i, C_i] of every part, not joined."""
        if isinstance(pixels, torch.Tensor):
            raise TypeError("one tensor for several towers; expected what preprocess gives")
        given = pixels.parts if isinstance(pixels, PixelBatch) else list(pixels)
        if len(given) != len(self.parts):
            raise ValueError(f"pixels for {len(given)} towers, expected {len(self.parts)}")
        return [part(one) for part, one in zip(self.parts, given, strict=True)]

    def forward(self, pixels: PixelBatch | Sequence[torch.Tensor]) -> torch.Tensor:
        """Joined tokens [B, N, C]."""
        return joined(self.representation, self.tokens(pixels))

    def train(self, mode: bool = True) -> "CombinedTower":
        """Stays in evaluation mode, as its parts do."""
        return super().train(False)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of the joined tokens."""
        return self.representation.grid

    @property
    def dim(self) -> int:
        """Width of a joined token."""
        return self.representation.dim

    hidden_size = dim  # as LLaVA calls it

    @property
    def num_patches(self) -> int:
        """Patch tokens of an image after the join."""
        counts = [part.num_patches for part in self.parts]
        if self.representation.join == "channel":
            return self.grid[0] * self.grid[1]
        return sum(counts)

    @property
    def num_tokens(self) -> int:
        """Tokens that `forward` gives for an image."""
        return self.representation.tokens

    @property
    def dtype(self) -> torch.dtype:
        """Of the parts' tokens."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.parts[0].device


def joined(representation: Representation, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tokens [B, N_i, C_i] of every part as the representation's [B, N, C].

    Where the representation says so, grids are resampled to the largest one first.
    """
    if representation.grid_align and representation.parts[0].select != "cls":
        tokens = [
            resize_tokens(one, spec.grid, representation.grid, spec.tokens - math.prod(spec.grid))
            for one, spec in zip(tokens, representation.parts, strict=True)
        ]
    return join_tokens(tokens, representation.join)


def join_tokens(tokens: Sequence[torch.Tensor], join: str) -> torch.Tensor:
    """Tokens [B, N_i, C_i] as one [B, N, C].

    `channel` needs equal N and adds widths; `append` needs equal C and adds tokens; `interleave`
    needs both equal and takes one token of each part in turn (MoF, as LLaVA's variants call it).
    """
    if join not in JOINS:
        raise UsageError(unknown_name("join", join, JOINS))
    counts, widths = {t.shape[1] for t in tokens}, {t.shape[2] for t in tokens}
    if join != "append" and len(counts) > 1:
        raise UsageError(f"join '{join}' needs equal token counts, got {sorted(counts)}")
    if join != "channel" and len(widths) > 1:
        raise UsageError(
            f"join '{join}' needs equal widths, got {sorted(widths)}; project each part first"
        )
    if join == "channel":
        return torch.cat(list(tokens), 2)
    if join == "append":
        return torch.cat(list(tokens), 1)
    return torch.stack(list(tokens), 2).flatten(1, 2)


def resize_tokens(
    tokens_BNC: torch.Tensor, grid: tuple[int, int], to: tuple[int, int], extra: int = 0
) -> torch.Tensor:
    """Patch tokens resampled bilinearly from one grid to another; `extra` leading tokens stay."""
    if grid == to:
        return tokens_BNC
    lead, patches = tokens_BNC[:, :extra], tokens_BNC[:, extra:]
    batch, _, dim = patches.shape
    maps = patches.reshape(batch, *grid, dim).permute(0, 3, 1, 2).float()
    maps = nn.functional.interpolate(maps, to, mode="bilinear", antialias=True)
    patches = maps.permute(0, 2, 3, 1).reshape(batch, -1, dim).to(tokens_BNC.dtype)
    return torch.cat([lead, patches], 1)
