"""Random vision encoders in Hugging Face layout: what they see is mixed, and not lost."""

import json
from pathlib import Path

import torch

SIDE = 32
PATCH = 8
DEPTH = 3
DIM = 24

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CONFIGS = {
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel"),
}
"""Model type -> names of its classes in transformers."""


def save_encoder(
    folder: Path,
    kind: str,
    seed: int = 0,
    resize_to: int = 37,
    places: float = 0.0,
    crop: int = 0,
    **changes: int,
) -> Path:
    """Writes a random encoder of model type `kind` with its processor's config; gives `folder`.

    Where its kind crops, the processor resizes the shorter edge to `resize_to` px and crops `crop`
    px, 0 for the model's own size. `places` is how much a token says of where it lies: noise added
    to the table of positions. `changes` are fields of the config.
    """
    import transformers

    shape = {
        "hidden_size": DIM,
        "intermediate_size": 2 * DIM,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
    } | changes
    config_name, model_name = CONFIGS[kind]
    if kind == "dinov3_vit":
        shape.setdefault("num_register_tokens", 4)  # as the released ones
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**shape))
    with torch.no_grad():  # the usual start is so small that every token looks the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if places:
            for name, parameter in model.named_parameters():
                if "position_embedding" in name:
                    parameter.add_(torch.randn_like(parameter) * places)
    model.save_pretrained(folder)
    processor = {"resample": 3, "do_resize": True, "do_normalize": True} | IMAGENET
    crops = kind not in ("siglip_vision_model", "dinov3_vit")
    square = dict.fromkeys(("height", "width"), crop or shape["image_size"])
    processor["size"] = {"shortest_edge": resize_to} if crops else square
    if crops:
        processor |= {"do_center_crop": True, "crop_size": square}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
