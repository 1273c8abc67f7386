"""Where image rows go between text embeddings, as indices: one gather then makes the input.

The plan is integer work on the CPU over whole batches; it follows LLaVA's
`prepare_inputs_labels_for_multimodal`: positions outside of the attention mask are dropped, every
image token gives way to the rows of its image, rows are cut at a maximum length and padded again.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import LawError
from llava.log import get_logger

logger = get_logger("model")


@dataclass(frozen=True)
class Plan:
    """A spliced batch without its embeddings. All tensors are on the CPU."""

    text_ids: torch.Tensor
    """int64 [N]: ids to embed, in order."""
    source_BT: torch.Tensor
    """int64 [B, T]: which row stands where, among one of zeros, N text rows and all image rows."""
    mask_BT: torch.Tensor
    """bool [B, T]: false at padding."""
    position_BT: torch.Tensor
    """int64 [B, T]: from 0 in every row or segment; 0 at padding."""
    row_BT: torch.Tensor
    """int64 [B, T]: the row of the ids that stands there; 0 at padding."""
    labels_BT: torch.Tensor | None
    boundaries: tuple[int, ...] | None
    """Where segments begin, and the end of the last one, in a batch of one row; else None."""

    @property
    def padded(self) -> bool:
        """Whether there is a position without a token."""
        return not bool(self.mask_BT.all())


def plan(
    input_ids: torch.Tensor,
    keep: torch.Tensor,
    image_rows: Sequence[int],
    labels: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    max_length: int | None = None,
    padding_side: str = "right",
    flat: bool = False,
) -> Plan:
    """The plan for ids [B, L] with -200 at images, of which `keep` [B, L] are no padding.

    `image_rows` says how many rows every image has; images are taken in order, by placeholders
    where both counts agree, else as LLaVA's collator gives them: a row without a placeholder has
    an image that is passed over. `flat` lays all rows one after the other into a single one
    without padding; rows, and segments in them, are then told apart by `boundaries`. What is longer
    than `max_length` is cut at its end: a row, or every segment.

    Raises LawError where images are missing.
    """
    batch = len(input_ids)
    row, place_in_row = keep.nonzero(as_tuple=True)
    ids = input_ids[row, place_in_row]
    is_image = ids == IMAGE_TOKEN_INDEX
    image = _image_of(row, is_image, batch, len(image_rows))
    rows_of = torch.as_tensor(image_rows, dtype=torch.int64)
    lengths = torch.ones_like(ids)
    lengths[is_image] = rows_of[image]
    first_row = rows_of.cumsum(0) - rows_of
    text_ids = ids[~is_image]
    start = (~is_image).cumsum(0)
    start[is_image] = 1 + len(text_ids) + first_row[image]

    owner = torch.repeat_interleave(torch.arange(len(ids)), lengths)
    within = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    source = start[owner] + within
    place = row[owner]
    spliced_labels = None
    if labels is not None:
        spliced_labels = labels[row, place_in_row][owner].masked_fill(is_image[owner], IGNORE_INDEX)
    segment = place
    if segment_ids is not None:
        changes = torch.ones_like(row, dtype=torch.bool)
        given = segment_ids[row, place_in_row]
        changes[1:] = (given[1:] != given[:-1]) | (row[1:] != row[:-1])
        segment = (changes.cumsum(0) - 1)[owner]

    position = _rank_within(segment)
    if max_length is not None:
        cut = position < max_length  # of every segment: each is a sample of its own
        source, place, position = (values[cut] for values in (source, place, position))
        spliced_labels = None if spliced_labels is None else spliced_labels[cut]
    if flat or segment_ids is not None:
        return _flat(text_ids, source, position, place, spliced_labels)
    size = torch.bincount(place, minlength=batch)
    width = int(size.max()) if batch else 0
    column = position if padding_side == "right" else position + (width - size)[place]

    def placed(values: torch.Tensor, empty: int) -> torch.Tensor:
        result = torch.full((batch, width), empty, dtype=values.dtype)
        result[place, column] = values
        return result

    return Plan(
        text_ids,
        placed(source, 0),
        placed(torch.ones_like(place, dtype=torch.bool), False),
        placed(position, 0),
        placed(place, 0),
        None if spliced_labels is None else placed(spliced_labels, IGNORE_INDEX),
        None,
    )


def _flat(
    text_ids: torch.Tensor,
    source: torch.Tensor,
    position: torch.Tensor,
    row: torch.Tensor,
    labels: torch.Tensor | None,
) -> Plan:
    """One row of segments; a segment's first token follows from nothing, so it has no label."""
    first = position == 0
    boundaries = (*first.nonzero()[:, 0].tolist(), len(position))
    if labels is not None:
        labels = labels.masked_fill(first, IGNORE_INDEX)[None]
    mask = torch.ones(1, len(position), dtype=torch.bool)
    return Plan(text_ids, source[None], mask, position[None], row[None], labels, boundaries)


def _rank_within(group: torch.Tensor) -> torch.Tensor:
    """How many of the same group stand before; equal groups stand together, in rising order."""
    size = torch.bincount(group) if len(group) else group
    return torch.arange(len(group)) - (size.cumsum(0) - size)[group]


def _image_of(row: torch.Tensor, is_image: torch.Tensor, batch: int, images: int) -> torch.Tensor:
    """Number of the image that every placeholder stands for."""
    wanted = torch.bincount(row[is_image], minlength=batch)
    placeholders = int(wanted.sum())
    taken = wanted if images == placeholders else wanted.clamp(min=1)
    image = (taken.cumsum(0) - taken)[row[is_image]] + _rank_within(row[is_image])
    if images < placeholders or (placeholders and int(image.max()) >= images):
        raise LawError(
            f"{batch} rows hold {placeholders} image tokens, and there are {images} images; "
            "expected one for every image token, or one more for every row without"
        )
    if images > int(taken.sum()):
        _tell_of_unused()
    return image


@functools.cache
def _tell_of_unused() -> None:
    logger.warning("more images than image tokens: those left over are not looked at")
