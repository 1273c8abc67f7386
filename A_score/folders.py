"""Where the tokens lie: a folder per tower, in a folder per benchmark if there are several.

    DIR/<tower>/tensor_1.pt
    DIR/<benchmark>/<tower>/tensor_1.pt
    DIR/<space>/space.json              a feature store, see stored.py

In a folder's name `/` is written `--`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from A_score.stored import is_store, stored_towers
from A_score.tokens import Towers, TowerTokens, image_order, load_tensor
from llava.errors import LawError, UsageError, nearest
from llava.log import get_logger

logger = get_logger("a-score")

SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True)
class TokenFolder(TowerTokens):
    """A folder with one file per image."""

    name: str
    files: Mapping[str, Path]
    """Image id -> file."""

    @property
    def images(self) -> Mapping[str, Path]:
        """Ids of the images."""
        return self.files

    def is_called(self, name: str) -> bool:
        """By the folder's name, `/` for `--` allowed."""
        return name.replace("/", "--") == self.name

    def where(self, image: str) -> str:
        """The file's path."""
        return str(self.files[image])

    def load(self, image: str) -> Tensor:
        """The one tensor of the file."""
        return load_tensor(self.files[image])


def find_benchmarks(base: Path) -> dict[str, tuple[Path, Towers]]:
    """Benchmark -> (its folder, tower -> tokens); a folder of towers is one, called like it."""
    if not base.is_dir():
        raise UsageError(f"--base_folder {base}: {_no_folder(base)}")
    if is_store(base):
        return {base.resolve().name: (base, stored_towers(base))}
    if _files(base):
        raise UsageError(
            f"--base_folder {base}: holds tensors itself; expected the folder above, with one "
            f"folder per tower: --base_folder {base.resolve().parent}"
        )
    towers = _towers(base)
    nested = {
        folder.name: (folder, found)
        for folder in _folders(base)
        if folder.name not in towers and (found := _towers(folder))
    }
    if towers and nested:
        raise UsageError(
            f"--base_folder {base}: {next(iter(towers))} holds tensors and {next(iter(nested))} "
            f"holds folders of tensors; expected either DIR/<tower> or DIR/<benchmark>/<tower>"
        )
    if not towers and not nested:
        raise UsageError(
            f"--base_folder {base}: no tensors; expected <tower>/tensor_1.pt or "
            f"<benchmark>/<tower>/tensor_1.pt in it ({' or '.join(SUFFIXES)})"
        )
    for folder in _folders(base):
        if folder.name not in towers and folder.name not in nested:
            logger.warning("%s holds no tensors and is left out", folder)
    return nested or {base.resolve().name: (base, towers)}


def _no_folder(path: Path) -> str:
    if path.exists():
        return "is a file; expected a folder"
    beside = [folder.name for folder in _folders(path.parent)] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    return "no such folder" + (f"; did you mean {path.parent / near}?" if near else "")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(path: Path) -> list[Path]:
    found = [p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: image_order(p.stem))


def _towers(path: Path) -> Towers:
    towers = {}
    for folder in _folders(path):
        files = {}
        for file in _files(folder):
            if file.stem in files:
                raise LawError(f"{file}: {files[file.stem].name} is the same image; remove one")
            files[file.stem] = file
        if files:
            towers[folder.name] = TokenFolder(folder.name, files)
    return towers
