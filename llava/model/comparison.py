"""Whether two configs mean the same towers: where a projector fits, what a further run takes over.

A released config has names and a few fields, ours have every spec; towers are compared by what
their features depend on, whatever folder or hub id their weights are read from.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.config import to_plain
from llava.errors import LawError
from llava.model.multimodal_encoder.known import towers
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_encoder.spec import WHERE_FROM, TowerSpec
from llava.model.representation import DIFFUSION, FieldError, representation_of

FLAGS = {
    "up_ft_index": "up_ft_index",
    "t": "t",
    "prompt": "prompt",
    "ensemble_size": "ensemble_size",
    "size": "img_size",
    "seed": "noise_seed",
    "vae_sample": "vae_sample",
    "compat": "compat",
    "layer": "mm_vision_select_layer",
    "select": "mm_vision_select_feature",
}
"""Field of a spec -> the flag of training that sets it; the last two not of diffusion towers."""

SUFFIX = r"(?:@[0-9]+)?(?::[a-z_]+=[^:.+@]*)*"
"""Size and options behind an id in a name."""


def difference(recorded: Mapping[str, Any], config: Any) -> str:
    """What the towers of a config's fields and of another config differ in, in words.

    Empty where a projector of the one fits the other. Which folder or hub id the weights are read
    from is no difference, nor is what a tower that cannot be found any more leaves open.
    """
    name, own = recorded.get("mm_vision_tower"), getattr(config, "mm_vision_tower", None)
    if not name or not own:
        return ""
    ours = _parts(config)
    theirs = _recorded_parts(recorded, ours or [])
    if ours is None or theirs is None:
        return _difference_in_fields(recorded, config, ours)
    if not _same_towers(theirs, ours):
        return f"was trained with {name}, and this model has {own}"
    for before, now in zip(theirs, ours, strict=True):
        if said := _difference_of_parts(before, now):
            return said
    return ""


def settings(recorded: Mapping[str, Any], representation: Representation) -> dict[str, Any]:
    """Flag of training -> the value with which these towers are read as a config's are.

    Empty where the config's towers are others. One flag is for all towers, so there is none for
    what they differ in.
    """
    ours = [to_plain(part) for part in representation.parts]
    theirs = _recorded_parts(recorded, ours) if recorded.get("mm_vision_tower") else None
    if theirs is None or not _same_towers(theirs, ours):
        return {}
    found = {}
    for field, flag in FLAGS.items():
        of_layers = field in ("layer", "select")
        values = [part.get(field) for part in theirs if (part.get("t") is None) == of_layers]
        values = [value for value in values if value is not None]
        if values and all(value == values[0] for value in values):
            found[flag] = values[0]
    return found


def dtype_difference(recorded: Mapping[str, Any], parts: Sequence[TowerSpec], dtype: str) -> str:
    """Which towers give other features in `dtype` than in the one of training, in words.

    Empty where they agree, or where a config does not say (`mm_vision_dtype`).
    """
    before = recorded.get("mm_vision_dtype")
    concerned = " and ".join(part.id for part in parts if part.depends_on_dtype)
    if not before or before == dtype or not concerned:
        return ""
    return (
        f"was trained with {concerned} in {before}, and here it is {dtype}: with compat "
        "'reference' features of the two differ by more than rounding"
    )


def _parts(config: Any) -> list[dict[str, Any]] | None:
    """The specs of a config as plain fields; None where its towers cannot be found."""
    if specs := getattr(config, "mm_vision_specs", None):
        return [dict(part) for part in specs]
    try:
        found = representation_of(config)
    except FieldError:
        raise
    except LawError:
        return None
    return [to_plain(part) for part in found.parts]


def _recorded_parts(
    recorded: Mapping[str, Any], ours: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """The specs that a config meant; None where its towers cannot be found.

    Names of a published config are read with the weights of ours. A folder that is gone is taken
    for ours where its name ends alike and the width is the one that was recorded.
    """
    if recorded.get("mm_vision_specs"):
        return _parts(SimpleNamespace(**recorded))
    name = recorded["mm_vision_tower"]
    elsewhere = {part["id"]: part["weights"] for part in ours if _is_elsewhere(part)}
    readings = [(name, {k: v for k, v in elsewhere.items() if k in name}), (name, {})]
    if renamed := _in_our_names(name, ours):
        readings += [(renamed, elsewhere), (renamed, {})]
    for text, replacements in readings:
        fields = SimpleNamespace(**{**recorded, "mm_vision_tower": text})
        try:
            found = representation_of(fields, replacements)
            as_wide = recorded.get("mm_hidden_size") in (None, found.dim)
        except FieldError:
            raise
        except LawError:
            continue
        if as_wide:  # no digest was recorded, so there is none to compare
            return [{**to_plain(part), "digest": ""} for part in found.parts]
    return None


def _is_elsewhere(part: Mapping[str, Any]) -> bool:
    """Whether weights are read from another place than a name alone means."""
    known = towers().get(part["id"])
    return bool(part.get("weights")) and (known is None or part["weights"] != known.weights)


def _in_our_names(name: str, ours: Sequence[Mapping[str, Any]]) -> str:
    """A name with our ids in place of its own; empty where its parts end otherwise.

    The last part of an id is enough, since a hub id may lie in a folder.
    """
    ends = [f"(?:.*/)?{re.escape(Path(part['id']).name)}({SUFFIX})" for part in ours]
    match = re.fullmatch("[.+]".join(ends), name) if ends else None
    if not match:
        return ""
    return ".".join(part["id"] + suffix for part, suffix in zip(ours, match.groups(), strict=True))


def _same_towers(theirs: Sequence[Mapping], ours: Sequence[Mapping]) -> bool:
    """Whether towers are called the same, by the last part of their ids, or hold the same files."""
    return len(theirs) == len(ours) and all(
        Path(before["id"]).name == Path(now["id"]).name
        or (before.get("digest") and before["digest"] == now.get("digest"))
        for before, now in zip(theirs, ours, strict=True)
    )


def _difference_of_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What features of two specs of one tower differ by; fields that one lacks are passed over."""
    common = set(before) & set(now)
    aside = {"layer"} if now.get("t") is not None else set()  # follows up_ft_index
    for field in (*FLAGS, *sorted(common - set(FLAGS))):
        if field not in common - aside:
            continue
        counts = field not in WHERE_FROM or (field == "digest" and before[field] and now[field])
        if counts and _settled(before, field) != _settled(now, field):
            flag = field if field == "size" and not aside else FLAGS.get(field, field)
            return f"was trained with {now['id']} at {flag} {before[field]}, here {now[field]}"
    return ""


def _settled(part: Mapping[str, Any], field: str) -> Any:
    """A field's value as the features know it: layer -2 of 24 is 23."""
    value = part[field]
    if field == "layer" and value < 0 and part.get("depth"):
        return part["depth"] + 1 + value
    return value or part["size"] if field == "resize_to" else value


def _difference_in_fields(
    recorded: Mapping[str, Any], config: Any, ours: Sequence[Mapping[str, Any]] | None
) -> str:
    """The difference where towers cannot be found: names, and fields that both configs hold."""
    name, own = recorded["mm_vision_tower"], config.mm_vision_tower
    same = _in_our_names(name, ours) if ours else Path(name).name == Path(own).name
    widths = {recorded.get("mm_hidden_size"), getattr(config, "mm_hidden_size", None)} - {None}
    if not same or len(widths) > 1:
        return f"was trained with {name}, and this model has {own}"
    diffusion = bool(ours) and all(part.get("t") is not None for part in ours)
    # a diffusion model is read at a block, whatever --mm_vision_select_layer was
    layer = () if diffusion else ("mm_vision_select_layer",)
    for field in (*layer, "mm_vision_select_feature", *DIFFUSION):
        before, now = recorded.get(field), getattr(config, field, None)
        if before is not None and now is not None and before != now:
            return f"was trained with {field} {before}, here {now}"
    return ""
