"""Raw colours as features: what any encoder has to beat, and the shortest possible tower."""

import torch
from torch.nn import functional

from llava.model.multimodal_encoder.base import VisionTower

CELL_PX = 4
GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in what the eye takes for brightness: ITU-R BT.601."""


class RgbTower(VisionTower):
    """A patch's token is the mean colour of its cells of 4 x 4 pixels, one after the other.

    Options of the spec: `cell`, a cell's side in pixels; `grey`, brightness in place of colours.
    """

    def load(self) -> None:
        """There are no weights."""

    def encode(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """[B, H*W, 3 * cells of a patch]: all cells' red, then green, then blue; or cells' grey."""
        if self.spec.options.get("grey"):
            shares_3 = pixels_BCSS.new_tensor(GREY)
            pixels_BCSS = torch.einsum("bcij,c->bij", pixels_BCSS, shares_3).unsqueeze(1)
        cell = self.spec.options.get("cell", CELL_PX)
        cells_BCHW = functional.avg_pool2d(pixels_BCSS, cell)
        side = self.spec.patch // cell
        return functional.unfold(cells_BCHW, side, stride=side).transpose(1, 2)
