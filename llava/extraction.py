"""`law features`: runs towers over images, into the feature store.

Images are taken in groups of `batch_size`, in order of their paths; a group becomes one shard. A
group that is there is not computed again, and one that is not is computed with the same images
together, so a run that was killed ends with the same bytes. Under torchrun every rank takes its
share of the groups; files with the same bytes in shares of different ranks may be computed twice.
"""

import argparse
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from llava.errors import LawError, UsageError, unknown_name
from llava.features import DTYPES, FeatureStore, Space, image_key, mirrored_key
from llava.files import ensure_writable, write_json
from llava.launch import launch
from llava.log import get_logger, progress
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.known import check_packages
from llava.model.multimodal_encoder.preprocess import FRAMES, pixels, to_rgb
from llava.model.multimodal_encoder.registry import (
    Representation,
    parse_replacements,
    resolve,
)
from llava.model.multimodal_encoder.spec import SELECTS, TowerSpec

logger = get_logger("features")

T = TypeVar("T")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
GIB = 1 << 30
BATCH_SIZE = 16


@dataclass
class Extraction:
    """What one tower's run over the images did."""

    space: Space
    keys: dict[Path, str] = field(default_factory=dict)
    """Image -> its key in the space, for the images of this process's share."""
    computed: int = 0
    reused: int = 0
    bad: dict[Path, str] = field(default_factory=dict)
    """Images that are left out, and why: they do not decode, or their features are not finite."""


@dataclass
class _Group:
    """Some images on their way into a shard; `pixels` is None where nothing is to compute."""

    keys: dict[Path, str]
    missing: list[str]
    pixels: torch.Tensor | None
    bad: dict[Path, str]


def extract(
    representation: Representation,
    images: Sequence[Path],
    store: FeatureStore,
    *,
    frame: str = "own",
    dtype: str = "float32",
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    skip_bad: bool = False,
    mirrored: bool = False,
) -> list[Extraction]:
    """Fills the store with every part's features of `images`; one Extraction per part.

    `mirrored` takes the images turned left to right, under their own keys (`mirrored_key`).
    Images that do not decode, or whose features are not finite, are left out; unless `skip_bad`, a
    LawError names them once all the others are done.
    """
    if batch_size < 1:
        raise UsageError(f"batch size: expected 1 or more, got {batch_size}")
    images = sorted(set(images))
    spaces = [store.space(spec, frame, dtype) for spec in representation.parts]
    _check_room(spaces, images, store)
    done = [
        _extract_one(spec, space, images, device, batch_size, workers, mirrored)
        for spec, space in zip(representation.parts, spaces, strict=True)
    ]
    if not skip_bad:
        refuse_bad(done)
    return done


def refuse_bad(done: Sequence[Extraction]) -> None:
    """Raises LawError naming the first image that was left out, if any was."""
    bad = {path: why for one in done for path, why in one.bad.items()}
    if bad:
        path, why = next(iter(bad.items()))
        raise LawError(
            f"{len(bad)} images are left out, the first is {path}: {why}; all others are done. "
            "Mend or remove them, or go on without them by --skip-bad"
        )


def _extract_one(
    spec: TowerSpec,
    space: Space,
    images: list[Path],
    device: str,
    batch_size: int,
    workers: int,
    mirrored: bool,
) -> Extraction:
    """One tower over this process's share of the groups."""
    here = launch()
    groups = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    share = groups[here.rank :: here.world]
    result = Extraction(space)
    tower = None
    with ThreadPoolExecutor(max(1, workers)) as pool:
        load = functools.partial(_load, spec=spec, space=space, mirrored=mirrored)
        loaded = read_ahead(pool, share, load, max(1, workers))
        what = f"{spec.id}@{spec.size}" + (", mirrored" if mirrored else "")
        for group in progress(loaded, what, total=len(share)):
            missing = [key for key in group.missing if not space.sound(key)]
            if missing:
                if tower is None:  # weights are read once something is missing, not before
                    tower = build_tower(spec, space.frame, DTYPES[space.dtype], device)
                missing = _compute(tower, space, group, missing)
            result.bad |= group.bad
            result.keys |= group.keys
            result.computed += len(missing)
            result.reused += len(group.keys) - len(missing)
    for path, why in result.bad.items():
        logger.warning("%s: %s; left out", path, why)
    return result


def _compute(tower: VisionTower, space: Space, group: _Group, missing: list[str]) -> list[str]:
    """Writes the missing images of a group; those with features that are not finite become bad.

    Returns the keys that were written.
    """
    # in the stored dtype, which may not hold what the tower's own does
    tokens = tower(group.pixels).to(DTYPES[space.dtype])
    found = dict(zip(group.keys.values(), tokens, strict=True))
    broken = {key for key in missing if not torch.isfinite(found[key]).all()}
    for path, key in list(group.keys.items()):
        if key in broken:
            group.bad[path] = space.not_finite
            del group.keys[path]
    good = [key for key in missing if key not in broken]
    if good:
        space.write({key: found[key] for key in good})
    return good


def read_ahead(
    pool: ThreadPoolExecutor,
    share: Sequence[list[Path]],
    load: Callable[[list[Path]], T],
    ahead: int,
) -> Iterator[T]:
    """What `load` makes of each group of files, in order, the next `ahead` of them meanwhile."""
    waiting = [pool.submit(load, paths) for paths in share[:ahead]]
    for following in [*share[ahead:], *[None] * len(waiting)]:
        group = waiting.pop(0).result()
        if following is not None:
            waiting.append(pool.submit(load, following))
        yield group


def _load(paths: list[Path], spec: TowerSpec, space: Space, mirrored: bool) -> _Group:
    """Reads each file once: for its key and, where the group is not all there, for its pixels.

    What is there is read too, so that damage is found and made good.
    """
    files, bad = {}, {}
    for path in paths:
        try:
            files[path] = path.read_bytes()
        except OSError as error:
            bad[path] = f"cannot be read: {error.strerror or error}"
    keys = {path: image_key(data) for path, data in files.items()}
    if mirrored:
        keys = {path: mirrored_key(key) for path, key in keys.items()}
    missing = space.verify(keys.values())
    if not missing:
        return _Group(keys, [], None, bad)
    seen = {}
    for path, data in files.items():
        try:
            image = decode(data)
            seen[path] = pixels([ImageOps.mirror(image) if mirrored else image], spec, space.frame)
        except LawError as error:
            bad[path] = str(error)
    keys = {path: keys[path] for path in seen}
    missing = [key for key in missing if key in keys.values()]
    return _Group(keys, missing, torch.cat(list(seen.values())) if seen else None, bad)


def decode(data: bytes) -> Image.Image:
    """The RGB image in a file's bytes; LawError for what does not decode wholly."""
    # importing lmms-eval switches this on for the process: what is missing would be grey
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except LawError:
        raise
    except Image.DecompressionBombError as error:
        raise LawError(f"is larger than PIL decodes: {error}") from None
    except UnidentifiedImageError:
        raise LawError("does not decode: no image format that PIL knows") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise almost anything
        raise LawError(f"does not decode: {error}") from None


def _check_room(spaces: list[Space], images: list[Path], store: FeatureStore) -> None:
    """Says how much is to be written; LawError where the disk has less."""
    needed = sum(space.bytes_per_image for space in spaces) * len(images)
    existing = next(p for p in (store.root, *store.root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    logger.info(
        "%d images x %d towers: at most %.2f GiB to write, %.0f GiB free in %s",
        len(images),
        len(spaces),
        needed / GIB,
        free / GIB,
        existing,
    )
    if needed > free:
        raise LawError(
            f"{store.root}: {needed / GIB:.1f} GiB are needed and {free / GIB:.1f} GiB free; take "
            "--dtype float16, or another disk with --out"
        )


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files in folders (searched whole, links followed) and among files, sorted.

    Raises LawError where there is none.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found |= set(_inside(path))
        elif path.is_file():
            found.add(path)
        else:
            raise LawError(f"{path}: no such file or folder (seen from {Path.cwd()})")
    if not found:
        raise LawError(
            f"{', '.join(map(str, paths))}: no image there; known suffixes: "
            + ", ".join(sorted(SUFFIXES))
        )
    return sorted(found)


def _inside(folder: Path) -> Iterator[Path]:
    """Every image file below a folder; a link back up is followed once."""
    visited = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        folders[:] = [f for f in folders if os.path.realpath(Path(root, f)) not in visited]
        yield from (Path(root, name) for name in files if Path(name).suffix.lower() in SUFFIXES)


def usable_device(name: str) -> str:
    """`name`, or without one this process's GPU, else the CPU; UsageError where it cannot be used.

    An empty tensor is made on it, so that a wrong name is found before any work.
    """
    if not name and torch.cuda.is_available():
        name = f"cuda:{launch().local % torch.cuda.device_count()}"
    name = name or "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {name}: {reason}; `law doctor` shows what is there") from None
    return name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of how towers are run; the model and the images are the caller's."""
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images at once")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    parser.add_argument("--device", default="", help="cpu, cuda:0, ...; default: a GPU if any")
    parser.add_argument(
        "--dtype", default="float32", metavar="{float32,float16,bfloat16}", help="of the features"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out what does not decode")
    parser.add_argument(
        "--tower-alias",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="read a tower's weights from another folder or hub id",
    )


def run_options(arguments: argparse.Namespace) -> dict:
    """Keyword arguments of `extract` out of `add_arguments`' flags."""
    if arguments.dtype not in DTYPES:
        raise UsageError(unknown_name("dtype", arguments.dtype, DTYPES))
    return {
        "dtype": arguments.dtype,
        "device": usable_device(arguments.device),
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "skip_bad": arguments.skip_bad,
    }


def main(argv: list[str]) -> None:
    """Extracts features and prints where they are."""
    parser = argparse.ArgumentParser(
        prog="law features", description="Run towers over images, into a feature store."
    )
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="PATH")
    parser.add_argument(
        "--model", action="append", required=True, metavar="NAME", help="may be given again"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="STORE")
    parser.add_argument("--frame", default="own", metavar="{" + ",".join(FRAMES) + "}")
    parser.add_argument("--select", choices=SELECTS, help="tokens; default: the tower's own")
    parser.add_argument("--layer", type=int, help="hidden state; default: the tower's own")
    parser.add_argument(
        "--mirrored", action="store_true", help="of the images turned left to right, beside the own"
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="go on without towers whose packages lack"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write where the features are, and how many"
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.json:
        ensure_writable(arguments.json)
    replace = parse_replacements(arguments.tower_alias)
    representations = [
        resolve(name, select=arguments.select, layer=arguments.layer, replace=replace)
        for name in arguments.model
    ]
    if arguments.skip_missing:
        representations = [found for found in representations if _has_packages(found)]
        if not representations:
            raise LawError("none of the towers can be run; what each lacks stands above")
    if arguments.layer is not None:
        _check_layers(representations)
    images = find_images(arguments.images)
    store = FeatureStore(arguments.out)
    options = {"frame": arguments.frame, **run_options(arguments), "skip_bad": True}
    done = []
    for representation in representations:
        for mirrored in (False, True) if arguments.mirrored else (False,):
            done += extract(representation, images, store, mirrored=mirrored, **options)
    report(done)
    if not arguments.skip_bad:
        refuse_bad(done)
    if arguments.json and launch().rank == 0:
        write_json(arguments.json, told(done))


def _check_layers(representations: Sequence[Representation]) -> None:
    """Raises UsageError where --layer would choose nothing."""
    for found in representations:
        if all(spec.t is not None for spec in found.parts):
            raise UsageError(
                f"--layer: {found.name} has blocks instead; say which as {found.name}:up_ft_index=N"
            )


def _has_packages(representation: Representation) -> bool:
    """Whether all that its towers need is installed; says what is not."""
    try:
        for spec in representation.parts:
            check_packages(spec)
    except LawError as error:
        logger.warning("going on without %s: %s", representation.name, error)
        return False
    return True


def told(done: Sequence[Extraction]) -> dict:
    """The folder of every space, and how many images of this process's share it holds."""
    folders = list(dict.fromkeys(str(one.space.folder) for one in done))
    return {"folders": folders, "images": sum(len(one.keys) for one in done)}


def report(done: Sequence[Extraction]) -> None:
    """Prints one line per tower: what was computed, what was there, where it is."""
    for one in done:
        left_out = f", {len(one.bad)} left out" if one.bad else ""
        print(f"{one.space.folder}: {one.computed} computed, {one.reused} there{left_out}")
