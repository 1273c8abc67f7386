"""Pictures of scored pairs: keypoints where they were found, and what one of them resembles."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from C_score.datasets.frame import from_frame, patch_index
from C_score.datasets.pairs import Category, Picture
from C_score.draw import draw_heat_map, draw_matches
from C_score.options import FRAMES, shortened
from C_score.report import Report
from C_score.score import Detail


def draw_reports(reports: Sequence[Report], count: int, folder: Path) -> Iterator[Path]:
    """Draws the same `count` pairs for every report, two pictures each; yields the files.

    `<model>/<pair>.png` has all keypoints, `<model>/<pair>-heat.png` the target's cosines to the
    first of them. The pairs are spread evenly over the set. Needs reports with detail.
    """
    for report in reports:
        pairs = report.run.protocol.pairs
        scored = [
            (category, score.detail, p)
            for category, score in zip(pairs.categories, report.run.categories, strict=True)
            for p in np.flatnonzero(score.detail.points_P)
        ]
        count = min(count, len(scored))
        for index in ((2 * np.arange(count) + 1) * len(scored) // (2 * max(count, 1))).tolist():
            category, detail, p = scored[index]
            out = folder / file_name(report.model) / f"{file_name(category.pairs[p])}.png"
            _draw_matches(report, category, detail, p, out)
            yield out
            heat = out.with_stem(f"{out.stem}-heat")
            _draw_heat(report, category, detail, p, heat)
            yield heat


def _draw_matches(report: Report, category: Category, detail: Detail, p: int, out: Path) -> None:
    source, target = _pictures(report, category, p)
    seen_K = detail.scored_PK[p]
    draw_matches(
        source.path,
        target.path,
        _pixels(category.source_kps[p, seen_K, :2], source),
        _pixels(detail.predicted_SPK2[report.row, p, seen_K], target),
        _pixels(category.target_kps[p, seen_K, :2], target),
        detail.hit_SPK[report.row, p, seen_K],
        out,
        f"{report.model}, {category.name}, PCK@{report.alphas[0]}",
    )


def _draw_heat(report: Report, category: Category, detail: Detail, p: int, out: Path) -> None:
    """The mean of the towers' cosines, as the score goes by, of the first scored keypoint."""
    source, target = _pictures(report, category, p)
    point_2 = category.source_kps[p, np.flatnonzero(detail.scored_PK[p])[0], :2]
    n = report.run.protocol.n
    patch = int(patch_index(point_2, n))
    maps = [
        tower.unit(source, n)[:, patch] @ tower.unit(target, n)[:, :-1] for tower in report.towers
    ]
    draw_heat_map(
        source.path,
        target.path,
        _pixels(point_2[None], source)[0],
        (sum(maps) / len(maps)).reshape(n, n).numpy(),
        out,
        f"{report.model}, {category.name}: cosine to one keypoint",
        FRAMES.get(report.towers[0].origin, FRAMES["tower"]),
    )


def _pictures(report: Report, category: Category, p: int) -> tuple[Picture, Picture]:
    pictures = report.run.protocol.pairs.pictures
    return pictures[category.source[p]], pictures[category.target[p]]


def _pixels(xy_K2: np.ndarray, picture: Picture) -> np.ndarray:
    return from_frame(xy_K2, picture.width, picture.height)


def file_name(text: str) -> str:
    """A model's or pair's name as part of a path."""
    return shortened(re.sub(r"[^\w.+@-]+", "-", text))
