"""Tokens out of a feature store: every space is a tower, an image's id is its key.

What a store holds comes before any projector, so only towers of one width compare, and the number
is another than the A score of projected tokens; its protocol says `unprojected` and the frame.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from A_score.tokens import TowerTokens
from llava import catalog
from llava.errors import LawError
from llava.features import FeatureStore, Space
from llava.model.multimodal_encoder.known import families


@dataclass(frozen=True)
class StoredTokens(TowerTokens):
    """One space of a feature store."""

    name: str
    space: Space

    @property
    def images(self) -> Space:
        """Keys of the images."""
        return self.space

    @property
    def spec_hash(self) -> str:
        """Of the space's spec."""
        return self.space.spec.hash()

    @property
    def origin(self) -> tuple[str, str]:
        """No projector has seen them; the frame."""
        return "unprojected", self.space.frame

    def is_called(self, name: str) -> bool:
        """By id, alias or display name, with or without @size, or by the space's folder."""
        spec = self.space.spec
        if name in (self.name, self.space.folder.name):
            return True
        known, _, size = _unaliased(name).partition("@")
        return _unaliased(known) == spec.id and size in ("", str(spec.size))

    def where(self, image: str) -> str:
        """The space's folder and the key."""
        return f"{self.space.folder}, image {image[:12]}"

    def load(self, image: str) -> Tensor:
        """[N, C], memory-mapped; LawError where the bytes are damaged."""
        return self.space.read(image)


def _unaliased(name: str) -> str:
    """The id, perhaps with @size, that an alias or display name stands for; else the name."""
    aliases = {k.lower(): v for family in families().values() for k, v in family.aliases.items()}
    return aliases.get(name.lower()) or catalog.representation_id(name)


def is_store(path: Path) -> bool:
    """Whether `path` is a feature store."""
    return any(path.glob("*/space.json"))


def stored_towers(path: Path) -> dict[str, StoredTokens]:
    """Name -> tokens of every space; by its folder where several spaces are of one tower."""
    spaces = FeatureStore(path).spaces()
    for space in spaces:
        if space.damaged:
            name, why = next(iter(space.damaged.items()))
            raise LawError(f"{space.folder / name}: {why}; extract again, which makes it anew")
    counts = Counter(map(_name, spaces))
    names = [_name(s) if counts[_name(s)] == 1 else s.folder.name for s in spaces]
    return {
        name: StoredTokens(name, space)
        for name, space in zip(names, spaces, strict=True)
        if len(space)
    }


def _name(space: Space) -> str:
    """The tower's id; of a local folder, its last part."""
    return Path(space.spec.id).name if space.spec.digest else space.spec.id
