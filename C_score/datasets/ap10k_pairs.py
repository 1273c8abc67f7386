"""AP-10K's splits and pairs from its animals, by GeoAware-SC's rules, the same on every machine.

A species' images with 3 or more keypoints, sorted: the last 30 are test, the 20 before val, the
rest trn. Pairs have 3 or more common keypoints: all pairs of a species in val and test, at most 50
per image in trn; 400 (val) and 900 (test) pairs of different species per family; 20 and 30 per two
families. The reference takes the order of a folder listing; here pairs are drawn by a hash.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

SEED = 42
TEST_IMAGES, VAL_IMAGES = 30, 20
MIN_COMMON = 3
"""Keypoints that an image must show, and that a pair must have in common (GeoAware-SC)."""
TRN_PAIRS_PER_IMAGE = 50
PER_FAMILY = {"val": 400, "test": 900}
PER_TWO_FAMILIES = {"val": 20, "test": 30}


@dataclass(frozen=True)
class Animal:
    """The one annotated animal of an image."""

    image: str
    """File name without suffix."""
    family: str
    species: str
    visible: int
    """Bit i is set where keypoint i shows."""
    record: dict
    """What its file in ImageAnnotation holds."""

    @property
    def below(self) -> str:
        """Its place below JPEGImages and ImageAnnotation, without suffix."""
        return f"{self.family}/{self.species}/{self.image}"


Pair = tuple[str, str, Animal, Animal]
"""Split, category, source, target."""


def draw_pairs(animals: Sequence[Animal]) -> Iterator[Pair]:
    """All pairs of all splits."""
    species: dict[tuple[str, str], list[Animal]] = defaultdict(list)
    for animal in animals:
        species[animal.family, animal.species].append(animal)
    split: dict[str, dict[tuple[str, str], list[Animal]]] = {"trn": {}, "val": {}, "test": {}}
    for key, all_of_it in species.items():
        rest, test = all_of_it[:-TEST_IMAGES], all_of_it[-TEST_IMAGES:]
        split["test"][key] = test
        split["val"][key] = rest[-VAL_IMAGES:]
        split["trn"][key] = rest[:-VAL_IMAGES]
    for name, members in split.items():
        for (_, one), group in members.items():
            limit = TRN_PAIRS_PER_IMAGE * len(group) if name == "trn" else None
            yield from _drawn(name, one, itertools.combinations(group, 2), limit)
    for name in ("val", "test"):
        yield from _cross(name, split[name])


def _cross(name: str, members: dict[tuple[str, str], list[Animal]]) -> Iterator[Pair]:
    """Pairs of two species of a family, and of two families."""
    families: dict[str, list[list[Animal]]] = defaultdict(list)
    for (family, _), group in members.items():
        families[family].append(group)
    for family, groups in families.items():
        two = itertools.combinations(groups, 2)
        candidates = itertools.chain.from_iterable(itertools.product(*pair) for pair in two)
        yield from _drawn(f"{name}_cross_species", family, candidates, PER_FAMILY[name])
    for one, other in itertools.combinations(families.values(), 2):
        candidates = itertools.product(itertools.chain(*one), itertools.chain(*other))
        yield from _drawn(f"{name}_cross_family", "all", candidates, PER_TWO_FAMILIES[name])


def _drawn(
    split: str, category: str, candidates: Iterable[tuple[Animal, Animal]], limit: int | None
) -> Iterator[Pair]:
    """At most `limit` of the candidates with enough common keypoints; a hash says which, and which
    of the two images is the source."""
    ranked = []
    for a, b in candidates:
        if (a.visible & b.visible).bit_count() >= MIN_COMMON:
            digest = hashlib.sha256(f"{SEED}/{split}/{a.below}/{b.below}".encode()).digest()
            ranked.append((digest, a, b) if digest[-1] & 1 else (digest, b, a))
    ranked.sort(key=lambda item: item[0])
    for _, source, target in ranked[:limit]:
        yield split, category, source, target
