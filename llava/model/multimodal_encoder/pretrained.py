"""Specs of towers that no table lists: read from the configs of a local folder or a hub id."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.errors import LawError, UnknownNameError, UsageError, nearest
from llava.log import get_logger
from llava.model.multimodal_encoder.diffusion import facts as diffusion
from llava.model.multimodal_encoder.known import names_of
from llava.model.multimodal_encoder.spec import Family, TowerSpec

logger = get_logger("towers")

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, which preprocessor_config.json holds under `resample`."""


def read_spec(source: str, families: Mapping[str, Family]) -> TowerSpec:
    """The spec of a local folder or hub id, from its configs.

    A model of diffusers has model_index.json, others config.json and preprocessor_config.json.
    Raises UsageError where there is no such thing, or where its config is of no known family.
    """
    known = [name for family in families.values() for name in names_of(family)]
    config, index = _configs(source, known)
    family = _family_of(source, index or config, families)
    facts = {
        **{k: tuple(v) if isinstance(v, list) else v for k, v in family.defaults.items()},
        "id": source,
        "family": family.name,
    }
    if index is not None:
        facts |= diffusion.facts_of(
            source, index, family.defaults, lambda name: _required(source, name)
        )
    elif family.name == "timm":
        from llava.model.multimodal_encoder.timm_tower import facts_of

        facts |= facts_of(source, config)
    else:
        facts |= _vision_facts(source, family, config)
        facts |= _processor_facts(source, family, facts)
    if Path(source).is_dir():
        facts["digest"] = folder_digest(source)
    try:
        return TowerSpec(**facts)
    except (TypeError, ValueError) as error:
        raise LawError(f"{source}: its config makes no tower: {error}") from None


def folder_digest(folder: str) -> str:
    """SHA-256 over config and weight files of a local folder, so that it may move but not change.

    Every weight file counts, whichever of them the model's class takes; of a diffusers folder those
    that a tower reads. Raises LawError for a folder without one.
    """
    path = Path(folder)
    if (path / diffusion.INDEX).is_file():
        files = diffusion.files_of(path, _required(folder, diffusion.INDEX))
        contents = _digest(_stamps(files)).encode()
        return hashlib.sha256(diffusion.names_digest(path, files) + contents).hexdigest()
    weights = sorted({found for pattern in WEIGHTS for found in path.glob(pattern)})
    if not weights:
        raise LawError(
            f"{folder}: holds no {' or '.join(WEIGHTS)}; expected a folder as save_pretrained "
            "writes it"
        )
    return _digest(_stamps([path / "config.json", *weights, *sorted(path.glob("*.index.json"))]))


def _stamps(files: list[Path]) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)


def unread(
    tower_id: str, source: str, error: Exception, what: str = "weights", filters: str = ""
) -> str:
    """Why weights cannot be read and what to do: mend a folder, or fetch a hub id.

    `filters` are flags of the download that leave out what no tower reads.
    """
    said = f"the {what} of {source} cannot be read: {first_line(error)}"
    if Path(source).is_dir():
        return f"{said}; expected a folder as save_pretrained writes it"
    return (
        f"{said}. Fetch them with `hf download {source}{filters}` where there is a network, or "
        f"name a local folder by --tower-alias {tower_id}=FOLDER"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@functools.cache
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in stamps:
        with open(name, "rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def _configs(source: str, known: list[str]) -> tuple[dict, dict | None]:
    """(config.json, None), or ({}, model_index.json) of a model of diffusers."""
    if Path(source).is_dir():
        if (Path(source) / diffusion.INDEX).is_file():
            return {}, _required(source, diffusion.INDEX)
        return _read(source, "config.json", known), None
    try:
        config = _read(source, "config.json", known)
    except UsageError:  # it has none, or cannot be reached
        index = _read(source, diffusion.INDEX, ())
        if index is None:
            raise
        return {}, index
    if "model_type" not in config and "pretrained_cfg" not in config:
        index = _read(source, diffusion.INDEX, ())  # a config of something else lies beside
        return (config, None) if index is None else ({}, index)
    return config, None


def _family_of(source: str, config: dict, families: Mapping[str, Family]) -> Family:
    said, kind = "config.json has model_type", config.get("model_type")
    if "_class_name" in config:
        said, kind = f"{diffusion.INDEX} has _class_name", config["_class_name"]
    elif "pretrained_cfg" in config:
        kind = kind or "timm"
    for family in families.values():
        if kind in family.model_types:
            return family
    supported = sorted(kind for family in families.values() for kind in family.model_types)
    raise UsageError(
        f"{source}: its {said} '{kind or 'none'}', which is no vision tower here; supported: "
        + ", ".join(supported)
    )


def _vision_facts(source: str, family: Family, config: dict) -> dict[str, Any]:
    """Size, patch, width and depth; what the file leaves out are defaults of its config class."""
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        full = AutoConfig.for_model(config["model_type"], **values)
    except Exception as error:  # config classes validate in ways of their own
        raise LawError(f"{source}: config.json cannot be read: {first_line(error)}") from None
    vision = getattr(full, "vision_config", full)
    facts = {
        "patch": vision.patch_size,
        "dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "registers": getattr(vision, "num_register_tokens", 0),
    }
    if not family.defaults.get("flexible"):
        facts["size"] = vision.image_size
    if facts["registers"] and family.defaults.get("position_resize"):
        facts["position_resize"] = "transformers-5"
    return facts


def _processor_facts(source: str, family: Family, facts: dict[str, Any]) -> dict[str, Any]:
    """Mean, std, resizing and crop as preprocessor_config.json states them.

    Raises LawError for a processor that does anything else than resize, crop, scale and normalise
    to a square: its pixels would silently be others.
    """
    found = _read(source, "preprocessor_config.json", ())
    if found is None:
        logger.warning(
            "%s has no preprocessor_config.json; taking mean, std and resizing that are usual for "
            "%s",
            source,
            family.name,
        )
        return {}
    try:
        result = _read_processor(found, facts)
    except (TypeError, ValueError) as error:
        raise LawError(f"{source}: preprocessor_config.json: {error}") from None
    size = result.pop("size") or facts.get("size")
    if facts.get("flexible"):
        result["size"] = size
    elif size != facts["size"]:
        raise LawError(
            f"{source}: preprocessor_config.json makes {size} x {size} px, but config.json wants "
            f"{facts['size']} x {facts['size']}"
        )
    return result


def _read_processor(found: dict, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a processor's config; ValueError for what a spec cannot state."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if found.get(step) is False:
            raise ValueError(f"{step} is false; expected a processor that does it")
    factor = found.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor is {factor}; expected 1/255")
    resample = found.get("resample")
    if resample is not None and resample not in INTERPOLATIONS:
        raise ValueError(f"resample is {resample}; expected one of {sorted(INTERPOLATIONS)}")
    result = {
        "mean": _three(found, "image_mean", facts["mean"]),
        "std": _three(found, "image_std", facts["std"]),
        "interpolation": INTERPOLATIONS.get(resample, facts.get("interpolation", "bicubic")),
    }
    edge, fixed = _sides(found.get("size"))
    fixed = 0 if edge else fixed
    _, cropped = _sides(found.get("crop_size"))
    crops = found.get("do_center_crop", facts["resize"] == "crop" and bool(cropped))
    if not (edge or fixed or cropped):
        return result | {"size": 0}  # the family's own
    if not crops:
        if edge:
            raise ValueError("size is a shortest edge and nothing is cropped; expected a square")
        return result | {"resize": "squash", "resize_to": 0, "size": fixed}
    if not cropped or not (edge or fixed):
        raise ValueError("do_center_crop needs both size and crop_size")
    if fixed and fixed == cropped:  # squashed to what the crop then keeps whole
        return result | {"resize": "squash", "resize_to": 0, "size": fixed}
    if fixed:
        raise ValueError(f"size is {fixed} x {fixed} and crop_size {cropped}; expected one size")
    return result | {
        "resize": "crop",
        "resize_to": 0 if edge == cropped else edge,
        "size": cropped,
    }


def _three(found: dict, name: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    value = found.get(name)
    values = usual if value is None else tuple(value)
    if len(values) != 3 or not all(isinstance(number, int | float) for number in values):
        raise ValueError(f"{name} is {value}; expected three numbers")
    return tuple(map(float, values))


def _sides(value: Any) -> tuple[int, int]:
    """(shortest edge, side of a square) in any form that processors have had; 0 where not given.

    A plain number was a shortest edge for `size` and a side for `crop_size`, so it counts as both.
    """
    if value is None:
        return 0, 0
    if isinstance(value, int):
        return value, value
    if not isinstance(value, dict):
        raise ValueError(f"size {value!r}: expected a number or height and width")
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), 0
    height, width = value.get("height"), value.get("width")
    if height != width or not height:
        raise ValueError(f"size {value}: expected a square")
    return 0, int(height)


def _read(source: str, name: str, known: list[str] | tuple) -> dict | None:
    """A JSON file of a folder or hub repository; None where only the processor's is missing."""
    path = Path(source) / name if Path(source).is_dir() else _download(source, name, known)
    if path is None or not Path(path).is_file():
        if name == "config.json":
            raise UsageError(f"{source}: holds no {name}; expected what save_pretrained writes")
        return None
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LawError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LawError(f"{path}: expected a JSON object")
    return value


def _required(source: str, name: str) -> dict:
    """A JSON file that has to be there; LawError where it is not."""
    found = _read(source, name, ())
    if found is None:
        raise LawError(f"{source}: holds no {name}; expected a folder as diffusers saves it")
    return found


def _download(source: str, name: str, known: list[str] | tuple) -> str | None:
    """Path of a hub file, from the cache where it is there; None if the repository lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return hf_hub_download(source, name)
    except LocalEntryNotFoundError as error:
        if name != "config.json":
            return None
        raise UnknownNameError(_unknown(source, known, error)) from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UnknownNameError(_unknown(source, known, error)) from None


def _unknown(source: str, known: list[str] | tuple, error: Exception) -> str:
    near = nearest(source, known)
    return (
        f"unknown tower '{source}'"
        + (f"; did you mean '{near}'?" if near else ".")
        + " It is no known name and no folder here, and its config.json could not be had from the "
        f"hub ({first_line(error)}). `law towers` lists the known ones"
    )
