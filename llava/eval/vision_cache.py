"""What a model's towers give for images, once each: benchmarks ask much about the same image.

Tokens are kept in memory, the least lately used go first; with a feature store they are also kept
on disk, for other runs and for other models of the same towers.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from llava.errors import LawError, UsageError
from llava.features import FeatureStore, Space, image_key, not_finite
from llava.mm_utils import process_images
from llava.model.image_rows import views
from llava.model.lazy_tower import LazyTower
from llava.model.multimodal_encoder.combined import CombinedTower, joined
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.representation import dtype_name

GIGABYTE = 1e9


@dataclass(frozen=True)
class Prepared:
    """Images made ready away from the device, e.g. by another thread."""

    keys: tuple[str, ...]
    images: tuple[Image.Image, ...]
    pixels: dict[str, Any]
    """Key -> pixels of one image, where its tokens were not there yet."""


class VisionCache:
    """Tokens of a LLaVA's towers, before its projector.

    `store` is the folder of a feature store. Raises UsageError where none can be used: beside
    anyres, whose tiles it does not hold, and for towers with weights of the checkpoint's own.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: ImageProcessor | None,
        gigabytes: float = 2.0,
        store: str | None = None,
    ):
        self.model = model
        self.processor = processor
        self.room = gigabytes * GIGABYTE
        self._tokens: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._spaces = self._open(store) if store else []

    @property
    def tiled(self) -> bool:
        """Whether an image has several views."""
        return getattr(self.model.config, "image_aspect_ratio", None) == "anyres"

    def prepare(
        self, images: Sequence[Image.Image], pixels: dict[str, Any] | None = None
    ) -> Prepared:
        """Hashes the images and preprocesses those whose tokens are not here.

        `pixels` are of images that go together with these; what is made is added to them.
        """
        if images and self.processor is None:
            raise UsageError("this model has no vision tower; ask without an image")
        keys = tuple(image_key(image) for image in images)
        pixels = {} if pixels is None else pixels
        for key, image in zip(keys, images, strict=True):
            if key not in pixels and key not in self._tokens and not self._stored(key):
                pixels[key] = self._pixels(image)
        return Prepared(keys, tuple(images), pixels)

    def tokens(self, prepared: Prepared) -> list[torch.Tensor]:
        """[V, N, C] of every image, on the CPU: V views, N tokens of C channels."""
        wanted = dict(zip(prepared.keys, prepared.images, strict=True))
        found = {key: self._known(key) for key in wanted}
        missing = [key for key, tokens in found.items() if tokens is None]
        if missing:
            ready = prepared.pixels
            pixels = [ready[k] if k in ready else self._pixels(wanted[k]) for k in missing]
            found |= dict(zip(missing, self._compute(missing, pixels), strict=True))
        for key in wanted:
            self._keep(key, found[key])
        return [found[key] for key in prepared.keys]

    def arguments(self, prepared: Prepared) -> dict[str, Any]:
        """What the model's `forward` and `generate` take for these images; nothing for none."""
        if not prepared.keys:
            return {}
        tokens = self.tokens(prepared)
        sizes = [image.size for image in prepared.images]
        features = tokens if self.tiled else torch.cat(tokens)
        return {"image_features": features, "image_sizes": sizes}

    def _pixels(self, image: Image.Image) -> Any:
        return process_images([image], self.processor, self.model.config)

    def _compute(self, keys: Sequence[str], pixels: list[Any]) -> list[torch.Tensor]:
        """The towers over all of them at once."""
        lazy = self.model.get_vision_tower()
        given = views(pixels, len(lazy.representation.parts))
        device = self.model.get_input_embeddings().weight.device
        with torch.inference_mode():
            lazy.to(device)
            tower = lazy.load_model()
            combined = isinstance(tower, CombinedTower)
            parts = tower.tokens(given.pixels) if combined else [tower(given.pixels)]
            parts = [part.cpu() for part in parts]
            _check_finite(parts, lazy)
            for space, part in zip(self._spaces, parts, strict=bool(self._spaces)):
                space.write(dict(zip(keys, part, strict=True)))
            tokens = joined(lazy.representation, parts) if combined else parts[0]
            # copies: a view would keep the tokens of the whole batch in memory
            return [one.clone() for one in tokens.split(given.counts)]

    def _known(self, key: str) -> torch.Tensor | None:
        if key in self._tokens:
            return self._tokens[key]
        if not self._stored(key):
            return None
        try:
            parts = [space.read(key)[None] for space in self._spaces]
        except LawError:  # damaged: the store has forgotten it, and it is computed again
            return None
        return joined(self.model.get_vision_tower().representation, parts)

    def _stored(self, key: str) -> bool:
        return bool(self._spaces) and all(space.sound(key) for space in self._spaces)

    def _keep(self, key: str, tokens: torch.Tensor) -> None:
        if key in self._tokens:
            self._tokens.move_to_end(key)
            return
        self._tokens[key] = tokens
        self._bytes += tokens.nbytes
        while self._bytes > self.room and self._tokens:
            _, oldest = self._tokens.popitem(last=False)
            self._bytes -= oldest.nbytes

    def _open(self, folder: str) -> list[Space]:
        tower = self.model.get_vision_tower()
        if tower is None:
            raise UsageError(f"features={folder}: this model has no vision tower")
        if tower.has_own_weights:
            raise UsageError(
                f"features={folder}: this checkpoint brings its own tower weights, and a store's "
                "are those of the tower's source; leave it out"
            )
        if self.tiled:
            raise UsageError(
                f"features={folder}: this model looks at tiles (image_aspect_ratio anyres), which "
                "no feature store holds; leave it out"
            )
        store, dtype = FeatureStore(folder), dtype_name(tower.dtype)
        try:
            return [store.space(part, tower.frame, dtype) for part in tower.representation.parts]
        except OSError as error:
            raise LawError(f"features={folder}: cannot be used: {error}") from error


def _check_finite(parts: Sequence[torch.Tensor], tower: LazyTower) -> None:
    """Raises LawError for tokens that are no numbers: what is answered to them means nothing."""
    for part, spec in zip(parts, tower.representation.parts, strict=True):
        if not torch.isfinite(part).all():
            raise LawError(not_finite(spec, dtype_name(tower.dtype)))
