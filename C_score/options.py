"""Names of features and feature protocols: which towers, at which size, in which frame.

Protocol `tower`: the image is padded to a square with the tower's mean colour and resized straight
to the input, with the tower's own mean and std, so that keypoints and features share a frame.
Protocol `paper`: what the published numbers used: stretched to a square and scaled to [-1, 1] for
every tower, at the sizes of `options.yaml`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.config import build, read_yaml
from llava.errors import UnknownNameError, UsageError, unknown_name
from llava.model.multimodal_encoder.diffusion.options import suffix
from llava.model.multimodal_encoder.known import towers
from llava.model.multimodal_encoder.registry import Representation, known_names, resolve
from llava.model.multimodal_encoder.spec import TowerSpec

FRAMES = {"tower": "pad", "paper": "stretch"}
"""Feature protocol -> frame of the preprocessing."""

HALF = (0.5, 0.5, 0.5)
"""Mean and std that scale [0, 1] to [-1, 1]."""


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

    Raises UsageError for a name that is none of these, with the nearest one.
    """
    if protocol not in FRAMES:
        raise UsageError(unknown_name("feature protocol", protocol, FRAMES))
    option = option_of(name)
    sizes = {o.tower: o.paper_size for o in options().values()} if protocol == "paper" else None
    try:
        found = resolve(option.tower if option else name, replace=replace, sizes=sizes)
    except UnknownNameError:
        if option or "/" in name:
            raise
        names = [*options(), *known_names()]
        raise UnknownNameError(unknown_name("feature", name, names, "law towers")) from None
    if protocol == "paper":
        found = dataclasses.replace(found, parts=tuple(map(_as_published, found.parts)))
    return found


def option_of(name: str) -> Option | None:
    """The option of that name or file suffix, whatever the case; None where there is none."""
    for known, option in options().items():
        if name.lower() in (known.lower(), option.suffix):
            return option
    return None


def sized_name(spec: TowerSpec) -> str:
    """The id, with `@size` and `:option=value` where that is not the tower's own."""
    known = towers().get(spec.id)
    size = "" if known and known.size == spec.size else f"@{spec.size}"
    return spec.id + size + suffix(spec)


def suffix_of(name: str) -> str:
    """What ends the .pt files of a feature: the option's suffix, else the name without slashes."""
    option = option_of(name) or next((o for o in options().values() if o.tower == name), None)
    return option.suffix if option else name.replace("/", "--")


def _as_published(spec: TowerSpec) -> TowerSpec:
    """The spec with [-1, 1] pixels, resized as the published extraction did."""
    return dataclasses.replace(spec, mean=HALF, std=HALF, interpolation="bicubic")
