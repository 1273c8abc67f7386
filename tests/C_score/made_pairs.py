"""Small sets of pairs made by hand or at random, and features for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from C_score.datasets.frame import to_frame
from C_score.datasets.pairs import Category, PairSet, Picture
from C_score.sources import Features, FileFeatures


@dataclass(frozen=True)
class MadeFeatures(Features):
    """Features in memory: picture name -> [C, n, n]."""

    maps: dict

    @property
    def place(self):
        return f"made {self.name}"

    def where(self, picture):
        return f"made {picture.name}"

    def missing(self, pictures):
        return [picture for picture in pictures if picture.name not in self.maps]

    def flipped(self):
        return self

    def raw(self, picture):
        return self.maps[picture.name]


def tower(maps, name="made"):
    """Features that hold `maps`, a list with a [C, n, n] for every picture."""
    dim, n, _ = maps[0].shape
    return MadeFeatures(name, name, n, dim, "", "external", {str(i): m for i, m in enumerate(maps)})


def random_maps(count, dim, n, seed, kinds=3):
    """Maps whose cells are noisy copies of a few vectors, so that cosines are high and low."""
    drawn = torch.Generator().manual_seed(seed)
    vectors = torch.randn(kinds, dim, generator=drawn)
    which = torch.randint(kinds, (count, n * n), generator=drawn)
    noise = torch.randn(count, n * n, dim, generator=drawn)
    return list((vectors[which] + 0.5 * noise).mT.unflatten(2, (n, n)))


def category(source_kps, target_kps, source, target, threshold, groups=(), name="thing"):
    """A category whose keypoint ids are the columns."""
    count, columns = np.shape(source_kps)[:2]
    return Category(
        name=name,
        pairs=tuple(f"{name}-{p}" for p in range(count)),
        source=np.asarray(source, np.int64),
        target=np.asarray(target, np.int64),
        slots=tuple(range(columns)),
        source_kps=np.asarray(source_kps, np.float32),
        target_kps=np.asarray(target_kps, np.float32),
        threshold_px=np.asarray(threshold, np.float64),
        groups=groups,
    )


def pair_set(categories, pictures, **more):
    """A set of `pictures` square pictures called 0, 1, ..."""
    sizes = [(100, 100)] * pictures if isinstance(pictures, int) else pictures
    shown = tuple(Picture(Path(f"{i}.jpg"), str(i), *size) for i, size in enumerate(sizes))
    return PairSet("made", "test", shown, tuple(categories), **more)


def random_set(seed, pairs=12, pictures=5, columns=6, groups=((0, 1), (2, 3, 4))):
    """Pictures of odd shapes, with points that some do not show; one pair shares none."""
    drawn = np.random.default_rng(seed)
    sizes = [tuple(map(int, drawn.integers(40, 200, 2))) for _ in range(pictures)]
    seen = drawn.random((pictures, columns)) < 0.7
    inside = drawn.random((pictures, columns, 2)) * np.array(sizes)[:, None]
    kps = np.concatenate([inside, seen[..., None]], -1)
    framed = np.stack([to_frame(one, *size) for one, size in zip(kps, sizes, strict=True)])
    source, target = drawn.integers(pictures, size=(2, pairs))
    source_kps, target_kps = framed[source], framed[target]
    source_kps[-1, ::2] = target_kps[-1, 1::2] = 0
    made = category(
        source_kps, target_kps, source, target, drawn.uniform(200, 800, pairs), groups=groups
    )
    return pair_set([made], sizes)


def save_maps(root, name, pairs, maps):
    """Writes `<picture>_<name>.pt` files, [1, C, n, n] each."""
    for picture, one in zip(pairs.pictures, maps, strict=True):
        path = root / f"{picture.name}_{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(one[None].clone(), path)
    dim, n, _ = maps[0].shape
    return FileFeatures(name, name, n, dim, "", "external", root)
