"""The work of `law a-score dump`: a seeded draw of images once per benchmark, then every run on it.

Everything that would not fit together is refused before a tower is loaded or a file written. Files
of tokens depend neither on where a run was interrupted nor, one image at a time, on the number of
processes: each takes its share of the images, computes what is missing of it, and writes whole
files, so no process waits for another. images.json and manifests are the same from each of them.
"""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from A_score.dumped import (
    IMAGES,
    MANIFEST,
    DrawnImages,
    Manifest,
    is_sound,
    read_tokens,
    write_tokens,
)
from A_score.folders import SUFFIXES
from A_score.tokens import load_tensor
from llava.data.stored import StoredFeatures
from llava.errors import LawError, UsageError
from llava.eval.image_sources import Drawn, ImageSource, draw
from llava.features import DTYPES, library_versions
from llava.files import ensure_writable, folder_name, write_bytes
from llava.launch import launch
from llava.log import get_logger, progress
from llava.model.comparison import dtype_difference
from llava.model.projection import Projection
from llava.provenance import commit

logger = get_logger("a-score")

GIB = 1 << 30
NO_TASK = (
    "images of a task are stored by evaluating law_llava on it with features=STORE (`law features` "
    "stores files, by their bytes); or leave --features out"
)
"""What to do where a store lacks an image of a task."""


@dataclass(frozen=True)
class Options:
    """How tokens are made."""

    dtype: str | None = None
    device: str = "cpu"
    batch_size: int = 1
    features: Path | None = None
    """A feature store that is read in place of running towers."""
    tower_replacements: Mapping[str, str] | None = None

    def projection(self, run: str) -> Projection:
        """Tower and projector of a run, the tower not loaded yet."""
        return Projection(run, self.dtype, self.device, self.tower_replacements)

    def stored(self, projection: Projection) -> StoredFeatures | None:
        """The towers' tokens in the store; None without one.

        Raises UsageError where the run's towers are not what a store holds.
        """
        if self.features is None:
            return None
        where = f"--features {self.features}: {projection.path}"
        if projection.tokens is None:
            raise UsageError(f"{where} looks at tiles (anyres), which no store holds; leave it out")
        if projection.tower_digest:
            raise UsageError(
                f"{where} has tower weights of its own, and a store's are those of the tower's "
                "source; leave it out"
            )
        frame = projection.model.get_vision_tower().frame
        found = StoredFeatures(
            self.features, projection.representation, frame, runs_in=projection.dtype
        )
        parts, config = projection.representation.parts, vars(projection.model.config)
        if said := dtype_difference(config, parts, found.dtype):
            logger.warning("%s %s", where, said)
        return found


Group = tuple["Place", Sequence[Drawn]]
"""Images that go through tower and projector at once, and where their tokens go."""


@dataclass(frozen=True)
class Place:
    """Where one representation's tokens of one benchmark go."""

    folder: Path
    manifest: Manifest
    source: ImageSource
    images: Sequence[Drawn]

    def file(self, drawn: Drawn) -> Path:
        """The file of an image."""
        return self.folder / f"{drawn.id}.safetensors"

    def number(self, drawn: Drawn) -> int:
        """An image's place in the draw, from 1."""
        return self._numbers[drawn.id]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {drawn.id: number for number, drawn in enumerate(self.images, 1)}

    def lacks(self, drawn: Drawn) -> bool:
        """Whether an image's tokens are not there, or are damaged."""
        return not is_sound(self.file(drawn), self.manifest, drawn.content)

    @property
    def bytes_to_write(self) -> int:
        """At most; 0 where that depends on the images' sizes."""
        tokens, width = self.manifest.shape
        each = (tokens or 0) * width * DTYPES[self.manifest.tokens["dtype"]].itemsize
        return each * sum(not self.file(drawn).exists() for drawn in self.images)

    @property
    def known(self) -> Manifest | None:
        """The manifest that is there; one without any tokens binds nothing and counts as none."""
        return Manifest.read(self.folder) if self._holds_tokens else None

    @property
    def _holds_tokens(self) -> bool:
        return any(any(self.folder.glob(f"*{suffix}")) for suffix in SUFFIXES)

    def check(self) -> None:
        """Raises UsageError where the folder holds other tokens; says what else has changed."""
        known = self.known
        remedy = "give this run another name with --as NAME, or dump it into another --out"
        if known is None:
            if self._holds_tokens:
                raise UsageError(f"{self.folder} holds tokens and no {MANIFEST}; {remedy}")
        elif said := known.difference(self.manifest):
            raise UsageError(
                f"{self.folder} holds tokens of {known.run}, whose {said} ({self.manifest.run}); "
                f"{remedy}"
            )
        elif known.libraries != self.manifest.libraries:
            logger.warning(
                "%s was begun with %s, now it is %s; tokens may differ in the last digits",
                self.folder,
                _in_words(known.libraries),
                _in_words(self.manifest.libraries),
            )


def _in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def describe(runs: Sequence[str], names: Sequence[str], options: Options) -> list[Manifest]:
    """The manifest of every run, called as `names` say; projectors are read, towers are not.

    Raises UsageError for runs that would go into one folder.
    """
    if names and len(names) != len(runs):
        raise UsageError(f"--as: {len(names)} names for {len(runs)} runs; give one for each")
    manifests = [
        _manifest(options, run, name)
        for run, name in zip(runs, names or [""] * len(runs), strict=True)
    ]
    _one_folder_each("--run", [manifest.name for manifest in manifests], "runs", "by --as")
    return manifests


def _one_folder_each(flag: str, names: Sequence[str], what: str, how: str) -> None:
    """UsageError where two names make one folder."""
    called: dict[str, list[str]] = {}
    for name in names:
        called.setdefault(folder_name(name), []).append(name)
    for folder, same in called.items():
        if len(same) > 1:
            named = " and ".join(dict.fromkeys(same))
            raise UsageError(
                f"{flag}: {len(same)} {what} are called {named}, which makes one folder, "
                f"{folder}; give each a name of its own {how}"
            )


def _manifest(options: Options, run: str, name: str) -> Manifest:
    projection = options.projection(run)
    stored = options.stored(projection)
    towers = "run" if stored is None else "+".join(space.dtype for space in stored.spaces)
    return Manifest(
        name=name or projection.representation.name,
        tokens=json.loads(json.dumps(projection.facts() | {"tower_tokens": towers})),
        towers=[part.id for part in projection.representation.parts],
        run=run,
        stage=projection.stage,
        language_model=projection.language_model,
        shape=[projection.tokens, projection.width],
        libraries=library_versions(),
        commit=commit() or "",
    )


def dump(
    manifests: Sequence[Manifest],
    sources: Mapping[str, ImageSource],
    out: Path,
    n: int,
    seed: int,
    options: Options,
    pt: Path | None = None,
) -> None:
    """Writes the tokens of `n` images of every benchmark in `sources`, as far as they lack.

    With `pt` they are there as tensor_<i>.pt too, numbered in the order of the draw.
    """
    _one_folder_each("--benchmark", list(sources), "benchmarks", "(NAME=PATH of --images)")
    for folder in filter(None, (out, pt)):
        ensure_writable(folder / IMAGES)
    draws, places = {}, []
    for benchmark, source in sources.items():
        folder = out / folder_name(benchmark)
        images = draw(source, n, seed)
        draws[folder] = _settled(folder, benchmark, seed, source, images)
        places += [
            Place(folder / folder_name(manifest.name), manifest, source, images)
            for manifest in manifests
        ]
    for place in places:
        place.check()
    for manifest in manifests:
        _check_store(manifest, places, options)
    _check_room(places, out)
    for folder, drawn in draws.items():
        if drawn is not None:
            drawn.write(folder)
    for place in places:
        if place.known is None and Manifest.read(place.folder) != place.manifest:
            place.manifest.write(place.folder)
    here = launch()
    for manifest in manifests:
        share = _groups(manifest, places, options)[here.rank :: here.world]
        _fill(manifest, share, options)
        if pt is not None:
            _export(share, out, pt)


def _settled(
    folder: Path, benchmark: str, seed: int, source: ImageSource, images: Sequence[Drawn]
) -> DrawnImages | None:
    """What images.json is to hold; None where it does. UsageError where it has other images."""
    ids = {drawn.id: drawn.content for drawn in images}
    drawn = DrawnImages(benchmark, seed, source.facts(), ids)
    known = DrawnImages.read(folder)
    if known is None:
        return drawn
    if said := known.difference(drawn):
        raise UsageError(
            f"{folder / IMAGES} {said}; every representation is dumped on the same images: draw as "
            "then, or dump into another --out"
        )
    return drawn if len(ids) > len(known.images) else None


def _check_room(places: Sequence[Place], out: Path) -> None:
    """Says how much is to be written; LawError where the disk has less."""
    needed, free = sum(place.bytes_to_write for place in places), shutil.disk_usage(out).free
    if needed:
        logger.info("%s: %.2f GiB to write, %.0f GiB free", out, needed / GIB, free / GIB)
    if needed > free:
        raise LawError(
            f"{out}: {needed / GIB:.1f} GiB are needed and {free / GIB:.1f} GiB free; take fewer "
            "images with --n, or another disk with --out"
        )


def _groups(manifest: Manifest, places: Sequence[Place], options: Options) -> list[Group]:
    """One run's images of every benchmark, a batch each."""
    size = options.batch_size
    return [
        (place, place.images[start : start + size])
        for place in places
        if place.manifest is manifest
        for start in range(0, len(place.images), size)
    ]


def _fill(manifest: Manifest, share: Sequence[Group], options: Options) -> None:
    """Computes what is lacking of this process's share."""
    lacking = [
        (place, group, missing)
        for place, group in share
        if (missing := [drawn for drawn in group if place.lacks(drawn)])
    ]
    if lacking:
        projection = options.projection(manifest.run)
        if projection.projector_digest != manifest.tokens["projector"]:
            raise LawError(f"{manifest.run}: its projector changed meanwhile; start again")
        stored = options.stored(projection)
        if stored is not None:
            _check_stored(stored, [(place, group) for place, group, _ in lacking])
        for place, group, missing in progress(lacking, f"tokens of {manifest.name}"):
            rows = _rows(projection, stored, place.source, group)
            for drawn, tokens_NC in zip(group, rows, strict=True):
                if drawn in missing:
                    _write(place, drawn, tokens_NC)
    here = launch()
    of = f" (process {here.rank} of {here.world})" if here.world > 1 else ""
    for place in {id(place): place for place, _ in share}.values():
        there = sum(len(group) for one, group in share if one is place)
        computed = sum(len(missing) for one, _, missing in lacking if one is place)
        logger.info("%s: %d computed, %d there%s", place.folder, computed, there - computed, of)


def _rows(
    projection: Projection,
    stored: StoredFeatures | None,
    source: ImageSource,
    group: Sequence[Drawn],
) -> list[torch.Tensor]:
    """[tokens, width] of every image; the tower runs unless its tokens are stored."""
    if stored is not None:
        return projection.of_features([stored.of_key(drawn.content) for drawn in group])
    return projection([drawn.picture(source).image for drawn in group])


def _write(place: Place, drawn: Drawn, tokens_NC: torch.Tensor) -> None:
    if not torch.isfinite(tokens_NC).all():
        dtype = place.manifest.tokens["dtype"]
        wider = "" if dtype == "float32" else "; take --dtype float32, into another --out"
        raise LawError(
            f"{place.manifest.run} gives NaN or infinity for image {drawn.name} of "
            f"{place.source.where} in {dtype}{wider}"
        )
    write_tokens(place.file(drawn), tokens_NC, place.manifest, drawn.content)


def _check_store(manifest: Manifest, places: Sequence[Place], options: Options) -> None:
    """Raises LawError where the store lacks an image whose tokens are still to be made."""
    lacking = [
        (place, group)
        for place, group in _groups(manifest, places, options)
        if not all(place.file(drawn).exists() for drawn in group)
    ]
    if options.features is not None and lacking:
        stored = options.stored(options.projection(manifest.run))
        _check_stored(stored, lacking)


def _check_stored(stored: StoredFeatures, groups: Sequence[Group]) -> None:
    """Raises LawError for an image that the store does not have."""
    for place, group in groups:
        for drawn in group:
            if towers := stored.lacking(drawn.content):
                of_task = place.source.kind == "task"
                remedy = NO_TASK if of_task else stored.command()
                raise LawError(
                    f"{stored.root} has no features of image {drawn.name} of {place.source.where} "
                    f"by {', '.join(towers)}; {remedy}"
                )


def _export(share: Sequence[Group], out: Path, pt: Path) -> None:
    """Writes this process's share as tensor_<i>.pt; LawError where others' tokens are there."""
    for place, group in share:
        folder = pt / place.folder.relative_to(out)
        for drawn in group:
            path = folder / f"tensor_{place.number(drawn)}.pt"
            tokens_NC = read_tokens(place.file(drawn), place.manifest, drawn.content)
            known = _exported(path)
            if known is None:
                data = io.BytesIO()
                torch.save(tokens_NC.clone(), data)
                write_bytes(path, data.getvalue())
            elif known.dtype != tokens_NC.dtype or not torch.equal(known, tokens_NC):
                raise LawError(f"--pt: {path} holds other tokens; take another folder")


def _exported(path: Path) -> torch.Tensor | None:
    """What was exported here; None where nothing was, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        return load_tensor(path)
    except LawError:
        return None
