"""How alike towers find the two images of a pair: cosine and rank correlation of their features.

Both are of pooled features of one image with those of the other, so no text is needed and any tower
can be asked. The paper's first version measured CLIP so on What'sUp (cosines above .99), and MMVP
was mined so: alike to CLIP (above .95), unlike to DINOv2 (below .6).

Each tower runs once over the images, however many combinations it is part of. A combination's
features are its towers' side by side, so its dot products are sums of theirs.
Letters in shapes: P pairs, B images, N tokens, C channels of a token, F numbers that are compared.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata

from llava.errors import LawError, UsageError, unknown_name
from llava.eval.pairs.items import Benchmark
from llava.eval.pairs.pictures import in_batches
from llava.extraction import extract
from llava.features import DTYPES, FeatureStore
from llava.log import get_logger
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.dual import build_dual, has_text
from llava.model.multimodal_encoder.registry import (
    Representation,
    parts_of,
    replacements_in,
    resolve,
    spec_of,
)
from llava.model.multimodal_encoder.spec import TowerSpec

logger = get_logger("pairs")

POOLS = {
    "mean": "the mean of all patch tokens",
    "cls": "the class token",
    "flat": "all patch tokens, end to end",
    "own": "the embedding that a CLIP or SigLIP compares with texts",
}


class _Lack(NamedTuple):
    """What a tower must have for a pool, and what is said of one that has not."""

    has: Callable[[TowerSpec], bool]
    what: str


_LACKS = {
    "cls": _Lack(lambda spec: spec.class_token, "no class token"),
    "own": _Lack(has_text, "no embedding of its own that texts are compared with"),
}


@dataclass(frozen=True)
class Way:
    """How features are made."""

    pool: str = "mean"
    """One of POOLS."""
    frame: str = "own"
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 16
    workers: int = 2
    store: Path | None = None
    """A feature store, read and added to; without one, nothing is kept."""

    def __post_init__(self):
        if self.pool not in POOLS:
            raise UsageError(f"--pool: {unknown_name('pool', self.pool, POOLS)}")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype: {unknown_name('dtype', self.dtype, DTYPES)}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: expected 1 or more")
        if self.store and self.pool == "own":
            raise UsageError("--features holds tokens, and --pool own takes none; leave it out")


@dataclass(frozen=True)
class Pair:
    """Two images that differ in one respect."""

    item: str
    axis: str
    images: tuple[Path, Path]


@dataclass
class Alike:
    """What one tower, or a combination, finds of every pair."""

    dots_P: np.ndarray
    """float64: dot products of the two images' features."""
    squares_P2: np.ndarray
    """float64 [P, 2]: squared lengths of each image's."""
    ranks_P: np.ndarray | None
    """float64: Spearman's rank correlation of the two; None for a combination's flat features."""
    vectors: dict[Path, np.ndarray] = field(default_factory=dict, repr=False)
    """Features [F] of every image, where a combination takes them."""

    def cosines(self) -> np.ndarray:
        """float64 [P], at most 1."""
        return np.clip(self.dots_P / np.sqrt(self.squares_P2.prod(1)), -1.0, 1.0)


def pairs_of(benchmark: Benchmark) -> list[Pair]:
    """The pairs of a benchmark; the axis of one whose images have different ones is empty."""
    return [
        Pair(
            item.id,
            item.axis(one) if item.axis(one) == item.axis(other) else "",
            (item.images[one], item.images[other]),
        )
        for item in benchmark.items
        for one, other in item.pairs
    ]


def representation_for(
    name: str, pool: str, replace: dict[str, str] | None = None
) -> Representation:
    """The towers that a name stands for, each giving the tokens that `pool` takes.

    Raises UsageError naming the towers that have no such tokens.
    """
    replace = replacements_in(name, replace or {})
    lack = _LACKS.get(pool)
    parts = [spec_of(known, replace) for known in parts_of(name, replace)] if lack else []
    without = [part.id for part in parts if not lack.has(part)]
    if without:
        raise UsageError(
            f"--pool {pool}: {' and '.join(without)} has {lack.what}; take --pool mean"
        )
    return resolve(name, select="cls" if pool == "cls" else "patch", replace=replace)


def measure(
    representations: Sequence[Representation], pairs: Sequence[Pair], way: Way
) -> list[Alike]:
    """What each representation finds of the pairs; every tower runs once over their images.

    Raises LawError for images that do not decode, and for features that have no direction.
    """
    joined = {
        part.hash() for found in representations if len(found.parts) > 1 for part in found.parts
    }
    towers = {part.hash(): part for found in representations for part in found.parts}
    measured = {
        key: _measure_one(spec, pairs, way, key in joined and way.pool != "flat")
        for key, spec in towers.items()
    }
    return [
        _joined([measured[part.hash()] for part in found.parts], pairs) for found in representations
    ]


def rank_correlation(one_F: np.ndarray, other_F: np.ndarray) -> float:
    """Spearman's: the correlation of ranks, equal values sharing their mean rank; NaN for F = 1."""
    ranks_2F = np.stack([rankdata(one_F), rankdata(other_F)])
    ranks_2F -= ranks_2F.mean(1, keepdims=True)
    lengths = np.linalg.norm(ranks_2F, axis=1)
    with np.errstate(invalid="ignore"):
        return float(ranks_2F[0] @ ranks_2F[1] / lengths.prod())


def _measure_one(spec: TowerSpec, pairs: Sequence[Pair], way: Way, keep: bool) -> Alike:
    """One tower's; features are let go once all of an image's pairs are measured, unless kept."""
    found = Alike(np.empty(len(pairs)), np.empty((len(pairs), 2)), np.empty(len(pairs)))
    waiting: dict[Path, list[int]] = {}
    for place, pair in enumerate(pairs):
        for path in dict.fromkeys(pair.images):
            waiting.setdefault(path, []).append(place)
    left = Counter({path: len(places) for path, places in waiting.items()})
    held: dict[Path, np.ndarray] = {}
    for path, vector_F in _features(spec, list(waiting), way):
        _check_direction(vector_F, path, spec)
        held[path] = vector_F
        for place in waiting[path]:
            images = pairs[place].images
            if all(image in held for image in images):
                _fill(found, place, *(held[image] for image in images))
                left.subtract(dict.fromkeys(images, 1))
        if keep:
            found.vectors[path] = vector_F
        for gone in [image for image in held if not left[image]]:
            del held[gone]
    return found


def _fill(found: Alike, place: int, one_F: np.ndarray, other_F: np.ndarray) -> None:
    one_F, other_F = one_F.astype(np.float64), other_F.astype(np.float64)
    found.dots_P[place] = one_F @ other_F
    found.squares_P2[place] = one_F @ one_F, other_F @ other_F
    found.ranks_P[place] = rank_correlation(one_F, other_F)


def _joined(parts: Sequence[Alike], pairs: Sequence[Pair]) -> Alike:
    """Of features side by side."""
    if len(parts) == 1:
        return parts[0]
    ranks_P = None
    if all(part.vectors for part in parts):
        ranks_P = np.array(
            [
                rank_correlation(
                    *(
                        np.concatenate([part.vectors[path] for part in parts])
                        for path in pair.images
                    )
                )
                for pair in pairs
            ]
        )
    return Alike(
        sum(part.dots_P for part in parts), sum(part.squares_P2 for part in parts), ranks_P
    )


def _features(
    spec: TowerSpec, paths: Sequence[Path], way: Way
) -> Iterator[tuple[Path, np.ndarray]]:
    """Every image with its pooled features [F], float32 or better."""
    if way.store:
        yield from _stored(spec, paths, way)
        return
    dtype = DTYPES[way.dtype]
    if way.pool == "own":
        dual = build_dual(spec, way.frame, dtype, way.device)
        preprocess, run = dual.preprocess, dual.images
    else:
        tower = build_tower(spec, way.frame, dtype, way.device)
        preprocess, run = tower.preprocess, lambda pixels: _pooled(tower(pixels), way.pool)
    what = f"{spec.id}@{spec.size}"
    for group, pixels in in_batches(paths, preprocess, what, way.batch_size, way.workers):
        yield from zip(group, run(pixels).cpu().numpy(), strict=True)


def _stored(spec: TowerSpec, paths: Sequence[Path], way: Way) -> Iterator[tuple[Path, np.ndarray]]:
    """The same, with tokens out of a feature store, where they are put first."""
    (done,) = extract(
        Representation(spec.id, (spec,)),
        paths,
        FeatureStore(way.store),
        frame=way.frame,
        dtype=way.dtype,
        device=way.device,
        batch_size=way.batch_size,
        workers=way.workers,
    )
    for path in paths:
        tokens_NC = done.space.read(done.keys[path])
        yield path, _pooled(tokens_NC[None], way.pool)[0].numpy()


def _pooled(tokens_BNC: torch.Tensor, pool: str) -> torch.Tensor:
    """Features [B, F]; a class token is alone already."""
    if pool == "mean":
        return tokens_BNC.double().mean(1)
    return tokens_BNC.float().flatten(1)


def _check_direction(vector_F: np.ndarray, path: Path, spec: TowerSpec) -> None:
    if not (np.isfinite(vector_F).all() and vector_F.any()):
        raise LawError(
            f"{path}: {spec.id} gives features that are not finite or all zero, which have no "
            "direction; take --dtype float32, or check its weights"
        )
