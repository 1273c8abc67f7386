"""Names and specs become towers here, and nowhere else."""

from collections.abc import Sequence

import torch

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.combined import CombinedTower
from llava.model.multimodal_encoder.registry import Representation, resolve, tower_class
from llava.model.multimodal_encoder.spec import TowerSpec


def build_tower(
    what: str | Sequence[str] | TowerSpec | Representation,
    frame: str = "own",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> VisionTower | CombinedTower:
    """The tower, or the combination, that a name, spec or representation stands for.

    Raises UsageError for an unknown name or frame, LawError where weights or a package are missing.
    """
    if isinstance(what, TowerSpec):
        return tower_class(what)(what, frame, dtype).to(device)
    representation = what if isinstance(what, Representation) else resolve(what)
    parts = [tower_class(spec)(spec, frame, dtype).to(device) for spec in representation.parts]
    return parts[0] if len(parts) == 1 else CombinedTower(representation, parts)
