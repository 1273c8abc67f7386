"""A model's vision tower: known by its representation, built when first needed.

It is no module of the model, so it is in no state dict, is not partitioned or cast with the model,
and takes part in no gradient.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers.integrations import deepspeed as zero

from llava.errors import LawError
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.combined import CombinedTower, PixelBatch
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import Representation
from llava.model.multimodal_encoder.vit import TransformersTower, quiet

Pixels = torch.Tensor | PixelBatch | Sequence[torch.Tensor]


class LazyTower:
    """The tower, or the combination, of a representation."""

    def __init__(
        self,
        representation: Representation,
        frame: str = "own",
        dtype: torch.dtype = torch.float32,
    ):
        self.representation = representation
        self.frame = frame
        self._dtype = dtype
        self._device = torch.device("cpu")
        self._tower: torch.nn.Module | None = None
        self.has_own_weights = False
        """Whether a checkpoint's weights stand in place of those of the tower's source."""

    def __call__(self, pixels: Pixels, device: torch.device) -> torch.Tensor:
        """Tokens [B, N, C] of pixels, on `device`, where the tower goes when it is not there."""
        self.to(device)
        return self.load_model()(pixels)

    def load_model(self, device_map: object = None) -> torch.nn.Module:
        """Reads the weights, once; gives the module. (`device_map` is LLaVA's, without effect.)"""
        if self._tower is None:
            # weights made in inference mode could never be cast or moved
            with _whole_weights(), torch.inference_mode(False):
                tower = build_tower(self.representation, self.frame, self._dtype, self._device)
            self._tower = tower
        return self._tower

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes weights as LLaVA's checkpoints hold them, in place of those of the tower's source.

        Keys are what follows `model.vision_tower.`: `vision_tower.*`, with several towers
        `0.vision_tower.*`. Blocks that are never run are passed over; LawError where one that is
        run is missing. A diffusion tower's weights never are in a checkpoint: it keeps its own.
        """
        tower = self.load_model()
        parts = list(tower.parts) if isinstance(tower, CombinedTower) else [tower]
        for number, part in enumerate(parts):
            prefix = f"{number}.vision_tower." if len(parts) > 1 else "vision_tower."
            own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            if not own and part.spec.t is not None:
                continue
            if not own or not isinstance(part, TransformersTower):
                raise LawError(
                    f"the checkpoint has tower weights, but none for {part.spec.id} (keys "
                    f"model.vision_tower.{prefix}*)"
                )
            _take(part, own)
            self.has_own_weights = True

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "LazyTower":
        """Moves or casts the tower, or what will be built."""
        device = self._device if device is None else torch.device(device)
        dtype = dtype or self._dtype
        if self._tower is not None and (device, dtype) != (self._device, self._dtype):
            self._tower.to(device=device, dtype=dtype)
        self._device, self._dtype = device, dtype
        return self

    @property
    def is_loaded(self) -> bool:
        """Whether the weights were read."""
        return self._tower is not None

    @property
    def image_processor(self) -> ImageProcessor:
        """The towers' preprocessing."""
        return ImageProcessor(self.representation, self.frame)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and tokens."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the tower is, or will be built."""
        return self._device

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        return self.representation.dim

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return self.representation.tokens

    @property
    def num_patches(self) -> int:
        """Tokens of an image, as LLaVA calls them."""
        return self.num_tokens

    @property
    def num_patches_per_side(self) -> int:
        """Rows of the grid."""
        return self.representation.grid[0]


def _take(part: TransformersTower, found: Mapping[str, torch.Tensor]) -> None:
    """Copies weights of a whole encoder into a tower that ends at the block it reads.

    transformers reads them, since it knows the names that older versions gave.
    """
    model = part.model
    with _whole_weights(), quiet():
        whole, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(found),
            dtype=part.dtype,
            output_loading_info=True,
        )
    own = dict(model.named_parameters())
    missing = sorted(set(own) & set(info["missing_keys"]))
    if missing:
        raise LawError(
            f"the checkpoint's weights of {part.spec.id} lack {len(missing)}, such as {missing[0]}"
        )
    device = part.device
    for key, value in whole.named_parameters():
        if key in own:
            parent, _, name = key.rpartition(".")
            weight = torch.nn.Parameter(value.detach().to(device), requires_grad=False)
            setattr(model.get_submodule(parent), name, weight)
    part.resize_positions()
    part.requires_grad_(False)


@contextlib.contextmanager
def _whole_weights() -> Iterator[None]:
    """ZeRO-3 would split what is loaded meanwhile, and nothing would gather it for a tower."""
    reference = zero._hf_deepspeed_config_weak_ref
    zero._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        zero._hf_deepspeed_config_weak_ref = reference
