"""Pictures of correspondence: matched points, and where an image resembles one point of another.

    python -m C_score.draw --source A.jpg --target B.jpg --model NAME --out FILE [--point x,y ...]

PNG or SVG by the file's suffix, the same bytes for the same input. Colours are Okabe and Ito's, and
nothing is said by colour alone: points are numbered, wrong matches dashed with a cross.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from C_score.view import FRAMES, View, read_image
from llava.errors import LawError, UsageError, unknown_name
from llava.exits import run_command
from llava.files import ensure_writable

if TYPE_CHECKING:  # the command imports it where it computes
    from torch import Tensor

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
SUFFIXES = (".png", ".svg")


def draw_matches(
    source_image: Path,
    target_image: Path,
    source_xy: np.ndarray,
    predicted_xy: np.ndarray,
    true_xy: np.ndarray | None,
    correct: np.ndarray | None,
    out: Path,
    title: str = "",
) -> None:
    """Both images side by side at one height, a line from each point to where it was found.

    Args:
        source_image: file of the image that the points are on.
        target_image: file of the image that they were looked for in.
        source_xy: [K, 2] x, y in pixels of the source image.
        predicted_xy: [K, 2] in pixels of the target image.
        true_xy: [K, 2] likewise, drawn as circles; None where nobody knows.
        correct: bool [K], wrong ones are dashed; None where nobody knows.
        out: .png or .svg.
        title: stands above the images.

    Raises LawError for an image that does not decode, UsageError for arrays of unequal length or
    another suffix.
    """
    from matplotlib import rc_context

    from C_score.sheet import STYLE, Sheet

    check_suffix(out)
    source_xy, predicted_xy, true_xy, correct = _checked(source_xy, predicted_xy, true_xy, correct)
    images = [read_image(source_image), read_image(target_image)]
    with rc_context(STYLE):
        beyond = [
            _around([source_xy], images[0].size),
            _around([predicted_xy, true_xy], images[1].size),
        ]
        sheet = Sheet(images, beyond)
        text = [title] if title else []
        if correct is not None:
            text.append(f"{int(correct.sum())} of {len(correct)} correct")
        sheet.title("   ".join(text))
        for k, (start, end) in enumerate(zip(source_xy, predicted_xy, strict=True)):
            good = correct is None or bool(correct[k])
            place = [sheet.at(0, start), sheet.at(1, end)]
            sheet.line(*place, PALETTE[k % len(PALETTE)], dashed=not good)
            if true_xy is not None:
                sheet.mark(sheet.at(1, true_xy[k]), "ring", PALETTE[k % len(PALETTE)])
            sheet.mark(place[0], "o", PALETTE[k % len(PALETTE)])
            sheet.mark(place[1], "o" if good else "X", PALETTE[k % len(PALETTE)])
            if len(source_xy) > 1:
                sheet.number(place[0], k + 1)
                sheet.number(place[1], k + 1)
                if true_xy is not None and not good:  # that of a right match is at its end
                    sheet.number(sheet.at(1, true_xy[k]), k + 1, beside=0.12)
        sheet.legend(true_xy is not None, correct)
        sheet.save(out)


def draw_heat_map(
    source_image: Path,
    target_image: Path,
    source_xy: np.ndarray,
    similarity_HW: np.ndarray,
    out: Path,
    title: str = "",
    frame: str = "pad",
    covered: float = 1.0,
) -> None:
    """The source with a point marked; the target under the cosines of its cells to that point's.

    Args:
        source_image: file of the image that the point is on.
        target_image: file of the image whose cells were compared.
        source_xy: x, y in pixels of the source image.
        similarity_HW: cosines of the target's cells, row 0 at the top.
        out: .png or .svg.
        title: stands above the images.
        frame: how the grid lies on an image: pad, stretch or crop.
        covered: see View.of.
    """
    from matplotlib import rc_context

    from C_score.sheet import STYLE, Sheet

    check_suffix(out)
    map_HW = np.asarray(similarity_HW, np.float32)
    if map_HW.ndim != 2 or not map_HW.size:
        raise UsageError(f"similarity: expected a grid [rows, columns], got {list(map_HW.shape)}")
    if not np.isfinite(map_HW).all():
        raise LawError("similarity: holds NaN or infinity; the features behind it do")
    images = [read_image(source_image), read_image(target_image)]
    views = [View.of(image.size, frame, covered) for image in images]
    point = np.asarray(source_xy, np.float64).reshape(2)
    if not np.isfinite(point).all():
        raise LawError("the point to be drawn is NaN or infinite")
    row, column = np.unravel_index(map_HW.argmax(), map_HW.shape)
    best = views[1].centres(np.array([column, row]), map_HW.shape)
    with rc_context(STYLE):
        beyond = None if _inside(best, images[1].size) else views[1]
        around = [_around([point[None]], images[0].size), beyond]
        sheet = Sheet([images[0], images[1].convert("L")], around, bar=True)
        sheet.title(title)
        limits = _range(map_HW, views[1], images[1].size, everywhere=beyond is not None)
        sheet.heat(map_HW, views[1], limits)
        for i, cell in enumerate((views[0].cells(point, map_HW.shape), np.array([column, row]))):
            sheet.outline(i, views[i], cell, map_HW.shape)
        sheet.mark(sheet.at(0, point), "o", PALETTE[3])
        sheet.mark(sheet.at(1, best), "*", PALETTE[3])
        sheet.foot(f"● the point and its patch     ★ largest cosine, {map_HW.max():.3f}")
        sheet.save(out)


def similarity_map(
    source_tokens_NC: "Tensor",
    target_tokens_NC: "Tensor",
    grid: tuple[int, int],
    point_patch: int,
) -> np.ndarray:
    """float32 [H, W] cosines of the target's patches to one patch of the source.

    `grid` is the target's (rows, columns), `point_patch` a row-major index into the source's. A
    token of length zero has cosine 0.
    """
    from C_score.pair import cosines

    if not 0 <= point_patch < len(source_tokens_NC):
        raise UsageError(f"patch {point_patch}: the source has {len(source_tokens_NC)} patches")
    if len(target_tokens_NC) != grid[0] * grid[1]:
        raise UsageError(
            f"{len(target_tokens_NC)} tokens are no grid of {grid[0]} x {grid[1]} patches"
        )
    row = source_tokens_NC[point_patch : point_patch + 1]
    return cosines(row, target_tokens_NC)[0].reshape(grid).numpy()


def check_suffix(out: Path) -> None:
    """UsageError where the suffix is no format that is written."""
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{out}: expected a file name ending in {' or '.join(SUFFIXES)}")


def _checked(source_xy, predicted_xy, true_xy, correct):
    """The four as arrays of K points and K booleans, or None."""
    source_xy = np.asarray(source_xy, np.float64).reshape(-1, 2)
    others = {"predicted": predicted_xy, "true": true_xy}
    checked = []
    for name, xy in others.items():
        xy = None if xy is None else np.asarray(xy, np.float64).reshape(-1, 2)
        if xy is not None and len(xy) != len(source_xy):
            raise UsageError(f"{len(source_xy)} source points and {len(xy)} {name} ones")
        checked.append(xy)
    for xy in (source_xy, *checked):
        if xy is not None and not np.isfinite(xy).all():
            raise LawError("a point to be drawn is NaN or infinite")
    if correct is not None:
        correct = np.asarray(correct, bool).reshape(-1)
        if len(correct) != len(source_xy):
            raise UsageError(f"{len(source_xy)} source points and {len(correct)} verdicts")
    return source_xy, *checked, correct


def _inside(xy: np.ndarray, size: tuple[int, int]) -> bool:
    return bool((0 <= xy[0] <= size[0]) and (0 <= xy[1] <= size[1]))


def _around(points: list[np.ndarray | None], size: tuple[int, int]) -> View | None:
    """What holds all points, where one is off the image: a match may lie in the padding."""
    xy = np.concatenate([given for given in points if given is not None])
    if all(_inside(point, size) for point in xy):
        return None
    (left, top), (right, bottom) = xy.min(0), xy.max(0)
    return View(left, top, right - left, bottom - top)


def _range(
    map_HW: np.ndarray, view: View, size: tuple[int, int], everywhere: bool
) -> tuple[float, float]:
    """Smallest and largest cosine of cells whose middle is on the image, or of all."""
    rows, columns = np.indices(map_HW.shape)
    middles = view.centres(np.stack([columns, rows], -1), map_HW.shape)
    on_image = ((middles >= 0) & (middles <= size)).all(-1)
    seen = map_HW if everywhere or not on_image.any() else map_HW[on_image]
    low, high = float(seen.min()), float(seen.max())
    return low, max(high, low + 1e-6)


def main(argv: list[str]) -> None:
    """Matches two pictures with a tower, draws the matches and heat maps, prints the points."""
    arguments = _parser().parse_args(argv)
    points = [_point(text) for text in arguments.point]
    check_suffix(arguments.out)
    ensure_writable(arguments.out)
    if arguments.frame not in FRAMES:
        raise UsageError(unknown_name("frame", arguments.frame, FRAMES))
    for path in (arguments.source, arguments.target):
        read_image(path)  # before a tower is loaded

    from C_score import pair
    from llava.model.multimodal_encoder.builder import build_tower

    tower = build_tower(arguments.model, frame=arguments.frame, device=arguments.device)
    both = pair.pair_features(tower, arguments.source, arguments.target)
    if points:
        matches = pair.match_points(both, np.array(points))
    else:
        matches = pair.mutual_matches(both, arguments.matches)
    pictures = (arguments.source, arguments.target)
    places = (matches.source_xy, matches.predicted_xy)
    name = Path(arguments.model).name if Path(arguments.model).is_dir() else arguments.model
    draw_matches(*pictures, *places, None, None, arguments.out, name)
    print(f"{'source x, y':>16}  {'target x, y':>16}  cosine")
    for (x, y), (u, v), cosine in zip(*places, matches.cosine, strict=True):
        print(f"{x:7.1f}, {y:7.1f}  {u:7.1f}, {v:7.1f}  {cosine:6.3f}")
    print(arguments.out)
    for k in range(len(points) or min(1, len(matches.cosine))):
        out = arguments.out.with_stem(f"{arguments.out.stem}-heat-{k + 1}")
        point = matches.source_xy[k]
        row = both.similarity_NN[both.source.patches(point, both.grid)].reshape(both.grid)
        draw_heat_map(*pictures, point, row, out, name, arguments.frame, pair.covered(tower))
        print(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m C_score.draw",
        description="Draws which places of one picture a vision tower finds in another.",
    )
    parser.add_argument("--source", type=Path, required=True, metavar="IMAGE")
    parser.add_argument("--target", type=Path, required=True, metavar="IMAGE")
    parser.add_argument("--model", required=True, metavar="NAME", help="`law towers` lists them")
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y",
        help="pixel of the source to look for, repeatable; default: the best mutual matches",
    )
    parser.add_argument(
        "--matches", type=int, default=12, metavar="K", help="how many (default 12)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".png or .svg; heat maps go beside it, FILE-heat-1 ...",
    )
    parser.add_argument(
        "--frame",
        default="pad",
        metavar="{" + ",".join(FRAMES) + "}",
        help="how an image becomes the tower's square input (default pad)",
    )
    parser.add_argument("--device", default="cpu")
    return parser


def _point(text: str) -> tuple[float, float]:
    """x and y of `x,y`."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--point {text}: expected X,Y in pixels, such as 120,80") from None
    if not np.isfinite([x, y]).all():
        raise UsageError(f"--point {text}: expected X,Y in pixels, such as 120,80")
    return x, y


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
