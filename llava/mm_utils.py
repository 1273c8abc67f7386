"""Images and prompts for inference, under the names that LLaVA's users and evaluations import."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import StoppingCriteria

from llava.errors import LawError, UsageError
from llava.extraction import decode
from llava.model.multimodal_encoder.anyres import (
    Size,
    on_black,
    parse_pinpoints,
    select_best_resolution,
    tiles,
)
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.preprocess import on_square
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.tokenization import tokenizer_image_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]


def process_images(
    images: Sequence[Image.Image], image_processor: ImageProcessor, model_cfg: Any
) -> torch.Tensor | PixelBatch | list[torch.Tensor] | list[PixelBatch]:
    """Pixels of every image as a model's config asks.

    float32 [I, 3, S, S], or a PixelBatch for several towers; for `image_aspect_ratio` anyres
    [I, 1 + tiles, 3, S, S], and where images have different numbers of tiles a list of I. Reads
    `image_aspect_ratio`, `image_grid_pinpoints` and `mm_vision_geometry`; one that is missing is
    what it was before it existed: square, none, own.
    """
    if not isinstance(image_processor, ImageProcessor):
        raise UsageError(
            f"image_processor: expected what load_pretrained_model gives, got "
            f"{type(image_processor).__name__}; a model without vision tower has none"
        )
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    geometry = getattr(model_cfg, "mm_vision_geometry", None)
    processor = image_processor.for_aspect_ratio(aspect_ratio, geometry)
    if aspect_ratio != "anyres":
        return processor(images)
    pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
    if not pinpoints:
        raise UsageError("image_aspect_ratio anyres needs image_grid_pinpoints in the config")
    views = [processor.anyres(image, pinpoints) for image in images]
    if len({len(one) for one in views}) > 1:
        return views
    return PixelBatch.stack(views) if isinstance(views[0], PixelBatch) else torch.stack(views)


def process_anyres_image(
    image: Image.Image, processor: ImageProcessor, grid_pinpoints: str | Sequence[Size]
) -> torch.Tensor | PixelBatch:
    """float32 [1 + tiles, 3, S, S]: the whole image, then its tiles."""
    return processor.anyres(image, grid_pinpoints)


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Size], patch_size: int
) -> tuple[int, int]:
    """Tiles (columns, rows) of `patch_size` that an image of `image_size` is cut into."""
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """The image as large as fits into (width, height), in the middle of black."""
    return on_black(image, target_resolution)


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Squares of `patch_size` pixels, row by row."""
    return tiles(image, patch_size)


def expand2square(pil_img: Image.Image, background_color: int | tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of one colour."""
    return on_square(pil_img, background_color)


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """The RGB image in a base64 text; LawError where it is none."""
    try:
        data = base64.b64decode(image, validate=False)
    except (binascii.Error, ValueError) as error:
        raise LawError(f"is no base64 text: {error}") from None
    return decode(data)


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path, with the one before it for a `checkpoint-N`."""
    parts = [part for part in PurePosixPath(model_path.strip()).parts if part != "/"]
    if len(parts) > 1 and parts[-1].startswith("checkpoint-"):
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1] if parts else ""


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a row of a batch once one of the keywords stands in what it generated.

    `input_ids` [B, P] is the prompt, which is left out of the search where generation gives it back
    (LLaVA's does not: it generates from embeddings).
    """

    def __init__(
        self,
        keywords: Sequence[str],
        tokenizer: "PreTrainedTokenizerBase",
        input_ids: torch.Tensor,
    ):
        self.keywords = [keyword for keyword in keywords if keyword]
        self.tokenizer = tokenizer
        self.prompt = input_ids
        # a token stands for one byte at least, but special ones stand for none
        self.tail = max((len(keyword.encode()) for keyword in self.keywords), default=0)

    def __call__(
        self, output_ids: torch.LongTensor, scores: torch.FloatTensor | None, **kwargs: Any
    ) -> torch.BoolTensor:
        """bool [B]: which rows are done."""
        said = output_ids[:, self._prompt_length(output_ids) :]
        tail = said[:, max(0, said.shape[1] - self.tail) :]
        texts = self.tokenizer.batch_decode(tail, skip_special_tokens=False)
        done = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)

    def _prompt_length(self, output_ids: torch.Tensor) -> int:
        rows, length = self.prompt.shape
        if output_ids.shape[1] < length or output_ids.shape[0] % rows:
            return 0
        prompt = self.prompt.repeat_interleave(output_ids.shape[0] // rows, 0)
        same = output_ids[:, :length] == prompt.to(output_ids.device)
        return length if bool(same.all()) else 0
