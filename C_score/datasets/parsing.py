"""Annotation files read with every key checked, so that an error names the file and the mending."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava.errors import LawError, UsageError, nearest, unknown_name

Box = tuple[float, float, float, float]

LIMIT_PX = 10_000_000
"""Beyond any image; float32 still tells neighbouring pixels apart."""


def set_folder(data: Path, marker: str, remedy: str) -> Path:
    """`data`, which must hold the folder `marker`; LawError tells a near one or the `remedy`."""
    if (data / marker).is_dir():
        return data
    if not data.is_dir():
        raise LawError(f"{data}: no such folder (seen from {Path.cwd()}); {remedy}")
    inside = [path for path in sorted(data.iterdir()) if (path / marker).is_dir()]
    if inside:
        raise LawError(f"{data}: has no folder {marker}, but {inside[0]} has; give that one")
    raise LawError(f"{data}: expected a folder {marker} inside; {remedy}")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are not meant."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_split(split: str, known: Sequence[str]) -> None:
    """UsageError with the nearest name where `split` is none of `known`."""
    if split not in known:
        raise UsageError(unknown_name("split", split, known))


def choose(found: Sequence[str], wanted: Sequence[str] | None, where: Path) -> list[str]:
    """The categories of `found` that are `wanted` (None: all); UsageError for one not found."""
    for name in wanted or ():
        if name not in found:
            raise UsageError(f"{where}: {unknown_name('category', name, found)}")
    return [name for name in found if wanted is None or name in wanted]


def pairs_by_category(folder: Path, remedy: str) -> dict[str, list[str]]:
    """category -> sorted stems of the files `<stem>:<category>.json`, with the category in them."""
    found: dict[str, list[str]] = {}
    if not folder.is_dir():
        raise LawError(f"{folder}: no such folder; {remedy}")
    for path in sorted(folder.iterdir()):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        category = path.stem.rpartition(":")[2]
        if category == path.stem or not category:
            raise LawError(
                f"{path}: expected a name such as 000001-<source>-<target>:<category>.json; some "
                f"unpackers change the colon; {remedy}"
            )
        found.setdefault(category, []).append(path.stem)
    if not found:
        raise LawError(f"{folder}: holds no pair (<name>:<category>.json); {remedy}")
    return found


def inside(path: str, where: str) -> tuple[str, ...]:
    """The parts of a relative path with '/'; LawError for one that leaves its folder."""
    parts = tuple(path.split("/"))
    plain = all(part not in ("", ".", "..") for part in parts)
    if not plain or "\\" in path or "\0" in path or re.match("[A-Za-z]:", path):
        raise LawError(
            f"{where}: {path!r} is no plain path; expected one that stays in its folder, "
            "without '..', '.', '\\' or a leading '/'"
        )
    return parts


def image_size(path: Path, where: str) -> tuple[int, int]:
    """(width, height) in pixels of the stored image, from its header alone."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise LawError(f"{where}: no such image: {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LawError(f"{where}: cannot be read as an image: {path} ({error})") from error


@dataclass(frozen=True)
class Record:
    """A JSON object from a file; every reading method raises LawError for what is not as meant."""

    path: Path
    values: dict[str, Any]
    remedy: str

    def wrong(self, key: str, expected: str) -> LawError:
        """What to raise for `key`."""
        if key not in self.values:
            near = nearest(key, self.values)
            found = f"key '{key}' is missing" + (f" (there is '{near}')" if near else "")
        else:
            text = json.dumps(self.values[key])
            found = f"'{key}' is {text if len(text) <= 80 else text[:77] + '...'}"
        return LawError(f"{self.path}: {found}; expected {expected}; {self.remedy}")

    def text(self, key: str, expected: str) -> str:
        """A text that is not empty."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, expected)
        return value

    def numbers(self, key: str, count: int, expected: str) -> list[float]:
        """A list of exactly `count` finite numbers."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != count or not all(map(finite, value)):
            raise self.wrong(key, expected)
        return value

    def side(self, key: str, value: Any) -> int:
        """`value`, from `key`, as a side of an image in whole pixels."""
        if type(value) is not int or not 0 < value < LIMIT_PX:
            raise self.wrong(key, "whole numbers of pixels above 0")
        return value


def finite(value: Any) -> bool:
    """Whether `value` is a number of pixels: no bool, not NaN, not beyond any image."""
    return type(value) in (int, float) and abs(value) < LIMIT_PX


def read_record(path: Path, remedy: str) -> Record:
    """The JSON object in `path`."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise LawError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LawError(f"{path}: not valid JSON: {error}; {remedy}") from error
    if not isinstance(values, dict):
        raise LawError(f"{path}: expected a JSON object, got {type(values).__name__}; {remedy}")
    return Record(path, values, remedy)
