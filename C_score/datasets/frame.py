"""The 840 frame: where keypoints, thresholds and predictions of every image meet.

An image is scaled so that its longer side is 840 pixels and padded to a square around its middle.
All arithmetic is float32, in the order of the reference, so that a keypoint on the edge of a patch
falls into the same patch.
"""

import numpy as np

ANNO = 840
"""Side of the frame in pixels (ANNO_SIZE of the reference's configurations)."""


def frame_scale(width: int, height: int) -> float:
    """Frame pixels per image pixel."""
    return ANNO / max(width, height)


def frame_offset(width: int, height: int) -> tuple[int, int]:
    """(x, y) of the image's upper left corner in the frame, whole pixels; one of them is 0."""
    short = round(ANNO * min(width, height) / max(width, height))  # a half goes to the even one
    offset = int((ANNO - short) / 2)
    return (offset if width < height else 0, offset if height < width else 0)


def to_frame(kps: np.ndarray, width: int, height: int) -> np.ndarray:
    """float32 [..., 3] x, y, v in the frame, from x, y in image pixels and v in {0, 1}.

    Where v is 0 the whole point is exactly (0, 0, 0), whatever stood there.
    """
    kps = np.asarray(kps, np.float32)
    xy = kps[..., :2] * np.float32(frame_scale(width, height))
    xy = xy + np.asarray(frame_offset(width, height), np.float32)
    visible = kps[..., 2:3] > 0
    return np.where(visible, np.concatenate([xy, np.ones_like(xy[..., :1])], -1), np.float32(0))


def from_frame(xy: np.ndarray, width: int, height: int) -> np.ndarray:
    """float64 [..., 2] in image pixels, from x, y in the frame; for drawing."""
    return (np.asarray(xy, np.float64) - frame_offset(width, height)) / frame_scale(width, height)


def patch_index(xy: np.ndarray, n: int) -> np.ndarray:
    """int64 [...], row-major index into an n x n grid of the patch that holds x, y (frame).

    A point on the right or lower border of the frame, or outside of it, belongs to the nearest
    patch; the reference reads the next row there, or fails.
    """
    cells = (np.float32(n / ANNO) * np.asarray(xy, np.float32)[..., :2]).astype(np.int64)
    cells = np.clip(cells, 0, n - 1)
    return n * cells[..., 1] + cells[..., 0]


def patch_centre(cells: np.ndarray, n: int) -> np.ndarray:
    """float32 [..., 2] x, y in the frame of (column, row) cells, which may be fractional.

    The centre is the reference's: half a patch rounded down, so up to 0.75 px less than the middle
    (26 for 26.25 at n = 16). Measured predictions rest on it.
    """
    stride = ANNO / n
    return np.asarray(cells, np.float32) * np.float32(stride) + np.float32(stride // 2)
