"""From PIL images to pixels, and where a point of the image lands in them.

A frame says how an image is mapped to the tower's square input:

- `own`: the processor's own resize and centre crop (LLaVA's image_aspect_ratio `square`);
- `own_pad`: padded to a square with the tower's mean colour first (LLaVA's `pad`);
- `crop`: the central square, resized straight to the input;
- `pad`: padded to a square with the mean colour, resized straight to the input;
- `stretch`: resized straight to the input, proportions given up.

In `crop`, `pad` and `stretch` all towers see the same part of an image, whatever their sizes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from llava.errors import LawError, UsageError, unknown_name
from llava.model.multimodal_encoder.spec import TowerSpec

VERSION = 1
"""Goes up when the same image, spec and frame give other pixels: stored features are then old."""

FRAMES = ("own", "own_pad", "crop", "pad", "stretch")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Placement:
    """Pixel (x, y) of an image lands at (x * scale_x + shift_x, y * scale_y + shift_y), px."""

    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        """Input coordinates of an image point, both measured from the upper left corner."""
        return x * self.scale_x + self.shift_x, y * self.scale_y + self.shift_y


def check_frame(frame: str) -> str:
    """`frame`, or UsageError with the nearest one."""
    if frame not in FRAMES:
        raise UsageError(unknown_name("frame", frame, FRAMES))
    return frame


def pixels(images: Sequence[Image.Image], spec: TowerSpec, frame: str) -> torch.Tensor:
    """float32 [B, 3, size, size], normalised with the tower's own mean and std."""
    check_frame(frame)
    tables = _normalised(spec.mean, spec.std)
    result = np.empty((len(images), 3, spec.size, spec.size), np.float32)
    for image, out in zip(images, result, strict=True):
        seen = np.asarray(square(image, spec, frame))
        for channel in range(3):
            np.take(tables[channel], seen[..., channel], out=out[channel])
    return torch.from_numpy(result)


@functools.lru_cache
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 [3, 256]: what each grey level becomes, rounded where the published processors do."""
    levels = (np.arange(256) * (1 / 255)).astype(np.float32)
    return np.stack(
        [(levels - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    )


def square(image: Image.Image, spec: TowerSpec, frame: str) -> Image.Image:
    """The RGB image of side `spec.size` that the tower sees, before scaling and normalising.

    Raises LawError for an image so thin that padding or resizing it would not fit in memory.
    """
    if image.mode != "RGB":  # a conversion to what it is would copy all of it
        image = to_rgb(image)
    _check_thin(image.size, spec, frame)
    if frame in ("pad", "own_pad"):
        image = pad_to_square(image, spec.mean)
    elif frame == "crop":
        image = _centre(image, min(image.size))
    if frame in ("own", "own_pad") and spec.resize == "crop":
        image = _resize(image, _shortest_edge(image.size, spec.resize_to or spec.size), spec)
        return _centre(image, spec.size)
    return _resize(image, (spec.size, spec.size), spec)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; 16-bit grey is scaled to 8 bits, where PIL would cut it off at 255.

    Raises LawError for pixels without a known range (32-bit integers above 65535, floats).
    """
    if image.mode.startswith("I") and image.mode != "I":
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise LawError(f"holds grey levels from {low} to {high}; expected 8 or 16 bits")
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise LawError("holds floating-point pixels; expected 8 or 16 bits")
    return image.convert("RGB")


def _check_thin(size: tuple[int, int], spec: TowerSpec, frame: str) -> None:
    longest, shortest = max(size), min(size)
    largest = 0
    if frame in ("pad", "own_pad"):
        largest = longest**2
    elif frame == "own" and spec.resize == "crop":
        edge = spec.resize_to or spec.size
        largest = edge * edge * longest // shortest
    if largest > (Image.MAX_IMAGE_PIXELS or largest):
        raise LawError(
            f"is {size[0]} x {size[1]} px, too thin for frame '{frame}': {largest:,} pixels on the "
            f"way, at most {Image.MAX_IMAGE_PIXELS:,}"
        )


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The RGB image in the middle of a square of the mean colour (0 to 1 per channel)."""
    return on_square(image, tuple(int(value * 255) for value in mean))


def on_square(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of a colour of its own mode; a square one as it is."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new(image.mode, (side, side), colour)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def place(width: int, height: int, spec: TowerSpec, frame: str) -> Placement:
    """Where points of a `width` x `height` image land in the tower's input."""
    check_frame(frame)
    left = top = 0.0
    if frame in ("pad", "own_pad"):
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        width = height = side
    elif frame == "crop":
        side = min(width, height)
        left, top = -((width - side) // 2), -((height - side) // 2)
        width = height = side
    if frame in ("own", "own_pad") and spec.resize == "crop":
        resized = _shortest_edge((width, height), spec.resize_to or spec.size)
        scale_x, scale_y = resized[0] / width, resized[1] / height
        crop_x, crop_y = (resized[0] - spec.size) // 2, (resized[1] - spec.size) // 2
    else:
        scale_x, scale_y = spec.size / width, spec.size / height
        crop_x = crop_y = 0
    return Placement(scale_x, scale_y, left * scale_x - crop_x, top * scale_y - crop_y)


def _resize(image: Image.Image, size: tuple[int, int], spec: TowerSpec) -> Image.Image:
    return image if image.size == size else image.resize(size, RESAMPLING[spec.interpolation])


def _shortest_edge(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(width, height) with the shorter side `edge`; the longer one is cut to whole pixels."""
    width, height = size
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The central square of side `side`."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
