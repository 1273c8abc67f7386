"""The photographs of warps-mini, each with points that are known to lie where they lie.

Pixel coordinates: x to the right, y down, (0, 0) the centre of the upper left pixel.
"""

import importlib.metadata
from dataclasses import dataclass

import numpy as np
from PIL import Image

from llava.errors import LawError, MissingPackageError

LONGEST_PX = 960
"""Larger photographs are reduced first: no image of the set is larger than half of it."""
POINTS = 30
"""Per photograph, as many as the annotation format has slots."""
EDGE = 0.02
"""No point lies nearer to the edge of its photograph, fraction of the longest side."""
WEAKEST = 0.01
"""Corner strength below which a spot counts as untextured, fraction of the strongest."""
AROUND = 7
"""Side of the square around a pixel of a stereo pair that is looked at, pixels."""
ALIKE_GREY = 12.0
"""Largest mean difference of that square between the two pictures, grey levels of 255."""


@dataclass(frozen=True)
class Photo:
    """One photograph, or stereo pair, of scikit-image's wheel."""

    name: str
    """Category in the set; no SPair-71k category, since the slots mean something else there."""
    loader: str
    """Function of `skimage.data`."""
    credit: str


PHOTOS = (
    Photo("motorcycle", "stereo_motorcycle", "Middlebury 2014 stereo benchmark, Nesic et al."),
    Photo("astronaut", "astronaut", "NASA, Eileen Collins; public domain"),
    Photo("camera", "camera", "Lav Varshney; CC0"),
    Photo("chelsea", "chelsea", "Stefan van der Walt; CC0"),
    Photo("coffee", "coffee", "Rachel Michetti, Pikolo Espresso Bar; CC0"),
    Photo("coins", "coins", "Brooklyn Museum; no known restrictions"),
    Photo("hubble", "hubble_deep_field", "NASA, HubbleSite; public domain"),
    Photo("retina", "retina", "Mikael Häggström; CC0"),
    Photo("rocket", "rocket", "SpaceX; public domain"),
    Photo("tissue", "immunohistochemistry", "CMMI; no known restrictions"),
)


@dataclass(frozen=True)
class Scene:
    """One photograph, or the two of a stereo pair, and points seen in all of them."""

    name: str
    pictures: tuple[Image.Image, ...]
    points: tuple[np.ndarray, ...]
    """Per picture float64 [K, 2]; row k is the same spot of the scene in every picture."""


def read_scenes() -> list[Scene]:
    """The scenes in the order of PHOTOS, from the files inside scikit-image's package.

    Raises MissingPackageError without scikit-image, LawError where it lacks one of the photographs.
    """
    version = installed_version()
    from skimage import data

    scenes = []
    for photo in PHOTOS:
        try:
            loaded = getattr(data, photo.loader)()
        except (AttributeError, ImportError, OSError, ValueError) as error:
            raise LawError(
                f"scikit-image {version}: its photograph '{photo.loader}' cannot be read ({error});"
                f" 0.26 has it: `pip install --force-reinstall scikit-image==0.26.*`"
            ) from error
        if photo.loader.startswith("stereo"):
            scenes.append(_stereo(photo.name, *loaded))
        else:
            picture = _reduced(Image.fromarray(loaded).convert("RGB"))
            points = corners(_grey(picture), np.ones(picture.size[::-1], bool))
            scenes.append(Scene(photo.name, (picture,), (points.astype(float),)))
    return scenes


def installed_version() -> str:
    """Version of scikit-image; MissingPackageError where it is not installed."""
    try:
        return importlib.metadata.version("scikit-image")
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackageError(
            "scikit-image is not installed, and the photographs come with it: "
            "`pip install scikit-image`"
        ) from None


def _stereo(name: str, left: np.ndarray, right: np.ndarray, disparity_px: np.ndarray) -> Scene:
    """The pair, with points of the left picture whose place in the right one is sure."""
    grey, other = (_grey(Image.fromarray(picture)) for picture in (left, right))
    points = corners(grey, sure_disparity(grey, other, disparity_px))
    shift = disparity_px[points[:, 1], points[:, 0]].astype(float)
    moved = points - np.stack([shift, np.zeros_like(shift)], 1)
    pictures = (Image.fromarray(left), Image.fromarray(right))
    return Scene(name, pictures, (points.astype(float), moved))


def sure_disparity(
    left_HW: np.ndarray, right_HW: np.ndarray, disparity_HW: np.ndarray
) -> np.ndarray:
    """bool [H, W]: where a pixel of the left picture surely lies at x - disparity in the right one.

    Around it the disparity is finite and steady, and both pictures look alike; its place is well
    inside of the right picture, and no nearer surface covers it there.
    """
    from scipy import ndimage

    height, width = disparity_HW.shape
    finite = np.isfinite(disparity_HW)
    known = np.where(finite, disparity_HW, 0)
    whole = ndimage.minimum_filter(finite, AROUND)
    steady = ndimage.maximum_filter(known, AROUND) - ndimage.minimum_filter(known, AROUND) < 1
    rows, columns = np.indices(disparity_HW.shape)
    place = columns - known
    inside = (place >= EDGE * width) & (place <= (1 - EDGE) * width)

    nearest = np.zeros((height, width))  # largest disparity that lands on a pixel of the right
    landing = np.clip(np.rint(place).astype(int), 0, width - 1)
    np.maximum.at(nearest, (rows[finite], landing[finite]), known[finite])
    cover = np.take_along_axis(ndimage.maximum_filter(nearest, (1, AROUND)), landing, 1)
    in_front = known > cover - 1

    seen = ndimage.map_coordinates(right_HW, [rows, place], order=1, mode="nearest")
    alike = ndimage.uniform_filter(np.abs(seen - left_HW), AROUND) < ALIKE_GREY
    return whole & steady & inside & in_front & alike


def corners(grey_HW: np.ndarray, allowed_HW: np.ndarray) -> np.ndarray:
    """int [K, 2] (x, y): at most POINTS textured spots, spread as far as the texture allows.

    A spot is a maximum of the smaller eigenvalue of the structure tensor (Shi and Tomasi 1994).
    """
    from skimage.feature import corner_shi_tomasi, peak_local_max

    longest = max(grey_HW.shape)
    strength = corner_shi_tomasi(grey_HW, sigma=longest / 200) * allowed_HW
    for apart in np.geomspace(longest / 5, longest / 50, 24):
        found = peak_local_max(
            strength,
            min_distance=round(apart),
            threshold_rel=WEAKEST,
            num_peaks=POINTS,
            exclude_border=round(EDGE * longest),
        )
        if len(found) == POINTS:
            break
    return found[np.lexsort(found.T[::-1])][:, ::-1]


def _reduced(picture: Image.Image) -> Image.Image:
    scale = min(1.0, LONGEST_PX / max(picture.size))
    size = tuple(round(side * scale) for side in picture.size)
    return picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)


def _grey(picture: Image.Image) -> np.ndarray:
    """float32 [H, W], 0 to 255."""
    return np.asarray(picture.convert("L"), np.float32)
