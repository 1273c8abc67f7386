"""Tiny random encoders in Hugging Face layout, and images, made where a test needs them."""

import numpy as np
from PIL import Image
from tiny_world.encoders import DEPTH, DIM, IMAGENET, PATCH, SIDE, save_encoder

__all__ = ["DEPTH", "DIM", "HALF", "IMAGENET", "PATCH", "SIDE", "picture", "save_encoder"]

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random RGB image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
