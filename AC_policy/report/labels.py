"""Names beside points, placed so that they can be read: off the points and off each other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Box = tuple[float, float, float, float]
"""(left, bottom, right, top), pixels."""

GAPS_PT = (4, 9, 15, 22, 30, 40)
"""How far a name may stand from its point, in points of print; nearer places are tried first."""
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
LINE_FROM_PT = 9
"""From this gap on a thin line leads from the name to its point."""
POINT_PT = 4.0
"""Half the width of what a point covers."""


def label_points(axes: "Axes", points: np.ndarray, names: Sequence[str], size: float = 7.5) -> None:
    """Writes each name near its point [n, 2]; call it when the limits of the axes are final."""
    renderer = axes.figure.canvas.get_renderer()
    per_pt = axes.figure.dpi / 72
    places = axes.transData.transform(points)
    frame = axes.get_window_extent(renderer)
    half = POINT_PT * per_pt
    taken = [(x - half, y - half, x + half, y + half) for x, y in places]
    order = np.lexsort((places[:, 1], places[:, 0]))
    for index in order:
        text = axes.text(0, 0, names[index], fontsize=size)
        extent = text.get_window_extent(renderer)
        text.remove()
        found = _best(places[index], extent.width, extent.height, per_pt, taken, frame)
        gap, direction, box = found
        taken.append(box)
        dx, dy = direction
        axes.annotate(
            names[index],
            points[index],
            xytext=(gap * dx, gap * dy),
            textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[dx],
            va={1: "bottom", 0: "center", -1: "top"}[dy],
            fontsize=size,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#767676", "shrinkB": 2}
            if gap >= LINE_FROM_PT
            else None,
        )


def _best(
    place: np.ndarray, width: float, height: float, per_pt: float, taken: list[Box], frame: "Bbox"
) -> tuple[float, tuple[int, int], Box]:
    """(gap, direction, box) of the place that covers least; the first that covers nothing."""
    best, least = None, np.inf
    for gap in GAPS_PT:
        for direction in DIRECTIONS:
            box = _box(place, direction, gap * per_pt, width, height)
            covered = sum(_overlap(box, other) for other in taken)
            outside = width * height - _overlap(box, frame.extents)
            if covered + outside < least - 1e-6:
                best, least = (gap, direction, box), covered + outside
            if least <= 1e-6:
                return best
    return best


def _box(
    place: np.ndarray, direction: tuple[int, int], gap: float, width: float, height: float
) -> Box:
    (x, y), (dx, dy) = place, direction
    left = x + gap * dx - {1: 0, 0: width / 2, -1: width}[dx]
    bottom = y + gap * dy - {1: 0, 0: height / 2, -1: height}[dy]
    return left, bottom, left + width, bottom + height


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
