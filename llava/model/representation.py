"""A model's config and its representation, each as the other says it.

Released configs name the tower, the layer and the selected tokens; ours hold every spec besides
(`mm_vision_specs`), which then counts before the names.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.config import build, to_plain
from llava.errors import LawError, UsageError, unknown_name
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.known import towers
from llava.model.multimodal_encoder.pretrained import folder_digest
from llava.model.multimodal_encoder.processor import frame_of
from llava.model.multimodal_encoder.registry import Representation, resolve
from llava.model.multimodal_encoder.spec import WHERE_FROM, TowerSpec

DIFFUSION = ("up_ft_index", "t", "prompt", "ensemble_size", "img_size")
"""Fields that published configs hold for diffusion towers."""

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


class _FieldError(LawError):
    """A field of a config that cannot be meant, wherever its towers are."""


def spec_hash(representation: Representation) -> str:
    """Hashes of all parts, joined by `+`."""
    return "+".join(part.hash() for part in representation.parts)


def representation_of(
    config: Any, replacements: Mapping[str, str] | None = None
) -> Representation | None:
    """What the config's towers are; None for a config without any.

    `replacements` maps a tower's id to the folder or id that its weights are read from. Raises
    UsageError for a name that is none, LawError for a folder that is not what the config recorded.
    """
    name = getattr(config, "mm_vision_tower", None)
    if not name:
        return None
    join = getattr(config, "mm_vision_join", None) or "channel"
    grid_align = getattr(config, "mm_vision_grid_align", None) or ""
    specs = getattr(config, "mm_vision_specs", None)
    if specs:
        _check_used(replacements or {}, [spec["id"] for spec in specs])
        parts = tuple(
            _moved(build(TowerSpec, dict(spec), f"mm_vision_specs[{i}]"), replacements or {})
            for i, spec in enumerate(specs)
        )
        return Representation(name, parts, join, grid_align)
    asked = {
        "join": join,
        "grid_align": grid_align,
        "select": getattr(config, "mm_vision_select_feature", None),
        "layer": getattr(config, "mm_vision_select_layer", None),
        "replace": replacements,
    }
    found = resolve(name, **asked)
    if all(part.t is None for part in found.parts):
        return found  # published configs hold the flags' defaults for any tower
    return resolve(name, **asked, diffusion=_options(config))


def _options(config: Any) -> DiffusionOptions:
    """The published fields of diffusion towers; LawError for a value of another kind."""
    values = {name: getattr(config, name, None) for name in DIFFUSION}
    for name, value in values.items():
        kind, wanted = (str, "text") if name == "prompt" else (int, "a whole number")
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise _FieldError(f"the config's {name} is {value!r}; expected {wanted}")
    return DiffusionOptions.of(values)


def frame_of_config(config: Any, representation: Representation) -> str:
    """The frame that the config's aspect ratio and geometry mean; one tower is always `own`."""
    geometry = getattr(config, "mm_vision_geometry", None) or "own"
    alone = len(representation.parts) == 1
    return frame_of(getattr(config, "image_aspect_ratio", None), "own" if alone else geometry)


def record(config: Any, representation: Representation, geometry: str | None = None) -> None:
    """Writes the representation into the config, in LLaVA's fields and ours.

    Without a `geometry` several towers share theirs, as new runs do. LLaVA's one layer and selected
    tokens are those of the first tower that has hidden states.
    """
    read = next((part for part in representation.parts if part.t is None), None)
    config.mm_vision_tower = representation.name
    config.mm_hidden_size = representation.dim
    config.mm_vision_select_layer = read.layer if read else -2  # LLaVA's default, without effect
    config.mm_vision_select_feature = (read or representation.parts[0]).select
    alone = len(representation.parts) == 1
    config.mm_vision_geometry = "own" if alone else geometry or "shared"
    config.mm_vision_join = representation.join
    config.mm_vision_grid_align = representation.grid_align
    config.mm_vision_specs = [to_plain(part) for part in representation.parts]
    config.mm_vision_spec_hash = spec_hash(representation)
    for name in ("up_ft_index", "t", "prompt", "ensemble_size"):
        value = next((v for p in representation.parts if (v := getattr(p, name)) is not None), None)
        if value is not None:
            setattr(config, name, value)
    if any(part.up_ft_index is not None for part in representation.parts):
        config.img_size = next(p.size for p in representation.parts if p.up_ft_index is not None)


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
    concerned = " and ".join(part.id for part in parts if depends_on_dtype(part))
    if not before or before == dtype or not concerned:
        return ""
    return (
        f"was trained with {concerned} in {before}, and here it is {dtype}: with compat "
        "'reference' features of the two differ by more than rounding"
    )


def dtype_name(dtype: Any) -> str:
    """As configs and stores have it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def depends_on_dtype(spec: TowerSpec) -> bool:
    """Whether features differ from dtype to dtype by more than rounding.

    The published code mixes noise in the tower's dtype, and bfloat16 rounds that of early steps
    away.
    """
    return spec.t is not None and spec.compat == "reference"


def _parts(config: Any) -> list[dict[str, Any]] | None:
    """The specs of a config as plain fields; None where its towers cannot be found."""
    if specs := getattr(config, "mm_vision_specs", None):
        return [dict(part) for part in specs]
    try:
        found = representation_of(config)
    except _FieldError:
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
        except _FieldError:
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


def _check_used(replacements: Mapping[str, str], ids: Sequence[str]) -> None:
    for unknown in sorted(set(replacements) - set(ids)):
        raise UsageError(unknown_name("tower of this model", unknown, ids))


def _moved(spec: TowerSpec, replacements: Mapping[str, str]) -> TowerSpec:
    """The spec with its weights elsewhere; a folder that had a digest must have the same still."""
    source = replacements.get(spec.id)
    if source is None:
        return spec
    digest = folder_digest(source) if Path(source).is_dir() else ""
    if spec.digest and digest and digest != spec.digest:
        raise LawError(
            f"{source} holds other weights than the {spec.id} that this model was trained with "
            f"(digest {digest[:12]}, recorded {spec.digest[:12]})"
        )
    return dataclasses.replace(spec, weights=source, digest=digest or spec.digest)
