"""A folder of images, as pixels for a representation's towers; and what is done with bad ones.

A record names an image relative to the folder. A name that leads out of it is refused, whatever the
policy; links inside of it are followed.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from llava.errors import LawError, UsageError, unknown_name
from llava.extraction import decode
from llava.model.multimodal_encoder.anyres import Size, parse_pinpoints
from llava.model.multimodal_encoder.combined import PixelBatch
from llava.model.multimodal_encoder.frames import GEOMETRIES, frame_of
from llava.model.multimodal_encoder.processor import ImageProcessor

POLICIES = ("error", "skip")
CHECKS = ("none", "exist", "decode")

Pixels = torch.Tensor | PixelBatch | list[torch.Tensor] | list[PixelBatch]
"""Of k images: [k, 3, S, S], several towers' PixelBatch, or for anyres a list of k views each."""


class ImageError(LawError):
    """An image that is missing, damaged or somewhere else; `why` leaves its name out."""

    def __init__(self, name: str, why: str):
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"image {self.name}: {self.why}"


def path_inside(folder: Path, name: str) -> Path:
    """Where an image of a folder is; ImageError for a name that leads out of the folder.

    The path is free of `..`, so what is opened is what was checked.
    """
    inside = os.path.normpath(name)
    if Path(inside).is_absolute():
        root = os.path.normpath(folder.absolute())
        inside = os.path.relpath(inside, root)
    if "\0" in name or inside == "." or Path(inside).parts[0] == "..":
        raise ImageError(name, f"is no file inside of {folder}")
    return folder / inside


class ImageSource:
    """Images below `folder`, preprocessed by `processor`; picklable.

    `aspect_ratio` is LLaVA's `square`, `pad` or `anyres` (with `pinpoints`, and `merge` as the
    model merges tokens) and has to fit the processor's frame. `policy` says what becomes of an
    image that cannot be read: `error`, or `skip`: its sample is left out and counted.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        processor: ImageProcessor,
        aspect_ratio: str | None = "square",
        pinpoints: str | Sequence[Size] | None = None,
        policy: str = "error",
        merge: str = "flat",
    ):
        if policy not in POLICIES:
            raise UsageError(unknown_name("image policy", policy, POLICIES))
        fitting = [frame_of(aspect_ratio, geometry) for geometry in GEOMETRIES]
        if processor.frame not in fitting:
            raise UsageError(
                f"image_aspect_ratio '{aspect_ratio}' takes frame {' or '.join(fitting)}, and the "
                f"processor has '{processor.frame}'"
            )
        if aspect_ratio == "anyres" and not pinpoints:
            raise UsageError("image_aspect_ratio anyres needs image_grid_pinpoints")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise LawError(f"{folder}: no such folder of images (seen from {Path.cwd()})")
        self.processor = processor
        self.policy = policy
        self.merge = merge
        self.anyres = aspect_ratio == "anyres"
        self.pinpoints = parse_pinpoints(pinpoints) if self.anyres else []
        if self.anyres:
            self.processor.anyres_tokens((1, 1), self.pinpoints, merge)  # what cannot go together

    def path(self, name: str) -> Path:
        """Where an image is; ImageError for a name that leads out of the folder."""
        return path_inside(self.folder, name)

    def read(self, name: str) -> bytes:
        """The file's bytes; ImageError where it cannot be read."""
        try:
            return self.path(name).read_bytes()
        except OSError as error:
            raise ImageError(name, f"cannot be read: {error.strerror or error}") from None

    def load(self, name: str) -> Image.Image:
        """The RGB image; ImageError where it is missing or does not decode wholly."""
        data = self.read(name)
        if not data:
            raise ImageError(name, "is an empty file")
        try:
            return decode(data)
        except LawError as error:
            raise ImageError(name, str(error)) from None

    def size(self, name: str) -> Size:
        """(width, height) out of the file's header; nothing is decoded."""
        path = self.path(name)
        try:
            with Image.open(path) as image:
                return image.size
        except UnidentifiedImageError:
            raise ImageError(name, "does not decode: no image format that PIL knows") from None
        except OSError as error:
            raise ImageError(name, f"cannot be read: {error.strerror or error}") from None
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise almost anything
            raise ImageError(name, f"does not decode: {error}") from None

    def tokens(self, names: Sequence[str], tokens_per_view: int) -> list[int]:
        """Tokens that each image becomes; for anyres the files' headers are read."""
        if not self.anyres:
            return [tokens_per_view] * len(names)
        return [
            self.processor.anyres_tokens(
                self.size(name), self.pinpoints, self.merge, tokens_per_view
            )
            for name in names
        ]

    def pixels(self, names: Sequence[str]) -> tuple[Pixels, list[Size]]:
        """(pixels, sizes) of a record's images."""
        images = [self.load(name) for name in names]
        try:
            return self._preprocessed(images), [image.size for image in images]
        except UsageError:
            raise
        except LawError as error:  # too thin to be resized
            raise ImageError(", ".join(names), str(error)) from None

    def _preprocessed(self, images: list[Image.Image]) -> Pixels:
        if self.anyres:
            return [self.processor.anyres(image, self.pinpoints) for image in images]
        return self.processor(images)

    def check(self, name: str, how: str) -> None:
        """Raises ImageError for an image that is not as `how` asks.

        `none`: the name stays in the folder; `exist`: a file that is not empty; `decode`: all of it
        decodes.
        """
        if how == "decode":
            self.pixels([name])
            return
        path = self.path(name)
        if how == "none":
            return
        try:
            facts = path.stat()
        except OSError as error:
            raise ImageError(name, f"cannot be read: {error.strerror or error}") from None
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError(name, "is no file")
        if not facts.st_size:
            raise ImageError(name, "is an empty file")
