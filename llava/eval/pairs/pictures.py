"""The images and captions of pair benchmarks: each is read once, whole, or refused."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from llava.errors import LawError
from llava.eval.pairs.items import Item
from llava.extraction import decode, read_ahead
from llava.log import progress

T = TypeVar("T")


def open_picture(path: Path) -> Image.Image:
    """The RGB image in a file; LawError naming it where it is missing or does not decode wholly."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from None
    except LawError as error:
        raise LawError(f"{path}: {error}") from None


def pictures_of(items: Iterable[Item]) -> list[Path]:
    """Every image of the items once, in the order in which they come."""
    return list(dict.fromkeys(path for item in items for path in item.images))


def captions_of(items: Iterable[Item]) -> list[str]:
    """Every caption of the items once, in the order in which they come."""
    return list(dict.fromkeys(text for item in items for text in item.captions))


def groups_of(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """The values in groups of `size`, the last one perhaps smaller."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def in_batches(
    paths: Sequence[Path],
    preprocess: Callable[[list[Image.Image]], torch.Tensor],
    what: str,
    size: int,
    workers: int = 2,
) -> Iterator[tuple[Sequence[Path], torch.Tensor]]:
    """(paths, pixels [B, 3, S, S]) of every group of files, the next ones prepared meanwhile.

    `what` is what progress calls it. Raises LawError naming the file that cannot be prepared.
    """

    def prepared(group: Sequence[Path]) -> torch.Tensor:
        """Pixels [B, 3, S, S] of one group."""
        return torch.cat([_preprocessed(path, preprocess) for path in group])

    groups = groups_of(paths, size)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        made = read_ahead(pool, groups, prepared, max(1, workers))
        yield from zip(groups, progress(made, what, len(groups)), strict=True)


def _preprocessed(
    path: Path, preprocess: Callable[[list[Image.Image]], torch.Tensor]
) -> torch.Tensor:
    image = open_picture(path)
    try:
        return preprocess([image])
    except LawError as error:  # too thin for its frame
        raise LawError(f"{path}: {error}") from None
