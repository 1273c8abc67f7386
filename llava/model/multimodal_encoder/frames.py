"""Which frame LLaVA's settings mean: how an image meets a tower's input (preprocess.py says how).

Nothing here imports torch.
"""

from llava.errors import UsageError, unknown_name

GEOMETRIES = ("own", "shared")
FRAME_OF = {
    ("square", "own"): "own",
    ("pad", "own"): "own_pad",
    ("anyres", "own"): "own",
    ("square", "shared"): "crop",
    ("pad", "shared"): "pad",
    ("anyres", "shared"): "crop",
}
"""(image_aspect_ratio, geometry) -> frame."""
ASPECT_RATIOS = ("square", "pad", "anyres")


def frame_of(image_aspect_ratio: str | None, geometry: str = "own") -> str:
    """The frame that LLaVA's `image_aspect_ratio` means; None counts as `square`.

    Raises UsageError for an unknown value, with the nearest one.
    """
    ratio = image_aspect_ratio or "square"
    if ratio not in ASPECT_RATIOS:
        raise UsageError(unknown_name("image_aspect_ratio", ratio, ASPECT_RATIOS))
    if geometry not in GEOMETRIES:
        raise UsageError(unknown_name("mm_vision_geometry", geometry, GEOMETRIES))
    return FRAME_OF[ratio, geometry]
