"""A model's config and its representation, each as the other says it.

Released configs name the tower, the layer and the selected tokens; ours hold every spec besides
(`mm_vision_specs`), which then counts before the names.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.config import build, to_plain
from llava.errors import LawError, UsageError, unknown_name
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions
from llava.model.multimodal_encoder.frames import frame_of
from llava.model.multimodal_encoder.pretrained import folder_digest
from llava.model.multimodal_encoder.registry import Representation, resolve
from llava.model.multimodal_encoder.spec import TowerSpec

DIFFUSION = ("up_ft_index", "t", "prompt", "ensemble_size", "img_size")
"""Fields that published configs hold for diffusion towers."""


class FieldError(LawError):
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
            raise FieldError(f"the config's {name} is {value!r}; expected {wanted}")
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


def dtype_name(dtype: Any) -> str:
    """As configs and stores have it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _check_used(replacements: Mapping[str, str], ids: Sequence[str]) -> None:
    for unknown in sorted(set(replacements) - set(ids)):
        raise UsageError(unknown_name("tower of this model", unknown, ids))


def _moved(spec: TowerSpec, replacements: Mapping[str, str]) -> TowerSpec:
    """The spec, perhaps with its weights elsewhere; a folder must hold what it did at training."""
    source = replacements.get(spec.id)
    where = source or spec.weights or spec.id
    digest = folder_digest(where) if Path(where).is_dir() else ""
    if spec.digest and digest and digest != spec.digest:
        raise LawError(
            f"{where} holds other weights than the {spec.id} that this model was trained with "
            f"(digest {digest[:12]}, recorded {spec.digest[:12]}); say where those are with "
            f"--tower-alias {spec.id}=FOLDER"
        )
    if source is None:
        return spec
    return dataclasses.replace(spec, weights=source, digest=digest or spec.digest)
