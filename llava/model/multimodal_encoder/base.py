"""VisionTower: what training, the feature store and the scores know of an encoder.

Letters in shapes: B images, N tokens, C channels, H x W grid, S side of the input in pixels.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from PIL import Image
from torch import nn

from llava.model.multimodal_encoder.cost import Cost, transformer_cost
from llava.model.multimodal_encoder.preprocess import check_frame, pixels
from llava.model.multimodal_encoder.spec import TowerSpec


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """For `with`: features follow from the tower's dtype, and not from who calls it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


class VisionTower(nn.Module, ABC):
    """A frozen encoder that owns its preprocessing.

    A subclass implements `load` and `encode`. Features are a pure function of image, spec, frame
    and dtype.
    """

    loads_in_dtype: ClassVar[bool] = False
    """Whether `load` gives weights in `self.dtype` itself, some kept wider on purpose."""

    def __init__(self, spec: TowerSpec, frame: str = "own", dtype: torch.dtype = torch.float32):
        super().__init__()
        self.spec = spec
        self.frame = check_frame(frame)
        # Moves and casts with the tower, also where that has no weights.
        self.register_buffer("_anchor", torch.empty(0, dtype=dtype), persistent=False)
        self.load()
        if not self.loads_in_dtype:
            self.to(dtype)
        self.requires_grad_(False)
        self.eval()

    @abstractmethod
    def load(self) -> None:
        """Makes the modules and reads the weights from `self.source`."""

    @abstractmethod
    def encode(self, pixels_BCSS: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """All tokens of the tapped block, [B, class token + registers + H*W, C].

        A tower whose features rest on noise or a prompt takes these as `given`, by name.
        """

    @classmethod
    def cost(cls, spec: TowerSpec) -> Cost:
        """What a tower of this spec takes, without making it.

        Here of a vision transformer. A tower of another kind overrides it.
        """
        return transformer_cost(spec)

    @property
    def source(self) -> str:
        """Folder or hub id that the weights are read from."""
        return self.spec.weights or self.spec.id

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """float32 [B, 3, S, S] of PIL images of any mode and size."""
        return pixels(images, self.spec, self.frame)

    @torch.no_grad()
    def forward(self, pixels_BCSS: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """Selected tokens [B, N, C], patches row by row, in the tower's dtype."""
        if not len(pixels_BCSS):
            return self._anchor.new_empty(0, self.num_tokens, self.dim)
        with without_autocast(self.device):
            return self.selected(self.encode(pixels_BCSS.to(self.device, self.dtype), **given))

    def selected(self, tokens_BNC: torch.Tensor) -> torch.Tensor:
        """The tokens that `spec.select` names, out of all of a block's."""
        first = int(self.spec.class_token)
        patches = tokens_BNC[:, first + self.spec.registers :]
        rows, columns = self.grid
        if patches.shape[1] != rows * columns:
            raise RuntimeError(
                f"{self.spec.id} gave {patches.shape[1]} patch tokens, its spec says "
                f"{rows} x {columns}"
            )
        if self.spec.select == "patch":
            return patches
        if self.spec.select == "cls":
            return tokens_BNC[:, :1]
        return torch.cat([tokens_BNC[:, :1], patches], 1)

    def train(self, mode: bool = True) -> "VisionTower":
        """Stays in evaluation mode: a frozen tower has no training mode."""
        return super().train(False)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return self.spec.grid

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.spec.dim

    hidden_size = dim  # as LLaVA calls it

    @property
    def num_patches(self) -> int:
        """Patches of an image: H * W, whatever is selected."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Tokens that `forward` gives for an image."""
        return self.spec.tokens

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the tokens."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._anchor.device
