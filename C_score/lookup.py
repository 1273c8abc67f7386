"""From the names on a command line to features: in the feature store, or in files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from C_score.datasets.pairs import PairSet, Picture
from C_score.geo import mutual_points
from C_score.options import (
    FRAMES,
    file_suffix,
    option_of,
    representation,
    shortened,
    sized_name,
    suffix_of,
)
from C_score.sources import (
    FLIPPED,
    Features,
    FileFeatures,
    StoreFeatures,
    load_map,
    write_hint,
)
from llava import catalog
from llava.errors import LawError, UsageError, nearest
from llava.features import FeatureStore, Space, image_key
from llava.log import get_logger
from llava.model.multimodal_encoder.registry import named_in
from llava.model.multimodal_encoder.spec import TowerSpec

logger = get_logger("c-score")


def scored_pictures(pairs: PairSet) -> list[Picture]:
    """The pictures of pairs that can be scored: features of others are not asked for."""
    used = set()
    for category in pairs.categories:
        scored_P = mutual_points(category).any(1)
        used |= set(category.source[scored_P].tolist()) | set(category.target[scored_P].tolist())
    return [pairs.pictures[i] for i in sorted(used)]


def find_towers(
    models: Sequence[str],
    root: Path,
    pictures: Sequence[Picture],
    *,
    protocol: str = "tower",
    dtype: str | None = None,
    flip: bool = False,
    replace: Mapping[str, str] | None = None,
) -> tuple[list[Features], list[tuple[int, ...]]]:
    """(the towers, each once; for every model the indices of its towers).

    A model is looked for in the store at `root` first, whole and then part by part ('+' joins),
    and is read from it where that holds all `pictures`; else from `<image>_<part>.pt` files.
    `replace` maps a tower's name to where its weights were read from.

    Raises UsageError for a name that nothing here goes by, LawError for features that are missing.
    """
    finder = _Finder(root, pictures, protocol, dtype, flip, replace or {})
    towers: dict[str, Features] = {}
    subsets = []
    for model in models:
        parts = finder.parts(model)
        for part in parts:
            if part.place not in towers:
                towers[part.place] = part
                logger.info("%s: reading %d images from %s", part.name, len(pictures), part.place)
        subset = tuple(list(towers).index(part.place) for part in parts)
        if len(set(subset)) < len(subset):
            raise UsageError(f"'{model}' names one tower twice; name each once")
        subsets.append(subset)
    return list(towers.values()), subsets


def stored_names(root: Path, protocol: str, dtype: str | None) -> list[str]:
    """The names of all towers that the store at `root` holds under a feature protocol.

    Raises LawError where it holds none.
    """
    spaces = [
        space
        for space in FeatureStore(root).spaces()
        if space.frame == FRAMES[protocol] and dtype in (None, space.dtype) and len(space)
    ]
    names = list(dict.fromkeys(sized_name(space.spec, protocol) for space in spaces))
    if not names:
        raise LawError(
            f"{root} is no feature store with features under protocol '{protocol}'; "
            f"`law features --frame {FRAMES[protocol]} --out {root} --images DIR --model NAME` "
            f"fills one"
        )
    return names


class _Finder:
    def __init__(self, root, pictures, protocol, dtype, flip, replace):
        self.root, self.pictures, self.protocol = root, pictures, protocol
        self.dtype, self.flip, self.replace = dtype, flip, replace
        if not root.is_dir():
            raise LawError(
                f"{root}: no such folder of features (seen from {Path.cwd()}); "
                f"`python C_score/extract_feature.py` or `law features` fills one, --features "
                f"names another"
            )
        self.store = FeatureStore(root)
        self.spaces = self.store.spaces()
        self.reasons: dict[str, LawError] = {}
        self._keys: dict[str, str] = {}

    def parts(self, model: str) -> list[Features]:
        """The features of a model's towers."""
        if not model.strip():
            raise UsageError("--model is empty; expected a name such as clip or clip+dino")
        if stored := self.stored(model):
            return stored
        pieces = model.split("+")
        if len(pieces) == 1:
            return [self.files(model)]
        joined = self.joined_suffixes(model, len(pieces))
        return [
            part
            for piece, suffix in zip(pieces, joined, strict=True)
            for part in self.stored(piece) or [self.files(piece, suffix)]
        ]

    def joined_suffixes(self, model: str, count: int) -> list[str]:
        """What ends the files of each part where the join was extracted as one: sizes may differ.

        A part that is no known tower has none, nor have the others then.
        """
        try:
            parts = representation(model, self.protocol).parts
        except LawError:
            parts = ()
        if len(parts) != count:
            return [""] * count
        return [file_suffix(spec, self.protocol) for spec in parts]

    def stored(self, name: str) -> list[Features] | None:
        """The parts of `name` out of the store; None where it does not hold all of them."""
        if not self.spaces:
            return None
        try:
            here = named_in(name, self.replace)
            meant = representation(name, self.protocol, here)
            frame, single = FRAMES[self.protocol], len(meant.parts) == 1
            return [
                self.of_space(
                    self.space(spec, frame),
                    name if single else sized_name(spec, self.protocol, here),
                    meant.name if single else sized_name(spec, self.protocol, here),
                )
                for spec in meant.parts
            ]
        except LawError as error:
            self.reasons[name] = error
            return None

    def space(self, spec: TowerSpec, frame: str) -> Space:
        """The space of a spec; of the same tower read from other weights, where there is just one.

        Extraction may have taken weights from a mirror or a folder (--tower-alias), which a score
        need not know; it is said.
        """
        try:
            return self.store.find(spec, frame, self.dtype)
        except LawError:
            others = [
                space
                for space in self.spaces
                if space.frame == frame
                and self.dtype in (None, space.dtype)
                and _without_source(space.spec) == _without_source(spec)
            ]
            if len(others) != 1:
                raise
            source = others[0].spec.weights or others[0].spec.id
            logger.warning("%s: taking the features of its weights in %s", spec.id, source)
            return others[0]

    def of_space(self, space: Space, name: str, representation: str) -> StoreFeatures:
        """The features in a space; LawError where one of the images is not in it."""
        spec = space.spec
        if spec.select != "patch":
            raise LawError(
                f"{space.folder} holds '{spec.select}' tokens; a C score compares places of images "
                "and needs 'patch': run `law features` without --select"
            )
        found = StoreFeatures(
            name=name,
            representation=representation,
            n=spec.grid[0],
            dim=spec.dim,
            spec_hash=spec.hash(),
            origin=self.protocol,
            space=space,
            keys=self.keys(),
        )
        if missing := found.missing(self.pictures):
            raise LawError(
                f"{space.folder} lacks {len(missing)} of {len(self.pictures)} images, the first is "
                f"{missing[0].path}; `law features` goes on where it stopped"
            )
        if self.flip and (missing := found.flipped().missing(self.pictures)):
            raise LawError(
                f"{space.folder} lacks {len(missing)} of {len(self.pictures)} mirrored images, the "
                f"first is {missing[0].path}; `law features --mirrored` adds them"
            )
        return found

    def keys(self) -> dict[str, str]:
        """Picture name -> its key in a store."""
        if not self._keys:
            self._keys |= {picture.name: image_key(picture.path) for picture in self.pictures}
        return self._keys

    def files(self, name: str, joined: str = "") -> FileFeatures:
        """The features in `<image>_<name>.pt` files; the first one tells grid and width.

        Else in those that extraction writes for the name, alone or (`joined`) as a part of a join.
        """
        suffixes = (shortened(name), suffix_of(name, self.protocol), joined)
        for suffix in dict.fromkeys(filter(None, suffixes)):
            found = FileFeatures(
                name=suffix,
                representation=file_representation(name),
                n=0,
                dim=0,
                spec_hash="",
                origin="external",
                root=self.root,
            )
            missing = found.missing(self.pictures)
            if len(missing) < len(self.pictures):
                break
        else:
            raise self.unknown(name)
        needed = [found.flipped(), found] if self.flip else [found]
        for features in needed:
            if missing := features.missing(self.pictures):
                raise LawError(
                    f"{len(missing)} of {len(self.pictures)} feature files of '{features.name}' "
                    f"are missing, the first is {features.path(missing[0])}"
                    + self.why(name)
                    + write_hint(name if features is found else features.name)
                )
        first = found.path(self.pictures[0])
        dim, n, _ = load_map(first, name).shape
        return FileFeatures(**{**vars(found), "n": n, "dim": dim})

    def unknown(self, name: str) -> UsageError:
        """What to say where no file at all goes by `name`."""
        known = self.suffixes()
        near = nearest(name, known)
        if near:
            files = f"did you mean '{near}'?"
        else:
            files = "there are files of: " + (", ".join(known[:12]) or "none")
        return UsageError(
            f"no features '{name}': no file <image>_{name}.pt below {self.root}; {files}"
            + self.why(name)
            + write_hint(name)
        )

    def why(self, name: str) -> str:
        """Why the store was not read, for messages."""
        return f"; the store: {self.reasons[name]}" if name in self.reasons else ""

    def suffixes(self) -> list[str]:
        """What stands behind the first picture's name in the files beside it."""
        base = self.root / self.pictures[0].name
        names = [path.name.removesuffix(".pt") for path in base.parent.glob("*.pt")]
        found = {name[len(base.name) + 1 :] for name in names if name.startswith(f"{base.name}_")}
        return sorted(suffix for suffix in found if suffix and not suffix.endswith(FLIPPED))


def _without_source(spec: TowerSpec) -> TowerSpec:
    """The spec as far as it does not say where the weights came from."""
    return dataclasses.replace(spec, weights="", digest="", gated=False)


def file_representation(name: str) -> str:
    """What results tables call the tower behind a file suffix: an id where it is a known option."""
    option = option_of(name)
    if option:
        return option.tower
    try:
        return representation(name).name
    except LawError:
        return catalog.representation_id(name)
