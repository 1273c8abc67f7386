"""A sheet with two images at one height, and the marks that draw.py puts on it."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from PIL import Image

from C_score.view import View
from llava.files import write_bytes

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "law",  # element names that do not change from run to run
    "text.parse_math": False,  # a file name may hold dollars
}
WIDTH, NARROWEST, TALLEST = 10.0, 6.0, 7.0
"""Inches: of a sheet of wide images, of any sheet, and of the images' height."""
DPI = 140
MARGIN, TITLE, FOOT, GAP, BAR = 0.15, 0.42, 0.42, 0.12, 0.95
"""Inches: around everything, above and below the images, between them, for the colour bar."""
HALO = "white"


class Sheet:
    """Two images side by side; places on them are given in their own pixels by `at`."""

    def __init__(
        self, images: list[Image.Image], views: list[View | None] = (None, None), bar: bool = False
    ):
        """`views` are parts that have to be seen beside the image itself."""
        boxes = [_box(image.size, view) for image, view in zip(images, views, strict=True)]
        shares = [box.width / box.height for box in boxes]
        room = BAR if bar else 0.0
        height = min((WIDTH - 2 * MARGIN - GAP - room) / sum(shares), TALLEST)
        content = height * sum(shares) + GAP + room
        self.width = max(content + 2 * MARGIN, NARROWEST)
        self.height = height + TITLE + FOOT
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI)
        self.left = (self.width - content) / 2
        self._boxes, self._scale, self._starts = boxes, [], []
        self._images = []
        start = self.left
        for image, box, share in zip(images, boxes, shares, strict=True):
            self._starts.append(start)
            self._scale.append(height / box.height)
            self._images.append(self._show(image, box, (start, FOOT, height * share, height)))
            start += height * share + GAP
        self._bar_place = self._part((start, FOOT, 0.16, height))
        self._over = self.figure.add_axes((0, 0, 1, 1), zorder=5)
        self._over.set(xlim=(0, self.width), ylim=(0, self.height))
        self._over.set_axis_off()

    def _part(self, inches: tuple[float, float, float, float]) -> tuple[float, ...]:
        x, y, width, height = inches
        return (x / self.width, y / self.height, width / self.width, height / self.height)

    def _show(self, image: Image.Image, box: View, inches: tuple[float, float, float, float]):
        axes = self.figure.add_axes(self._part(inches))
        pixels = _shrunk(image, round(inches[3] * DPI * image.height / box.height))
        grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.mode == "L" else {}
        axes.imshow(np.asarray(pixels), extent=(0, image.width, image.height, 0), **grey)
        axes.set_aspect("auto")
        axes.axis((box.left, box.left + box.width, box.top + box.height, box.top))
        axes.set_axis_off()
        return axes

    def at(self, index: int, xy: np.ndarray) -> tuple[float, float]:
        """Inches from the sheet's lower left of a place on image 0 or 1."""
        box, scale = self._boxes[index], self._scale[index]
        x = self._starts[index] + (float(xy[0]) - box.left) * scale
        y = FOOT + (box.top + box.height - float(xy[1])) * scale
        return x, y

    def line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str, dashed: bool
    ) -> None:
        """From place to place, solid or dashed, on a pale halo."""
        (line,) = self._over.plot(
            *zip(start, end, strict=True), color=colour, lw=1.8, ls=(0, (5, 3)) if dashed else "-"
        )
        line.set_path_effects([Stroke(linewidth=3.2, foreground=HALO, alpha=0.7), Normal()])

    def mark(self, place: tuple[float, float], kind: str, colour: str) -> None:
        """A disc `o`, a cross `X`, a star `*`, or an open circle `ring`."""
        if kind == "ring":
            for width, edge in ((4.2, HALO), (2.0, colour)):
                self._over.plot(
                    *place, "o", ms=15, mfc="none", mec=edge, mew=width, zorder=3, clip_on=False
                )
            return
        size = {"o": 8, "X": 10, "*": 17}[kind]
        self._over.plot(
            *place, kind, ms=size, mfc=colour, mec=HALO, mew=1.2, zorder=4, clip_on=False
        )

    def number(self, place: tuple[float, float], number: int, beside: float = 0.06) -> None:
        """A small number above and right of a place (`beside` inches), kept on the sheet."""
        x = min(place[0] + beside, self.width - 0.2)
        y = min(place[1] + 0.05, self.height - 0.15)
        text = self._over.text(x, y, str(number), size=9, weight="bold", color="black", zorder=6)
        text.set_path_effects([Stroke(linewidth=2.5, foreground=HALO), Normal()])

    def outline(self, index: int, view: View, cell: np.ndarray, grid: tuple[int, int]) -> None:
        """The edges of a cell (column, row)."""
        width, height = view.width / grid[1], view.height / grid[0]
        corner = (view.left + cell[0] * width, view.top + (cell[1] + 1) * height)
        scale = self._scale[index]
        for line_width, colour in ((3.4, "black"), (1.6, HALO)):
            self._over.add_patch(
                Rectangle(
                    self.at(index, corner),
                    width * scale,
                    height * scale,
                    fill=False,
                    ec=colour,
                    lw=line_width,
                )
            )

    def heat(self, map_HW: np.ndarray, view: View, limits: tuple[float, float]) -> None:
        """Lays a map over the second image where its grid lies, and adds the colour bar."""
        axes = self._images[1]
        kept = axes.axis()
        edges = (view.left, view.left + view.width, view.top + view.height, view.top)
        heat = axes.imshow(
            map_HW, extent=edges, cmap="viridis", alpha=0.6, interpolation="nearest", zorder=2
        )
        heat.set_clim(*limits)
        axes.set_aspect("auto")
        axes.axis(kept)
        bar = self.figure.colorbar(heat, cax=self.figure.add_axes(self._bar_place))
        bar.solids.set_alpha(1)
        bar.set_label("cosine")
        bar.outline.set_visible(False)

    def title(self, text: str) -> None:
        """One line above the images."""
        self._line_of_text(text, self.height - TITLE / 2, 11, "bold")

    def foot(self, text: str) -> None:
        """One line below the images."""
        self._line_of_text(text, FOOT / 2, 10, "normal")

    def _line_of_text(self, text: str, y: float, size: float, weight: str) -> None:
        """Shortened to what fits, as drawn."""
        artist = self._over.text(self.left, y, text, va="center", size=size, weight=weight)
        free = (self.width - self.left - MARGIN) * DPI
        while len(text) > 1 and (width := artist.get_window_extent().width) > free:
            text = text[: min(len(text) - 1, int(len(text) * free / width))]
            artist.set_text(text.rstrip() + "…")

    def legend(self, truth: bool, correct: np.ndarray | None) -> None:
        """What discs, crosses, dashes and rings mean, as far as they occur."""
        line = {"color": "black", "mec": HALO, "mfc": "black"}
        entries = [Line2D([], [], marker="o", ms=8, lw=1.8, label="match", **line)]
        if correct is not None:
            entries[0].set_label("correct")
            dashes = (0, (3, 2))
            entries += [Line2D([], [], marker="X", ms=9, ls=dashes, lw=1.8, label="wrong", **line)]
        if truth:
            ring = {"marker": "o", "ls": "", "mfc": "none", "mec": "black", "mew": 2}
            entries += [Line2D([], [], ms=12, label="true place", **ring)]
        self._over.legend(
            handles=entries,
            loc="center left",
            bbox_to_anchor=(self.left / self.width, FOOT / 2 / self.height),
            ncols=len(entries),
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=3.4,
        )

    def save(self, out: Path) -> None:
        """Writes PNG or SVG, whole or not at all, with nothing in it that changes by itself."""
        data = io.BytesIO()
        kind = out.suffix[1:].lower()
        metadata = {"Software": None} if kind == "png" else {"Date": None}
        self.figure.savefig(data, format=kind, dpi=DPI, metadata=metadata)
        write_bytes(out, data.getvalue())


def _box(size: tuple[int, int], view: View | None) -> View:
    """The whole image, and `view` beside it."""
    if view is None:
        return View(0, 0, *size)
    left, top = min(0, view.left), min(0, view.top)
    right, bottom = max(size[0], view.left + view.width), max(size[1], view.top + view.height)
    return View(left, top, right - left, bottom - top)


def _shrunk(image: Image.Image, height: int) -> Image.Image:
    """The image at most `height` pixels high, so that a sheet of photos stays small."""
    if image.height <= height:
        return image
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, max(1, height)), Image.Resampling.LANCZOS)
