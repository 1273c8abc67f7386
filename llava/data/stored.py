"""Tower tokens out of the feature store in place of images: the tower is neither loaded nor run."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from llava.errors import LawError
from llava.features import FeatureStore, Space, image_key, select_flag
from llava.model.multimodal_encoder.combined import joined
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_encoder.spec import TowerSpec


class StoredFeatures:
    """What `law features` wrote for a representation's towers in one frame; picklable.

    `dtype` may be left open where the store has one only; `runs_in` is the one that counts where
    it has several. Raises LawError, with the command that makes them, where a tower has no features
    at all.
    """

    def __init__(
        self,
        store_root: str | os.PathLike,
        representation: Representation,
        frame: str,
        dtype: str | None = None,
        runs_in: str | None = None,
    ):
        store = FeatureStore(store_root)
        self.root = store.root
        self.representation = representation
        self.frame = frame
        self.spaces = [_space(store, spec, frame, dtype, runs_in) for spec in representation.parts]

    def features(self, image: str | os.PathLike | bytes) -> torch.Tensor:
        """Tokens [N, C] of an image (its path, or its file's bytes), joined as the towers' are."""
        key = image_key(image)
        if self.lacking(key):
            shown = image if isinstance(image, str | os.PathLike) else f"of key {key[:12]}"
            raise LawError(f"image {shown}: no features in {self.root}; {self.command()}")
        return self.of_key(key)

    def of_key(self, key: str) -> torch.Tensor:
        """Tokens [N, C] of the image with this key, joined as the towers' are."""
        tokens = [space.read(key)[None] for space in self.spaces]
        return joined(self.representation, tokens)[0]

    @property
    def dtype(self) -> str:
        """That of the first tower whose features depend on it, else of the first."""
        which = (space for space in self.spaces if space.spec.depends_on_dtype)
        return next(which, self.spaces[0]).dtype

    def unlike(self, dtype: str) -> list[Space]:
        """Spaces whose features are not those of a tower in this dtype, by more than rounding."""
        return [s for s in self.spaces if s.dtype != dtype and s.spec.depends_on_dtype]

    def missing(self, images: Sequence[str | os.PathLike | bytes]) -> list[int]:
        """Which of the images (by place) some tower has no features of."""
        return [place for place, image in enumerate(images) if self.lacking(image_key(image))]

    def lacking(self, key: str) -> list[str]:
        """Ids of the towers that have no features of the image with this key."""
        return [space.spec.id for space in self.spaces if key not in space]

    def command(self, folder: str | os.PathLike = "IMAGES", dtype: str | None = None) -> str:
        """What to type so that every image of a folder is here."""
        name, store = self.representation.name, Path(self.root)
        select = select_flag(self.representation.parts[0])
        return (
            f"`law features --model {name} --frame {self.frame}{select} --dtype "
            f"{dtype or self.spaces[0].dtype} --images {folder} --out {store}` makes them"
        )


def _space(
    store: FeatureStore, spec: TowerSpec, frame: str, dtype: str | None, runs_in: str | None
) -> Space:
    """A tower's features in `dtype`, else in `runs_in` where it is there, else in the only one."""
    if runs_in and not dtype:
        with contextlib.suppress(LawError):
            return store.find(spec, frame, runs_in)
    return store.find(spec, frame, dtype)
