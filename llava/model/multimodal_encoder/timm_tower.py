"""Vision transformers of timm, tapped like the others; their facts come from timm's own config."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.errors import LawError
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.known import check_packages
from llava.model.multimodal_encoder.tap import tap


class TimmTower(VisionTower):
    """A plain vision transformer of timm: `patch_embed`, `blocks`, prefix tokens first."""

    def load(self) -> None:
        """Reads the weights from the hub or a local folder; keeps the blocks that are run."""
        check_packages(self.spec)
        self.model = _create(self.source, pretrained=True)
        if self.spec.block > 0:
            del self.model.blocks[self.spec.block :]
        for name in ("norm", "fc_norm", "attn_pool", "head_drop", "head"):
            if hasattr(self.model, name):
                setattr(self.model, name, nn.Identity())

    def encode(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """Output of block `spec.block`, [B, prefix tokens + H*W, C]; 0 is what enters the first."""
        blocks = self.model.blocks
        module = blocks[self.spec.block - 1] if self.spec.block else self.model.norm_pre
        return tap(module, lambda: self.model.forward_features(pixels_BCSS))


def facts_of(source: str, config: dict) -> dict[str, Any]:
    """TowerSpec fields of a timm folder or hub id; `config` is its config.json.

    Raises LawError for an architecture that has no blocks of tokens (a convolutional one, say).
    """
    data = config["pretrained_cfg"]
    with torch.device("meta"):
        model = _create(source, pretrained=False)
    if not hasattr(model, "blocks") or not hasattr(model, "num_prefix_tokens"):
        raise LawError(
            f"{source}: {config.get('architecture')} is no plain vision transformer; a tower of "
            "your own, as in examples/tower_plugin, can carry it"
        )
    size = data["input_size"][-1]
    squash = data.get("crop_mode") == "squash"
    class_token = getattr(model, "cls_token", None) is not None
    return {
        "size": size,
        "patch": model.patch_embed.patch_size[0],
        "dim": model.embed_dim,
        "depth": len(model.blocks),
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
        "resize": "squash" if squash else "crop",
        "resize_to": 0 if squash else int(size / data.get("crop_pct", 1.0)),
        "interpolation": data.get("interpolation", "bicubic"),
        "class_token": class_token,
        "registers": model.num_prefix_tokens - class_token,
    }


def _create(source: str, pretrained: bool) -> nn.Module:
    with _reported(source):
        import timm

        schema = "local-dir" if Path(source).is_dir() else "hf-hub"
        return timm.create_model(f"{schema}:{source}", pretrained=pretrained)


@contextlib.contextmanager
def _reported(source: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise LawError(
            f'{source} needs timm, whose import fails: {error}; type `pip install "timm>=1.0.15"`. '
            "timm needs a torchvision that fits the installed torch"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise LawError(f"timm cannot make {source}: {error}") from error
