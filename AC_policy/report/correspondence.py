"""The report's section on correspondence measured in the same run: scores, combinations, pictures.

It reads what `law c-score` left in a folder: `c_score.json` and pictures below `pictures/`.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from AC_policy.report.markup import figure, paragraph, soft, table
from AC_policy.report.plots import BLUE, ORANGE, STYLE, as_svg
from llava import catalog
from llava.errors import UsageError

SHOWN = 12
"""Combinations in the table."""
GEOMETRIC = "warps-mini"
"""A set of warped photographs: it tests geometric, not semantic, correspondence."""
PICTURE_WIDTH = 1060
"""Pixels: the width of the page."""
SPREAD = 0.5
"""Width of a column of dots."""


@dataclass(frozen=True)
class Scored:
    """One representation: PCK as fractions by alpha, and how many towers it joins."""

    name: str
    towers: int
    pck: dict[str, float]
    stderr: dict[str, float]


@dataclass(frozen=True)
class Correspondence:
    """What the section shows; `scores` best first by the second alpha, where there is one."""

    scores: list[Scored]
    protocol: str
    pairs: int
    keypoints: int
    alpha: str
    """The alpha that the figure and the order go by."""
    pictures: dict[str, bytes]
    """Caption -> JPEG."""


def read(folder: Path) -> Correspondence:
    """What is in the folder; UsageError where `c_score.json` is not what `law c-score` writes."""
    path = folder / "c_score.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        results = found.get("results", [found])
        scores = [_scored(entry) for entry in results]
        first = results[0]
        alphas = list(first["overall"])
        alpha = alphas[min(1, len(alphas) - 1)]
        return Correspondence(
            scores=sorted(scores, key=lambda s: -s.pck[alpha]),
            protocol=first["protocol"],
            pairs=first["n_pairs"],
            keypoints=first["n_keypoints"],
            alpha=alpha,
            pictures={
                _caption(image, folder / "pictures"): _small(image)
                for image in sorted((folder / "pictures").rglob("*.png"))
            },
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UsageError(
            f"{path}: not what `law c-score --json {path}` writes ({error!r})"
        ) from error


def _scored(entry: dict) -> Scored:
    return Scored(
        name=str(entry["model"]),
        towers=str(entry["model"]).count("+") + 1,
        pck={key: float(value) for key, value in entry["overall"].items()},
        stderr={key: float(value) for key, value in (entry["stderr"] or {}).items()},
    )


def _caption(image: Path, root: Path) -> str:
    """`tower: pair`, from the folders that `law c-score --draw` makes."""
    *folders, _ = image.relative_to(root).parts
    return f"{'/'.join(folders)}: {image.stem}" if folders else image.stem


def _small(image: Path) -> bytes:
    """JPEG of at most PICTURE_WIDTH: a page holds a dozen of them."""
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85, optimize=True)
    return data.getvalue()


def section(found: Correspondence) -> str:
    """The section's HTML."""
    single = [score for score in found.scores if score.towers == 1]
    joined = [score for score in found.scores if score.towers > 1]
    benchmark = found.protocol.split("/")[0]
    text = (
        f"PCK on {benchmark}, {found.pairs} pairs with {found.keypoints} keypoints: the share of "
        "keypoints that a representation's features find in the other image, to within so much "
        "of the object's larger side."
    )
    if benchmark == GEOMETRIC:
        text += (
            " The set is made of warped photographs and a stereo pair, so it tests geometric, not "
            "semantic, correspondence, and says little of the C score on SPair-71k."
        )
    pictures = "".join(figure(data, name, name) for name, data in found.pictures.items())
    return (
        "<h2>Correspondence, measured here</h2>"
        + paragraph(text)
        + _scores(single or joined)
        + (_combinations(found, single, joined) if single and joined else "")
        + (f"<h3>Where keypoints go</h3>{pictures}" if pictures else "")
        + soft(
            f"Protocol: {found.protocol}. Percent, with the standard error over pairs; pairs share "
            "images, so the true error is larger."
        )
    )


def _combinations(found: Correspondence, single: list[Scored], joined: list[Scored]) -> str:
    best, alone = joined[0], single[0]
    difference = 100 * (best.pck[found.alpha] - alone.pck[found.alpha])
    text = (
        f"All {len(joined)} combinations, from the same features. The best at {found.alpha} is "
        f"{best.name}, {abs(difference):.1f} points {'above' if difference > 0 else 'below'} the "
        f"best single encoder, {alone.name}."
    )
    return (
        "<h3>All combinations</h3>"
        + paragraph(text)
        + figure(
            _plot(found),
            f"PCK at {found.alpha} of every combination by the number of its towers",
            "Each dot is one representation; orange: the best of as many towers.",
        )
        + _scores(joined[:SHOWN])
    )


def _scores(scores: list[Scored]) -> str:
    alphas = list(scores[0].pck)
    rows = [
        [
            catalog.display_representation(score.name),
            *(_with_error(score.pck[alpha], score.stderr.get(alpha)) for alpha in alphas),
        ]
        for score in scores
    ]
    return table(["representation", *(f"PCK at {alpha}" for alpha in alphas)], rows)


def _with_error(value: float, error: float | None) -> str:
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _plot(found: Correspondence) -> str:
    """A dot per representation: towers joined across, PCK up."""
    with rc_context(STYLE):
        canvas = Figure(figsize=(7.6, 3.6))
        axes = canvas.subplots()
        for towers in sorted({score.towers for score in found.scores}):
            values = [100 * s.pck[found.alpha] for s in found.scores if s.towers == towers]
            # golden-ratio steps keep neighbours of one column apart, best first in the middle
            places = [towers + SPREAD * ((0.5 + 0.618 * i) % 1 - 0.5) for i in range(len(values))]
            axes.scatter(places[1:], values[1:], s=12, color=BLUE, alpha=0.6, linewidths=0)
            axes.scatter(places[:1], values[:1], s=30, color=ORANGE, zorder=3)
        axes.set_xticks(sorted({score.towers for score in found.scores}))
        axes.set_xlabel("towers joined")
        axes.set_ylabel(f"PCK at {found.alpha}, %")
        return as_svg(canvas)
