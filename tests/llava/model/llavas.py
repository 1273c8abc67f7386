"""Tiny LLaVAs: the golden data's, and ones over random language models of every family."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers

from llava.model.builder import load_llava
from llava.model.language_model import llava_class
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.registry import resolve

GOLDEN = Path(__file__).parents[2] / "golden" / "llava"
MODELS = GOLDEN / "models"
CLIP = "openai/clip-vit-large-patch14"
DINO = "facebook/dinov2-large"
SIGLIP = "google/siglip-base-patch16-224"
TOWERS = {"clip": (CLIP,), "clip_dinov2": (CLIP, DINO), "siglip": (SIGLIP,)}
VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8},
    "llama_tied": {"tie_word_embeddings": True},
}


def folders(*ids: str) -> dict[str, str]:
    """Id of a tower -> the golden folder of its tiny stand-in."""
    return {name: str(MODELS / name) for name in ids}


def arguments(**changes) -> SimpleNamespace:
    """LLaVA's model arguments."""
    given = {
        "vision_tower": CLIP,
        "tower_alias": [f"{k}={v}" for k, v in folders(CLIP).items()],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_geometry": "own",
        "pretrain_mm_mlp_adapter": None,
    }
    return SimpleNamespace(**given | changes)


def golden_llava(towers: str = "clip", projector: bool = True):
    """The golden LLaVA of stage 1, as its training began."""
    names = TOWERS[towers]
    model = load_llava(str(MODELS / "lmsys" / "tiny-vicuna"), dtype=torch.float32)
    representation = resolve(list(names), select="patch", layer=-2, replace=folders(*names))
    adapter = MODELS / "projectors" / f"{towers}_init.bin" if projector else None
    model.initialize_vision_modules(
        arguments(pretrain_mm_mlp_adapter=adapter), representation=representation
    )
    return model


def golden_pixels(stored, prefix: str, part=slice(None)):
    """`<prefix>images`, or a PixelBatch of `<prefix>images_0` and `_1`."""
    if f"{prefix}images" in stored:
        return torch.from_numpy(stored[f"{prefix}images"])[part]
    return PixelBatch([torch.from_numpy(stored[f"{prefix}images_{i}"]) for i in (0, 1)])[part]


def family_llava(family: str = "llama", seed: int = 0, attention: str = "sdpa"):
    """A random LLaVA over a language model of a family, with CLIP's tiny stand-in."""
    made = llava_class(family.removesuffix("_tied"))
    torch.manual_seed(seed)
    config = made.config_class(**SHAPE | FAMILIES[family])
    config._attn_implementation = attention
    model = made(config)
    model.initialize_vision_modules(arguments())
    with torch.no_grad():  # the usual start is so small that every token looks the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=None, pad_token_id=0
    )
    return model.eval()


def batch(rows: list[list[int]], seed: int = 0, prompt: int = 3) -> dict[str, torch.Tensor]:
    """Rows of ids (-200: image), right padded, all after the first `prompt` ids supervised."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, prompt : len(row)] = ids[i, prompt : len(row)]
        mask[i, : len(row)] = True
    labels[ids == -200] = -100
    given = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    images = int((ids == -200).sum())
    if images:
        given["images"] = pixels(images, seed)
    return given


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Random pixels [count, 3, 32, 32]."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def gradients(model) -> dict[str, torch.Tensor]:
    """Name -> gradient, of what has one; gradients are then cleared."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def numpy(tensor: torch.Tensor) -> np.ndarray:
    """As numpy sees it."""
    return tensor.detach().numpy()
