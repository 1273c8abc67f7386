"""Tower tokens out of the feature store in place of images: the tower is neither loaded nor run."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from llava.errors import LawError
from llava.features import FeatureStore, image_key
from llava.model.multimodal_encoder.combined import joined
from llava.model.multimodal_encoder.registry import Representation


class StoredFeatures:
    """What `law features` wrote for a representation's towers in one frame; picklable.

    `dtype` may be left open where the store has one only. Raises LawError, with the command that
    makes them, where a tower has no features at all.
    """

    def __init__(
        self,
        store_root: str | os.PathLike,
        representation: Representation,
        frame: str,
        dtype: str | None = None,
    ):
        store = FeatureStore(store_root)
        self.root = store.root
        self.representation = representation
        self.frame = frame
        self.spaces = [store.find(spec, frame, dtype) for spec in representation.parts]

    def features(self, image: str | os.PathLike | bytes) -> torch.Tensor:
        """Tokens [N, C] of an image (its path, or its file's bytes), joined as the towers' are."""
        key = image_key(image)
        lacking = self._lacking(key)
        if lacking:
            shown = image if isinstance(image, str | os.PathLike) else f"of key {key[:12]}"
            raise LawError(f"image {shown}: no features in {self.root}; {self.command()}")
        tokens = [space.read(key)[None] for space in self.spaces]
        return joined(self.representation, tokens)[0]

    def missing(self, images: Sequence[str | os.PathLike | bytes]) -> list[int]:
        """Which of the images (by place) some tower has no features of."""
        return [place for place, image in enumerate(images) if self._lacking(image_key(image))]

    def _lacking(self, key: str) -> list[str]:
        return [space.spec.id for space in self.spaces if key not in space]

    def command(self, folder: str | os.PathLike = "IMAGES") -> str:
        """What to type so that every image of a folder is here."""
        name, store = self.representation.name, Path(self.root)
        dtype = self.spaces[0].dtype
        return (
            f"`law features --model {name} --frame {self.frame} --dtype {dtype} --images {folder} "
            f"--out {store}` makes them"
        )
