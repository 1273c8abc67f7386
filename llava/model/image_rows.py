"""Images as they are given, as one batch of views for the tower, and their tokens as rows.

An image has one view, or with `anyres` several: the whole of it, then its tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava.errors import LawError, UsageError, unknown_name
from llava.model.multimodal_encoder.anyres import MERGES, Size, unpad
from llava.model.multimodal_encoder.combined import PixelBatch

Images = torch.Tensor | PixelBatch | Sequence[torch.Tensor] | Sequence[PixelBatch]


@dataclass(frozen=True)
class Views:
    """Views of all images, one after the other."""

    pixels: torch.Tensor | PixelBatch
    """[V, 3, S, S], or of several towers one such per part."""
    counts: tuple[int, ...]
    """Views of every image."""
    tiled: bool
    """Whether an image was given as a group of views, even of one."""


def views(images: Images, towers: int) -> Views:
    """Views of a tensor [I, 3, S, S], of one image [3, S, S], of groups [I, V, 3, S, S], of a list
    of images or groups, or of the same as PixelBatch.

    With several `towers` a list of one tensor [I, 3, S, S] for each is a PixelBatch, too.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise LawError("an empty list of images; leave `images` out of a batch without any")
        if towers > 1 and isinstance(images[0], torch.Tensor):
            return views(PixelBatch(images), towers)
        groups = [views(image, towers) for image in images]
        parts = zip(*(_parts(group.pixels) for group in groups), strict=True)
        pixels = _together([torch.cat(part) for part in parts])
        return Views(pixels, tuple(sum(group.counts) for group in groups), True)
    parts = _parts(images)
    if len(parts) != towers:
        raise LawError(f"pixels for {len(parts)} towers, and the model has {towers}")
    dimensions = parts[0].ndim
    if dimensions not in (3, 4, 5):
        raise LawError(f"pixels of {dimensions} dimensions; expected [images, 3, side, side]")
    if dimensions == 5:
        count, group = parts[0].shape[:2]
        return Views(_together([p.flatten(0, 1) for p in parts]), (group,) * count, True)
    if dimensions == 3:
        parts = [part[None] for part in parts]
    return Views(_together(parts), (1,) * len(parts[0]), False)


def _parts(pixels: torch.Tensor | PixelBatch) -> list[torch.Tensor]:
    return list(pixels.parts) if isinstance(pixels, PixelBatch) else [pixels]


def _together(parts: Sequence[torch.Tensor]) -> torch.Tensor | PixelBatch:
    return parts[0] if len(parts) == 1 else PixelBatch(parts)


@dataclass(frozen=True)
class Layout:
    """How the tokens of an image's views become its rows."""

    merge: str = "flat"
    """flat: view by view; spatial: tiles as one map; spatial_unpad: and without black borders."""
    grid: tuple[int, int] = (0, 0)
    """Tokens (rows, columns) of one view."""
    newline_H: torch.Tensor | None = None
    """spatial_unpad: ends every row of the tiles' map."""

    def __post_init__(self):
        if self.merge not in MERGES:
            raise UsageError(unknown_name("mm_patch_merge_type", self.merge, MERGES))

    def rows(
        self, tokens_VNH: torch.Tensor, given: Views, tiles: Sequence[tuple[Size, Size]] | None
    ) -> tuple[torch.Tensor, list[int]]:
        """All rows [R, H], and how many of them every image has.

        `tiles` has for every image its size (width, height) and its tiles (columns, rows).
        """
        each = tokens_VNH.shape[1]
        if self.merge == "flat" or not given.tiled:
            return tokens_VNH.flatten(0, 1), [count * each for count in given.counts]
        if tiles is None or len(tiles) != len(given.counts):
            raise LawError(
                f"mm_patch_merge_type {self.merge} needs image_sizes, one for each of the "
                f"{len(given.counts)} images"
            )
        merged = [
            self._merged(tokens, *of)
            for tokens, of in zip(tokens_VNH.split(list(given.counts)), tiles, strict=True)
        ]
        return torch.cat(merged), [len(rows) for rows in merged]

    def _merged(self, tokens_VNH: torch.Tensor, size: Size, tiling: Size) -> torch.Tensor:
        overview, tiles = tokens_VNH[0], tokens_VNH[1:]
        if not len(tiles):
            newline = self.newline_H
            return overview if newline is None else torch.cat([overview, newline[None]])
        columns, rows = tiling
        if len(tiles) != columns * rows or tiles.shape[1] != self.grid[0] * self.grid[1]:
            raise LawError(
                f"an image of {size[0]} x {size[1]} has {len(tiles)} tiles of {tiles.shape[1]} "
                f"tokens; expected {columns} x {rows} tiles of {self.grid[0]} x {self.grid[1]}"
            )
        tiled = tiles.unflatten(1, self.grid).unflatten(0, (rows, columns))
        map_YXH = tiled.transpose(1, 2).flatten(0, 1).flatten(1, 2)
        if self.newline_H is not None:
            map_YXH = unpad(map_YXH.permute(2, 0, 1), size).permute(1, 2, 0)
            ends = self.newline_H.expand(len(map_YXH), 1, -1)
            map_YXH = torch.cat([map_YXH, ends], 1)
        return torch.cat([overview, map_YXH.flatten(0, 1)])
