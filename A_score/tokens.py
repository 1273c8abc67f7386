"""The tokens of an A score: one tensor per tower and image, read and checked.

A file is [tokens, width] or [1, tokens, width], `.pt` or `.safetensors`; its stem is the image's
id. folders.py finds such files, stored.py finds the same in a feature store.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llava.errors import LawError, UsageError, unknown_name


class TowerTokens(ABC):
    """The tokens of one tower on the images of one benchmark; a subclass says where they lie."""

    name: str
    """As it stands in tables and in the keys of the JSON file."""
    spec_hash: str = ""
    """Of the tower's spec, where it is known."""
    run_dir: str = ""
    """Folder that the tokens were made from, where it is known."""
    origin: tuple[str, str] = ("", "")
    """How they were made, in two words of the protocol; empty where it is not known."""
    language_model: str = ""
    """Identity of the language model that they were projected for, where it is known."""
    images: Collection[str]
    """Ids of the images."""

    @property
    def representation(self) -> str:
        """What results tables call it."""
        return self.name.replace("--", "/")

    @abstractmethod
    def is_called(self, name: str) -> bool:
        """Whether `name`, as a user may write it, means this tower."""

    @abstractmethod
    def where(self, image: str) -> str:
        """What an error calls the tokens of `image`."""

    @abstractmethod
    def load(self, image: str) -> Tensor:
        """The tensor as stored."""

    def read(self, image: str) -> Tensor:
        """[N, C], N and C at least 1, finite, in the stored dtype; LawError naming the place."""
        return checked(self.load(image), self.where(image))


Towers = Mapping[str, TowerTokens]


def load_tensor(path: Path) -> Tensor:
    """The one tensor of a `.pt` or `.safetensors` file; pickles that would run code are refused."""
    try:
        found = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pt(path)
    except LawError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        reason = f"{type(error).__name__} {error}".splitlines()[0][:160]
        raise LawError(
            f"{path}: cannot be read ({reason}); the file is damaged or cut short, write it again"
        ) from error
    if not isinstance(found, Tensor):
        raise LawError(
            f"{path}: holds a {type(found).__name__}; expected one tensor [tokens, width]"
        )
    return found.detach()


def _load_pt(path: Path) -> object:
    from pickle import UnpicklingError

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"is a pickle that calls {called[1]}" if called else "is not what torch.save writes"
        raise LawError(
            f"{path}: {what}; only plain tensors are read, since a pickle can run any code. If the "
            f"file is yours, save the tensor alone: torch.save(tensor, path)"
        ) from error


def _load_safetensors(path: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise LawError(
                f"{path}: holds {len(names)} tensors ({', '.join(names[:4]) or 'none'}); expected "
                f"one, [tokens, width]"
            )
        return file.get_tensor(names[0])


def checked(tokens: Tensor, where: str) -> Tensor:
    """[N, C] of a tensor [N, C] or [1, N, C]; LawError for one that is no set of tokens."""
    shape = list(tokens.shape)
    if tokens.ndim == 3 and shape[0] == 1:
        tokens = tokens[0]
    if tokens.ndim != 2:
        raise LawError(f"{where}: has the shape {shape}; expected [tokens, width]")
    if not tokens.numel():
        raise LawError(f"{where}: has the shape {shape}, so no tokens; expected one or more")
    if not tokens.is_floating_point() or tokens.layout != torch.strided:
        raise LawError(
            f"{where}: holds {tokens.dtype}, {tokens.layout}; expected dense floating-point tokens"
        )
    if tokens.element_size() == 1:  # few operations take 8-bit floats
        tokens = tokens.float()
    bad = ~torch.isfinite(tokens).all(1)
    if bad.any():
        raise LawError(
            f"{where}: NaN or infinity in {int(bad.sum())} of {len(tokens)} tokens, first in token "
            f"{int(bad.int().argmax())}; compute these features again"
        )
    return tokens


def pick(towers: Towers, names: Sequence[str], flag: str, where: Path) -> list[str]:
    """The keys of `towers` that `names` mean; UsageError for a name that means none, or several.

    A tower's own name counts before what else another one is called.
    """
    picked = []
    for name in names:
        called = [key for key, tower in towers.items() if tower.is_called(name)]
        meant = [key for key in called if key == name] or called
        if not meant:
            raise UsageError(f"{flag}: {unknown_name('tower', name, towers)} (in {where})")
        if len(meant) > 1:
            raise UsageError(f"{flag}: '{name}' may mean {' or '.join(meant)}; say which")
        picked += meant
    return list(dict.fromkeys(picked))


def image_order(image: str) -> tuple:
    """Sorts numbers inside of names by value: tensor_2 comes before tensor_10."""
    parts = re.split(r"(\d+)", image)
    return tuple((int(part), part) if part.isdecimal() else (-1, part) for part in parts)


def shared_images(
    needed: Sequence[TowerTokens],
    where: Path,
    common: bool,
    n: int | None,
    order: Sequence[str] = (),
) -> tuple[list[str], int]:
    """(images that all towers have, how many others were left out).

    They are those of a draw in its `order`, where there is one, then others by their names. Without
    `common`, an image that some tower lacks is a LawError, among the first `n` if given.
    """
    place = {image: i for i, image in enumerate(order)}
    known = sorted(
        {*order, *(image for tower in needed for image in tower.images)},
        key=lambda image: (place.get(image, len(place)), image_order(image)),
    )
    everywhere = [image for image in known if all(image in tower.images for tower in needed)]
    if not everywhere:
        names = ", ".join(tower.name for tower in needed)
        raise LawError(
            f"{where}: no image has tokens of all of {names}; the same image must have the same "
            f"file name in each"
        )
    wanted = (everywhere if common else known)[:n]
    if n is not None and len(wanted) < n:
        raise LawError(f"{where}: --n {n}, but there are {len(wanted)} images; lower it")
    for tower in needed:
        missing = [image for image in wanted if image not in tower.images]
        if missing:
            others = [other.name for other in needed if missing[0] in other.images]
            first_of_draw = order and everywhere == known[: len(everywhere)]
            remedy = f"--n {len(everywhere)}" if first_of_draw else "--common"
            raise LawError(
                f"{where}: {tower.name} has no {missing[0]}, which {[*others, 'the draw'][0]} has "
                f"({len(missing)} of {len(wanted)} images are missing); dump it, or take the "
                f"{len(everywhere)} images that all have with {remedy}"
            )
    return wanted, len(known) - len(everywhere) if common else 0
