"""A tower without positions, shapes to look at, and the command that trains a head on them."""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny import save_encoder

SMALL = {
    "head.text": '{"source": "table", "width": 16}',
    "head.pooling": "sum",
    "head.width": 16,
    "batch_size": 12,
    "steps": 6,
    "save_steps": 2,
    "log_steps": 1,
    "learning_rate": 0.005,
}
"""Changes of configs/A_score/pacl.yaml."""
ROOT = Path(__file__).parents[3]


def tower_without_positions(folder, **shape):
    """A random CLIP whose tokens follow from their patches alone, at 32 px with 8 px patches."""
    save_encoder(folder, "clip_vision_model", resize_to=32, **shape)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if "position_embedding" in name:
            value.zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def flags(world, out, *more, config="pacl", **changes):
    """The command line behind `law a-score head`."""
    settings = [f"{key}={value}" for key, value in (SMALL | changes).items()]
    return [
        *("--config", str(ROOT / f"configs/A_score/{config}.yaml"), "--set", *settings),
        *("--tower", str(world / "tower"), "--data", str(world / "data/train.json")),
        *("--images", str(world / "data"), "--out", str(out), "--device", "cpu", *more),
    ]


def torchrun(*arguments):
    """The command in two processes."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "--", "llava", "a-score", "head", *arguments),
    ]
