"""Raw colours as features: what any encoder has to beat, and the shortest possible tower."""

import torch
from torch.nn import functional

from llava.model.multimodal_encoder.base import VisionTower

CELL_PX = 4


class RgbTower(VisionTower):
    """A patch's token is the mean colour of its cells of 4 x 4 pixels, one after the other."""

    def load(self) -> None:
        """There are no weights."""

    def encode(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """[B, H*W, 3 * cells of a patch]: all cells' red, then green, then blue."""
        cells_BCHW = functional.avg_pool2d(pixels_BCSS, CELL_PX)
        return functional.unfold(
            cells_BCHW, self.spec.patch // CELL_PX, stride=self.spec.patch // CELL_PX
        ).transpose(1, 2)
