"""Folders of transformers' own LlavaForConditionalGeneration, read as LLaVA's.

Both generations of keys are known: `language_model.model.*` of transformers 4 and
`model.language_model.*` of 5. The tower in the file becomes a folder of its own in the user's
cache, since a tower is known by its files.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors.torch

from llava.errors import LawError
from llava.files import read_json, write_bytes, write_json
from llava.log import get_logger
from llava.model.checkpoint_layout import Checkpoint

logger = get_logger("model")

KEYS = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
    r"^(model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^(model\.)?vision_tower\.": "model.vision_tower.",
}
"""Pattern of a key -> what LLaVA calls it; the tower's are then passed over."""
TOWER = ("vision_tower.", "model.vision_tower.")
SELECT = {"default": "patch", "full": "cls_patch"}


def llava_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """LLaVA's config for a converted folder; its tower is written into the cache first.

    Raises LawError for what LLaVA's own layout cannot say.
    """
    config = checkpoint.config
    text, vision = dict(config["text_config"]), config["vision_config"]
    layer = config.get("vision_feature_layer", -2)
    select = SELECT.get(config.get("vision_feature_select_strategy", "default"))
    activation = config.get("projector_hidden_act", "gelu")
    if not isinstance(layer, int) or select is None or activation != "gelu":
        raise LawError(
            f"{checkpoint.path}: vision_feature_layer {layer}, vision_feature_select_strategy "
            f"{config.get('vision_feature_select_strategy')} and projector_hidden_act {activation} "
            "are not all known; expected one layer, default or full, and gelu"
        )
    text_type = text.pop("model_type", "llama")
    for name in ("architectures", "_name_or_path", "transformers_version"):
        text.pop(name, None)
    text.setdefault("tie_word_embeddings", config.get("tie_word_embeddings", False))
    return text | {
        "model_type": f"llava_{text_type}",
        "mm_vision_tower": str(extract_tower(checkpoint)),
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": select,
        "image_aspect_ratio": "pad" if _processor(checkpoint).get("do_pad") else "square",
        "use_mm_proj": True,
    }


def llava_key(key: str) -> str:
    """What LLaVA calls a key of a converted folder."""
    for pattern, own in KEYS.items():
        if re.match(pattern, key):
            return re.sub(pattern, own, key)
    return key


def extract_tower(checkpoint: Checkpoint) -> Path:
    """Writes the tower in a converted folder as a folder of its own, once; gives that folder."""
    state = {}
    for key, value in checkpoint.tensors(lambda key: key.startswith(TOWER)).items():
        own = key.removeprefix("model.").removeprefix("vision_tower.")
        state[own.removeprefix("vision_model.")] = value.contiguous()
    if not state:
        raise LawError(f"{checkpoint.path}: no weights of a vision tower (keys vision_tower.*)")
    data = safetensors.torch.save(state, metadata={"format": "pt"})
    vision, processor = checkpoint.config["vision_config"], _processor(checkpoint)
    facts = json.dumps([vision, processor], sort_keys=True).encode()
    digest = hashlib.sha256(data + facts).hexdigest()
    folder = cache() / "towers" / digest[:32]
    if not (folder / "model.safetensors").is_file():
        logger.info("the tower of %s goes to %s", checkpoint.path, folder)
        write_json(folder / "config.json", vision)
        if processor:
            write_json(folder / "preprocessor_config.json", processor)
        write_bytes(folder / "model.safetensors", data)
    return folder


def cache() -> Path:
    """The project's folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "law-of-vision"


def _processor(checkpoint: Checkpoint) -> dict[str, Any]:
    """The image processor's config, from its own file or from that of the whole processor."""
    path = checkpoint.file("preprocessor_config.json")
    if path is not None:
        return read_json(path)
    path = checkpoint.file("processor_config.json")
    whole = read_json(path) if path is not None else {}
    return whole.get("image_processor") or {}
