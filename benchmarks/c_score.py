"""The C score's speed and memory, on synthetic sets in SPair-71k's layout, on one thread.

    python benchmarks/c_score.py            # a category of pairs, and all combinations of 10 towers
    python benchmarks/c_score.py --full     # SPair-71k's size: 12,234 pairs, 10 towers, 1,023 rows

The plain version (tests/C_score/plain_pck.py) works as the reference does: per pair it decodes and
resizes both images, loads both feature files, compares all patches with all, matches every patch.
Both must agree. Times are the best of a few runs, files are in the page cache.
"""

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "C_score"))

# ruff: noqa: E402
import numpy as np
import plain_pck as plain
import torch
from PIL import Image

from C_score.combinations import all_combinations, membership
from C_score.datasets import read_pairs
from C_score.score import score
from C_score.sources import FileFeatures

SLOTS, SEEN = 15, 0.73  # points of an image; both images of a pair then show 8 on average
FULL = {
    **{"aeroplane": 690, "bicycle": 650, "bird": 702, "boat": 702, "bottle": 870, "bus": 644},
    **{"car": 564, "cat": 600, "chair": 646, "cow": 640, "dog": 600, "horse": 600},
    **{"motorbike": 702, "person": 650, "pottedplant": 862, "sheep": 664, "train": 756},
    "tvmonitor": 692,
}
"""Test pairs of SPair-71k by category."""
POOL = 64
"""Feature files that differ; the others are links to them, so that the disk need not hold 12 GB."""


def make_set(root: Path, pairs: dict[str, int], images: int, towers: int, dim: int, n: int) -> None:
    """Writes images (links to one), annotations, and features of `towers` towers 0, 1, ..."""
    drawn = np.random.default_rng(0)
    torch.manual_seed(0)
    pool = [root / "pool" / f"{i}.pt" for i in range(min(POOL, towers * images))]
    kinds = torch.randn(12, dim)
    pool[0].parent.mkdir(parents=True)
    for path in pool:  # noisy copies of a few vectors, as cells of one object are
        cells = kinds[torch.randint(12, (n * n,))] + torch.randn(n * n, dim)
        torch.save(cells.T.reshape(1, dim, n, n).contiguous(), path)
    photo = root / "pool" / "photo.jpg"
    noise = Image.fromarray(drawn.integers(0, 255, (47, 63, 3), np.uint8))
    noise.resize((500, 375), Image.Resampling.BICUBIC).save(photo, quality=90)
    files = itertools.cycle(pool)
    (root / "PairAnnotation" / "test").mkdir(parents=True)
    for category, count in pairs.items():
        for folder in ("JPEGImages", "ImageAnnotation", "features"):
            (root / folder / category).mkdir(parents=True)
        for i in range(images):
            os.link(photo, root / "JPEGImages" / category / f"{i}.jpg")
            points = drawn.uniform((0, 0), (500, 375), (SLOTS, 2)).tolist()
            kps = {str(k): points[k] if drawn.random() < SEEN else None for k in range(SLOTS)}
            write(root / "ImageAnnotation" / category / f"{i}.json", {"kps": kps})
            for tower in range(towers):
                os.link(next(files), root / "features" / category / f"{i}_{tower}.pt")
        every = list(itertools.permutations(range(images), 2))
        for p, at in enumerate(sorted(drawn.permutation(len(every))[:count])):
            source, target = every[at]
            record = {
                "category": category,
                "src_imname": f"{source}.jpg",
                "trg_imname": f"{target}.jpg",
                "src_imsize": [500, 375, 3],
                "trg_imsize": [500, 375, 3],
                "src_bndbox": [50, 50, 450, 350],
                "trg_bndbox": [50, 50, 450, 350],
            }
            stem = f"{p:06d}-{source}-{target}:{category}"
            write(root / "PairAnnotation" / "test" / f"{stem}.json", record)


def write(path: Path, value: dict) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(value))


class Kept(FileFeatures):
    """Features whose unit maps are in memory: scoring without loading."""

    def unit(self, picture, n):
        """From memory."""
        found = UNITS.get((self.name, picture.name))
        if found is None:
            found = UNITS[self.name, picture.name] = super().unit(picture, n)
        return found


UNITS: dict[tuple[str, str], torch.Tensor] = {}


def towers_of(root: Path, count: int, dim: int, n: int, cls: type = FileFeatures) -> list:
    """The features that `make_set` wrote."""
    return [cls(str(t), str(t), n, dim, "", "external", root / "features") for t in range(count)]


def best(work, repeats: int = 3) -> float:
    """Seconds of the quickest run."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def category(dim: int, n: int, sample: int) -> None:
    """One tower over a whole category, beside the plain version on `sample` of its pairs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "SPair-71k"
        make_set(root, {"cat": 650}, 27, 1, dim, n)
        pairs = read_pairs("spair", root)
        (made,) = pairs.categories
        towers = towers_of(root, 1, dim, n)
        ours = best(lambda: score(pairs, towers, [[1]], n))
        (found,) = score(pairs, towers, [[1]], n, detail=True)

        def features(i):
            return torch.load(towers[0].path(pairs.pictures[i]), weights_only=True)

        start, away, hits = time.perf_counter(), 0.0, []
        for p in range(sample):
            pictures = made.source[p], made.target[p]
            plain.open_pair([pairs.pictures[i].path for i in pictures])
            cosines = plain.similarity(*[[features(i)] for i in pictures])
            predicted = plain.predict(cosines, made.source_kps[p, :, :2], 5, "zero", torch.float32)
            mutual = np.flatnonzero(found.detail.scored_PK[p])
            true, limit = made.target_kps[p, :, :2], made.threshold_px[p]
            hits.append(plain.score_pair(predicted, true, mutual, limit, pairs.alphas))
            ours_K2 = found.detail.predicted_SPK2[0, p]
            away = max(away, float(np.linalg.norm(predicted - ours_K2, axis=1)[mutual].max()))
        slow = (time.perf_counter() - start) / sample
        agree = np.array_equal(hits, found.detail.hits_SPA[0, :sample])
    fast = ours / len(made)
    print(
        f"{dim} x {n} x {n}: {len(made)} pairs, {found.all.points / len(made):.1f} keypoints each\n"
        f"  ours   {1 / fast:8.0f} pairs/s ({ours:.3f} s with loading 27 feature files)\n"
        f"  plain  {1 / slow:8.1f} pairs/s ({sample} pairs)\n"
        f"  ratio  {slow / fast:8.0f}; hits agree: {agree}, predictions within {away:.0e} px\n"
    )


def combinations(dim: int, n: int, count: int) -> None:
    """All combinations in one pass, beside a run of our own for each of them.

    The separate runs are measured for two combinations of every size and multiplied by how many of
    that size there are.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "SPair-71k"
        make_set(root, {"cat": 650}, 27, count, dim, n)
        pairs = read_pairs("spair", root)
        subsets = all_combinations(count)
        members = membership(subsets, count)
        print(f"{len(subsets):,} combinations of {count} towers, {dim} x {n} x {n}, 650 pairs")
        for what, cls in (("with loading", FileFeatures), ("in memory", Kept)):
            UNITS.clear()
            towers = towers_of(root, count, dim, n, cls)
            if cls is Kept:
                score(pairs, towers, members[:1], n)  # fills the memory
            together = best(lambda towers=towers: score(pairs, towers, members, n), 2)
            (whole,) = score(pairs, towers, members, n)
            apart, difference = 0.0, 0.0
            for size in range(1, count + 1):
                rows = [i for i, subset in enumerate(subsets) if len(subset) == size]
                seconds = []
                for row in (rows[0], rows[-1]):
                    chosen = [towers[t] for t in subsets[row]]
                    weights = np.full((1, size), 1 / size)
                    seconds.append(best(lambda c=chosen, w=weights: score(pairs, c, w, n), 2))
                    (alone,) = score(pairs, chosen, weights, n)
                    ours, theirs = (one.all.mean("image") for one in (whole, alone))
                    difference = max(difference, float(np.abs(ours[row] - theirs[0]).max()))
                apart += math.comb(count, size) * sum(seconds) / 2
            print(
                f"  {what:12}  one pass {together:6.2f} s, {len(subsets):,} runs {apart:7.1f} s "
                f"(from {2 * count}); ratio {apart / together:.0f}, PCK within {difference:.0e}"
            )
        UNITS.clear()
    print()


def full(dim: int, n: int, count: int) -> None:
    """`law c-score` at SPair-71k's size, for one tower and for all combinations of `count`."""
    images = 30
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "SPair-71k"
        make_set(root, FULL, images, count, dim, n)
        for towers in (1, count):
            models = [word for tower in range(towers) for word in ("--model", str(tower))]
            out = root / "answer.json"
            flags = ["--json", out, "--results", root / "results.csv"]
            flags += ["--all-combinations"] if towers > 1 else []
            start = time.perf_counter()
            command = [sys.executable, "-m", "llava", "c-score", "--data", root, *models, *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            answers = json.loads(out.read_text())
            answers = answers.get("results", [answers])
            print(
                f"{answers[0]['n_pairs']:,} pairs, {answers[0]['n_keypoints']:,} keypoints, "
                f"{images * len(FULL)} images, {towers} towers {dim} x {n} x {n}, "
                f"{len(answers):,} representations: {seconds:.0f} s in all, peak memory "
                f"{peak:.2f} GiB"
            )


def main() -> None:
    """Prints times, ratios and whether the numbers agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain-pairs", type=int, default=60, help="pairs of the plain version")
    parser.add_argument("--full", action="store_true", help="SPair-71k's size instead")
    parser.add_argument("--towers", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.full:
        full(1024, 24, arguments.towers)
        return
    for dim, n in ((1024, 16), (1280, 24)):
        category(dim, n, arguments.plain_pairs)
    for dim, n in ((1024, 16), (1024, 24)):
        combinations(dim, n, arguments.towers)


if __name__ == "__main__":
    main()
