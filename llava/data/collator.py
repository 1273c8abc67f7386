"""Samples to a batch: the arguments of the model's forward."""

from collections.abc import Sequence
from typing import Any

import torch

from llava.constants import IGNORE_INDEX
from llava.errors import UsageError, unknown_name
from llava.model.multimodal_encoder.combined import PixelBatch

SIDES = ("right", "left")


class Collator:
    """Pads ids and labels to the longest row and puts the images of all rows one after the other.

    A batch has `input_ids` and `labels` [B, T], `attention_mask` bool [B, T] (made from lengths, so
    a pad id that stands in a text stays seen), and of its I images, in the order of rows and of
    places in them, `images` ([I, 3, S, S], a PixelBatch, or for anyres a list) with `image_sizes`,
    or `image_features` [I, N, C]; a batch without images has none of these keys.

    `packed`: items are lists of samples, and all of them come in one row [1, T], with
    `segment_ids` [1, T] (0, 1, ...) in place of the mask; the first label of a segment is ignored,
    since what stands before it is another sample.
    """

    def __init__(self, pad_token_id: int, packed: bool = False, padding_side: str = "right"):
        if padding_side not in SIDES:
            raise UsageError(unknown_name("padding side", padding_side, SIDES))
        self.pad_token_id = pad_token_id
        self.packed = packed
        self.padding_side = padding_side

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        if self.packed:
            samples = [sample for pack in items for sample in pack]
            return _one_row(samples) | _images(samples)
        return self._rows(items) | _images(items)

    def _rows(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(sample["input_ids"]) for sample in samples]
        shape = (len(samples), max(lengths))
        ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            place = slice(0, length) if self.padding_side == "right" else slice(-length, None)
            ids[row, place] = sample["input_ids"]
            labels[row, place] = sample["labels"]
            mask[row, place] = True
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _one_row(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    labels = [sample["labels"].clone() for sample in samples]
    for segment in labels:
        segment[0] = IGNORE_INDEX
    lengths = torch.tensor([len(segment) for segment in labels])
    segments = torch.repeat_interleave(torch.arange(len(samples)), lengths)
    return {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
        "labels": torch.cat(labels)[None],
        "segment_ids": segments[None],
    }


def _images(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pixels = [sample["images"] for sample in samples if "images" in sample]
    features = [sample["image_features"] for sample in samples if "image_features" in sample]
    if pixels:
        found["images"] = _together(pixels)
        found["image_sizes"] = [
            size for sample in samples for size in sample.get("image_sizes", ())
        ]
    if features:
        found["image_features"] = torch.cat(features)
    return found


def _together(pixels: list[Any]) -> torch.Tensor | PixelBatch | list[Any]:
    """The images of all samples as those of one."""
    if isinstance(pixels[0], list):
        return [image for images in pixels for image in images]
    if isinstance(pixels[0], PixelBatch):
        columns = zip(*(images.parts for images in pixels), strict=True)
        return PixelBatch([torch.cat(parts) for parts in columns])
    return torch.cat(pixels)
