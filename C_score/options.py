"""Names of features and feature protocols: which towers, at which size, in which frame.

Protocol `tower`: the image is padded to a square with the tower's mean colour and resized straight
to the input, with the tower's own mean and std, so that keypoints and features share a frame.
Protocol `paper`: what the published numbers used: stretched to a square and scaled to [-1, 1] for
every tower, at the sizes of `options.yaml`, each tower of a join at its own.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.config import build, read_yaml
from llava.errors import LawError, UnknownNameError, UsageError, unknown_name
from llava.model.multimodal_encoder.diffusion.options import suffix
from llava.model.multimodal_encoder.known import towers
from llava.model.multimodal_encoder.registry import (
    Representation,
    known_names,
    parse_replacements,
    resolve,
    spec_of,
)
from llava.model.multimodal_encoder.spec import TowerSpec

FRAMES = {"tower": "pad", "paper": "stretch"}
"""Feature protocol -> frame of the preprocessing."""

HALF = (0.5, 0.5, 0.5)
"""Mean and std that scale [0, 1] to [-1, 1]."""

LONGEST = 100
"""Bytes of a feature's name in a file name, which has 255 for the image's name and ours."""


@dataclass(frozen=True)
class Option:
    """One value of `--feature`."""

    tower: str
    suffix: str
    paper_size: int
    """Pixels."""
    paper_source: Literal["extractor", "table2"]


@functools.cache
def options() -> dict[str, Option]:
    """The original README's options by name."""
    path = Path(__file__).with_name("options.yaml")
    return {
        name: build(Option, value, f"options.yaml.{name}")
        for name, value in read_yaml(path).items()
    }


def representation(
    name: str, protocol: str = "tower", replace: Mapping[str, str] | None = None
) -> Representation:
    """What an option, a suffix of one, or any representation name stands for under a protocol.

    Option names stand wherever a tower's name may: `DIFT1.5@512:t=261+DINOv2`. Under `paper` a
    diffusion tower of a join keeps its published size; a ViT that takes any adopts a grid.
    Raises UsageError for a name that is none of these, with the nearest one.
    """
    if protocol not in FRAMES:
        raise UsageError(unknown_name("feature protocol", protocol, FRAMES))
    if protocol == "tower":
        return _resolved(name, replace=replace)
    asked = {
        "replace": replace,
        "sizes": {option.tower: option.paper_size for option in options().values()},
    }
    alone = _resolved(name, **asked, join="append")  # parts that are appended keep their own sizes
    grid_align = "interpolate" if any(spec.t is not None for spec in alone.parts) else ""
    found = _resolved(name, **asked, grid_align=grid_align)
    parts = (
        own if own.t is not None else settled
        for own, settled in zip(alone.parts, found.parts, strict=True)
    )
    return dataclasses.replace(found, parts=tuple(map(_as_published, parts)))


def _resolved(name: str, **more) -> Representation:
    """`resolve` of the first spelling of `name` that is known."""
    option = option_of(name)
    for spelling in [option.tower] if option else _spellings(name):
        try:
            return resolve(spelling, **more)
        except UnknownNameError as error:
            last = error
    if option or "/" in name:
        raise last
    names = [*options(), *known_names()]
    # in a join, or with settings, the part is named that nothing goes by
    parts = [re.split("[@:]", part)[0] for part in name.split("+")]
    wrong = next((part for part in parts if not _is_known(part)), name)
    raise UnknownNameError(unknown_name("feature", wrong, names, "law towers"))


def _spellings(name: str) -> dict[str, None]:
    """`name` with options as their towers' ids: those that begin it or follow '+', also after '.'.

    Last as it is: a folder may be called so. The registry knows the other options itself.
    """
    known = {one.lower() for one in known_names()}
    ours = {
        text.lower(): option.tower
        for name, option in options().items()
        for text in (name, option.suffix)
        if text.lower() not in known
    }
    longest_first = sorted(map(re.escape, ours), key=len, reverse=True)
    found = {}
    for before in (r"(?:^|(?<=\+))", r"(?:^|(?<=[+.]))"):
        option = re.compile(rf"{before}(?:{'|'.join(longest_first)})(?=[@:+.]|$)", re.IGNORECASE)
        found[option.sub(lambda match: ours[match[0].lower()], name.strip())] = None
    return found | {name: None}


def _is_known(name: str) -> bool:
    for spelling in _spellings(name):
        try:
            resolve(spelling)
        except UnknownNameError:
            continue
        except LawError:  # known, but not to be had so
            return True
        return True
    return False


def option_of(name: str) -> Option | None:
    """The option of that name or file suffix, whatever the case; None where there is none."""
    for known, option in options().items():
        if name.lower() in (known.lower(), option.suffix):
            return option
    return None


def replacements(pairs: list[str]) -> dict[str, str]:
    """`parse_replacements`, with option names as well."""
    spelled = []
    for pair in pairs:
        old, equals, new = pair.partition("=")
        option = option_of(old)
        spelled.append((option.tower if option else old) + equals + new)
    return parse_replacements(spelled)


def sized_name(
    spec: TowerSpec, protocol: str = "tower", replace: Mapping[str, str] | None = None
) -> str:
    """The id, with `@size` and `:option=value` where that is not the tower's own.

    It is read as that spec under the same protocol.
    """
    return spec.id + _set_apart(spec, protocol, replace)


def file_suffix(
    spec: TowerSpec, protocol: str = "tower", replace: Mapping[str, str] | None = None
) -> str:
    """What ends the .pt files of a tower: the option's suffix, or the id, and what sets it apart.

    It is the same whether the tower was extracted alone or in a join.
    """
    option = next((o for o in options().values() if o.tower == spec.id), None)
    base = option.suffix if option else spec.id.replace("/", "--")
    return shortened(base + _set_apart(spec, protocol, replace))


def suffix_of(name: str, protocol: str = "tower") -> str:
    """What ends the .pt files of a feature; a name that is no single tower's stands for itself."""
    try:
        parts = representation(name, protocol).parts
    except LawError:
        parts = ()
    return file_suffix(parts[0], protocol) if len(parts) == 1 else shortened(name)


def shortened(name: str) -> str:
    """`name` as part of a file name: without slashes, a hash in place of what is beyond LONGEST.

    A prompt, or the path of a folder, may be longer than the file system takes.
    """
    name = name.replace("/", "--")
    data = name.encode()
    if len(data) <= LONGEST:
        return name
    digest = f"~{hashlib.sha256(data).hexdigest()[:16]}"
    return data[: LONGEST - len(digest)].decode(errors="ignore") + digest


def _set_apart(spec: TowerSpec, protocol: str, replace: Mapping[str, str] | None) -> str:
    """`@size` and `:option=value`, each where it is not what the id alone has."""
    usual = _own_size(spec, protocol, replace)
    return ("" if spec.size == usual else f"@{spec.size}") + suffix(spec)


def _own_size(spec: TowerSpec, protocol: str, replace: Mapping[str, str] | None) -> int:
    """The size of a tower where none is asked for; 0 where only its folder or config tells it."""
    if not spec.flexible:
        return spec.size
    published = {option.tower: option.paper_size for option in options().values()}
    if protocol == "paper" and spec.id in published:
        return published[spec.id]
    if spec.id in (replace or {}):
        return spec_of(spec.id, replace).size
    known = towers().get(spec.id)
    return known.size if known else 0


def _as_published(spec: TowerSpec) -> TowerSpec:
    """The spec with [-1, 1] pixels, resized as the published extraction did."""
    return dataclasses.replace(spec, mean=HALF, std=HALF, interpolation="bicubic")
