"""The images of pair benchmarks, read whole or refused."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from llava.errors import LawError
from llava.eval.pairs.items import Item
from llava.extraction import decode


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


def groups_of(values: Sequence, size: int) -> list[Sequence]:
    """The values in groups of `size`, the last one perhaps smaller."""
    return [values[start : start + size] for start in range(0, len(values), size)]
