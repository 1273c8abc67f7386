"""Views of a photograph: homographies that show a part of it, and nothing beyond its edge.

Coordinates in this file have (0, 0) at the outer corner of the upper left pixel, so that a size is
also a coordinate; `Scene.points` and annotations have it at that pixel's centre, 0.5 less.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from C_score.warps_scenes import Scene

LONGEST_PX = 480
SHAPES = ((480, 360), (360, 480), (480, 480), (480, 288), (320, 480))
"""(width, height) of warped images before a small photograph limits them."""
MAGNIFY = 1.5
"""A detail is shown at most this many times as large as in the photograph."""
MARGIN_PX = 6
"""A point that lies nearer to the edge of an image is not visible in it."""
DRAWS = 60
"""Warps drawn per image; the first that shows half of the points is taken, else the best."""


@dataclass(frozen=True)
class Recipe:
    """How strongly one image is warped; each image draws its own values within."""

    name: str
    show: tuple[float, float]
    """Side of the part that is shown, fraction of the largest that fits."""
    tilt: float = 0.0
    """Each corner of that part moves by at most this fraction of its half sides."""
    turn: tuple[float, float] = (0.0, 0.0)
    """Rotation either way, degrees."""
    picture: int = 0
    """Of a stereo pair; 1 is the right one."""


RECIPES = (
    Recipe("crop", show=(0.6, 0.75)),
    Recipe("mild", show=(0.8, 0.95), tilt=0.15, turn=(5, 15)),
    Recipe("medium", show=(0.75, 0.9), tilt=0.3, turn=(15, 30), picture=1),
    Recipe("strong1", show=(0.7, 0.85), tilt=0.45, turn=(30, 50)),
    Recipe("strong2", show=(0.7, 0.85), tilt=0.45, turn=(30, 50), picture=1),
)


@dataclass(frozen=True)
class View:
    """One image of the set."""

    name: str
    image: Image.Image
    points: np.ndarray
    """float64 [K, 2], pixel centres at integers; also those that fall outside."""
    visible: np.ndarray
    """bool [K]: inside of the image by MARGIN_PX."""
    severity: int
    """0 none or zoomed, 1 turned and tilted, 2 strongly so."""


def views(scene: Scene, seed: int) -> list[View]:
    """The photograph itself (both of a stereo pair) and its warps, six images in all."""
    found = [_whole(scene, index) for index in range(len(scene.pictures))]
    recipes = RECIPES if len(found) == 1 else [r for r in RECIPES if r.name != "mild"]
    for recipe in recipes:
        generator = np.random.default_rng([seed, *f"{scene.name}/{recipe.name}".encode()])
        index = recipe.picture % len(scene.pictures)
        drawn = []
        for _ in range(DRAWS):
            size, matrix = _draw(scene.pictures[index].size, recipe, generator)
            points = project(matrix, scene.points[index])
            drawn.append((int(inside(points, size).sum()), size, matrix))
            if 2 * drawn[-1][0] >= len(points):
                break
        _, size, matrix = max(drawn, key=lambda entry: entry[0])
        found.append(_render(scene, index, recipe.name, size, matrix, _severity(recipe)))
    return found


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float64 [K, 2]: `points` (pixel centres at integers) through a homography."""
    moved = np.column_stack([points + 0.5, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:] - 0.5


def inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [K]: inside of an image of `size` (width, height) by MARGIN_PX."""
    return ((points >= MARGIN_PX) & (points <= np.array(size) - 1 - MARGIN_PX)).all(1)


def _whole(scene: Scene, index: int) -> View:
    width, height = scene.pictures[index].size
    scale = min(1.0, LONGEST_PX / max(width, height))
    size = (round(width * scale), round(height * scale))
    matrix = np.diag([size[0] / width, size[1] / height, 1.0])
    name = "photo" if len(scene.pictures) == 1 else ("left", "right")[index]
    return _render(scene, index, name, size, matrix, 0)


def _severity(recipe: Recipe) -> int:
    return int(recipe.turn[1] > 0) + int(recipe.turn[1] > 30)


def _draw(
    whole: tuple[int, int], recipe: Recipe, generator: np.random.Generator
) -> tuple[tuple[int, int], np.ndarray]:
    """A size (width, height) and the homography to it from a part of a picture of size `whole`."""
    shape = np.array(SHAPES[generator.integers(len(SHAPES))])
    half = shape / 2 * (np.array(whole) / shape).min() * generator.uniform(*recipe.show)
    unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    quad = half * (unit + generator.uniform(-recipe.tilt, recipe.tilt, (4, 2)))
    angle = np.deg2rad(generator.uniform(*recipe.turn)) * generator.choice([-1, 1])
    quad = quad @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    extent = np.ptp(quad, 0)
    quad *= min(1.0, *(np.array(whole) / extent))
    room = np.maximum(np.array(whole) - np.ptp(quad, 0), 0)
    quad += generator.uniform(0, 1, 2) * room - quad.min(0)

    sides = np.linalg.norm(quad - np.roll(quad, -1, 0), axis=1)
    limit = MAGNIFY * np.array([max(sides[0], sides[2]), max(sides[1], sides[3])]).max()
    size = np.rint(shape * min(1.0, limit / shape.max())).astype(int)
    return (int(size[0]), int(size[1])), homography(quad, (unit + 1) / 2 * size)


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64 [3, 3], last entry 1: takes the four points `source` [4, 2] to `target`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(rows, values), 1.0).reshape(3, 3)


def _render(
    scene: Scene,
    index: int,
    name: str,
    size: tuple[int, int],
    matrix: np.ndarray,
    severity: int,
) -> View:
    """Drawn at twice the size and halved, so that what shrinks does not alias."""
    back = np.linalg.inv(matrix) @ np.diag([0.5, 0.5, 1.0])
    image = scene.pictures[index].transform(
        (2 * size[0], 2 * size[1]),
        Image.Transform.PERSPECTIVE,
        tuple((back / back[2, 2]).ravel()[:8]),
        Image.Resampling.BICUBIC,
    )
    points = project(matrix, scene.points[index])
    return View(name, image.reduce(2), points, inside(points, size), severity)
