"""Figures of one's own numbers: A and C against performance, and the A-C plane, points named."""

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from AC_policy.report.labels import label_points
from AC_policy.report.own import Column, Measured
from AC_policy.report.plots import BLUE, STYLE, as_svg
from llava import catalog

LEAST = 2
"""Points of a panel."""
MOST_NAMED = 30
"""Points of a panel that get their names; of more the table says which they are."""
PANEL_INCHES = (4.9, 3.9)
MARGIN = 0.13
"""Of the data's range, around it."""
PALE = "#8fbbd8"


def scatter(entry: Measured) -> tuple[str, list[str]]:
    """(figure as SVG, or nothing; why panels are missing)."""
    c = next((column for column in entry.scores if column.quantity == "C_pck"), None)
    pairs = [(column, entry.performance, None) for column in entry.scores]
    if c:
        pairs += [(column, c, entry.performance) for column in entry.scores if column is not c]
    panels, missing = [], []
    for across, up, colour in pairs:
        names = [name for name in across.values if name in up.values]
        if len(names) < LEAST:
            missing.append(
                f"No figure of {across.name} and {up.name}: with both {len(names)}, {LEAST} are "
                "the least."
            )
        else:
            panels.append((across, up, colour, names))
    if not panels:
        return "", missing
    with rc_context(STYLE):
        rows = -(-len(panels) // 2)
        size = (2 * PANEL_INCHES[0], rows * PANEL_INCHES[1])
        canvas = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(canvas)
        grid = canvas.subplots(rows, 2, squeeze=False)
        for axes, (across, up, colour, names) in zip(grid.flat, panels, strict=False):
            _points(axes, across, up, colour, names)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        canvas.draw_without_rendering()  # names are placed on the final layout
        canvas.set_layout_engine("none")
        for axes, (across, up, _, names) in zip(grid.flat, panels, strict=False):
            if len(names) <= MOST_NAMED:
                points = np.array([[across.values[name], up.values[name]] for name in names])
                label_points(axes, points, [_text(name) for name in names])
        return as_svg(canvas), missing


def _points(axes: Axes, across: Column, up: Column, colour: Column | None, names) -> None:
    x = np.array([across.values[name] for name in names])
    y = np.array([up.values[name] for name in names])
    errors = np.array([up.stderr.get(name, 0.0) if colour is None else 0.0 for name in names])
    if colour is None:
        axes.errorbar(x, y, errors, fmt="o", ms=5, color=BLUE, elinewidth=0.6, ecolor=PALE)
        axes.set_title(f"{across.name} and performance")
    else:
        value = np.array([colour.values.get(name, np.nan) for name in names])
        known = np.isfinite(value)
        style = {"s": 34, "edgecolors": "black", "linewidths": 0.6, "zorder": 3}
        axes.scatter(x[~known], y[~known], facecolors="white", **style)
        if known.any():
            drawn = axes.scatter(x[known], y[known], c=value[known], cmap="cividis", **style)
            axes.figure.colorbar(drawn, ax=axes, label=_axis(colour), fraction=0.05, pad=0.02)
        axes.set_title(f"{across.name} and {up.name}")
    for side, column, low, high in (
        ("x", across, x.min(), x.max()),
        ("y", up, (y - errors).min(), (y + errors).max()),
    ):
        pad = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
        ends = (low - pad, high + pad) if column.higher_is_better else (high + pad, low - pad)
        axes.set(**{f"{side}lim": ends, f"{side}label": _axis(column)})


def _axis(column: Column) -> str:
    lower = "" if column.higher_is_better else " (lower is better)"
    return f"{column.name}, {column.unit}{lower}"


def _text(name: str) -> str:
    """A short name, without the dollars that would start a formula."""
    return catalog.display_representation(name).replace("$", r"\$")
