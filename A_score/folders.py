"""Where the tokens lie: a folder per tower, in a folder per benchmark if there are several.

    DIR/<benchmark>/<tower>/manifest.json   what `law a-score dump` wrote, see dumped.py
    DIR/<tower>/tensor_1.pt
    DIR/<benchmark>/<tower>/tensor_1.pt
    DIR/<space>/space.json                  a feature store, see stored.py

In a folder's name `/` is written `--`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from A_score.dumped import DrawnImages, Manifest, read_tokens
from A_score.stored import is_store, stored_towers
from A_score.tokens import Towers, TowerTokens, image_order, load_tensor
from llava.errors import LawError, UsageError, nearest
from llava.log import get_logger
from llava.model.multimodal_encoder.registry import resolve

logger = get_logger("a-score")

T = TypeVar("T")
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


@dataclass(frozen=True)
class DumpedTokens(TokenFolder):
    """What `law a-score dump` wrote of one representation; its name is the manifest's."""

    folder: str
    manifest: Manifest
    contents: Mapping[str, str]
    """Image id -> hash of its content; empty where no draw is known."""

    @property
    def spec_hash(self) -> str:
        """Of the representation."""
        return self.manifest.tokens["spec_hash"]

    @property
    def run_dir(self) -> str:
        """Folder of the projector."""
        return self.manifest.run

    @property
    def language_model(self) -> str:
        """As the manifest has it."""
        return self.manifest.language_model

    @property
    def origin(self) -> tuple[str, str]:
        """Projected; the stage of training, the dtype and, where it is known, the LLM."""
        model = self.language_model.replace("/", "--")
        facts = (self.manifest.stage, self.manifest.tokens["dtype"], model)
        return "projected", "-".join(filter(None, facts))

    @property
    def representation(self) -> str:
        """The name itself."""
        return self.name

    def is_called(self, name: str) -> bool:
        """By its name or folder, by any name of its representation, or by local folders' names."""
        short = ".".join(Path(tower).name for tower in self.manifest.towers)
        if name in (self.name, self.folder, short) or name.replace("/", "--") == self.folder:
            return True
        return _stands_for(name, self.manifest.tokens["representation"])

    def load(self, image: str) -> Tensor:
        """The tokens; LawError where they are damaged, or are not the manifest's."""
        return read_tokens(self.files[image], self.manifest, self.contents.get(image))


def _stands_for(name: str, representation: str) -> bool:
    """Whether an alias such as `clip336` or `C+D@336` means a representation."""
    if "/" in name:
        return name == representation  # a hub id would be looked for on the hub
    try:
        return resolve(name).name == representation
    except LawError:
        return False


@dataclass(frozen=True)
class Benchmark:
    """The tokens of a benchmark's images."""

    name: str
    folder: Path
    towers: Towers
    draw: DrawnImages | None = None
    """How its images were chosen, where `law a-score dump` did it."""


def find_benchmarks(base: Path) -> dict[str, Benchmark]:
    """Every benchmark below `base` by name; a folder of towers is one, called like it."""
    if not base.is_dir():
        raise UsageError(f"--base_folder {base}: {_no_folder(base)}")
    if is_store(base):
        name = base.resolve().name
        return {name: Benchmark(name, base, stored_towers(base))}
    if _files(base):
        raise UsageError(
            f"--base_folder {base}: holds tensors itself; expected the folder above, with one "
            f"folder per tower: --base_folder {base.resolve().parent}"
        )
    own = {folder: found for folder in _folders(base) if (found := _files(folder))}
    nested = [_benchmark(folder) for folder in _folders(base) if folder not in own]
    nested = [found for found in nested if found.towers]
    if own and nested:
        raise UsageError(
            f"--base_folder {base}: {next(iter(own)).name} holds tensors and "
            f"{nested[0].folder.name} holds folders of tensors; expected either DIR/<tower> or "
            "DIR/<benchmark>/<tower>"
        )
    if not own and not nested:
        raise UsageError(
            f"--base_folder {base}: no tensors; expected <tower>/tensor_1.pt or "
            f"<benchmark>/<tower>/tensor_1.pt in it ({' or '.join(SUFFIXES)})"
        )
    used = {*own, *(found.folder for found in nested)}
    for folder in _folders(base):
        if folder not in used:
            logger.warning("%s holds no tensors and is left out", folder)
    found = nested or [_benchmark(base)]
    return _by_name([(one.name, one.folder, one) for one in found])


def _benchmark(folder: Path) -> Benchmark:
    draw = DrawnImages.read(folder)
    name = folder.resolve().name if draw is None else draw.benchmark
    towers = [(one, _tower(one, draw)) for one in _folders(folder) if _files(one)]
    if not any(isinstance(tower, DumpedTokens) for _, tower in towers):
        draw = None
    return Benchmark(name, folder, _by_name([(t.name, one, t) for one, t in towers]), draw)


def _by_name(entries: Sequence[tuple[str, Path, T]]) -> dict[str, T]:
    """Entries (name, folder, what is there) by name; LawError for two of one name."""
    found: dict[str, tuple[Path, T]] = {}
    for name, folder, what in entries:
        if name in found:
            raise LawError(f"{found[name][0]} and {folder} are both {name}; move one of them away")
        found[name] = (folder, what)
    return {name: what for name, (_, what) in found.items()}


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


def _tower(folder: Path, draw: DrawnImages | None) -> TokenFolder:
    """The tokens in a folder; of what was dumped, images of the draw alone."""
    files: dict[str, Path] = {}
    for file in _files(folder):
        if file.stem in files:
            raise LawError(f"{file}: {files[file.stem].name} is the same image; remove one")
        files[file.stem] = file
    manifest = Manifest.read(folder)
    if manifest is None:
        return TokenFolder(folder.name, files)
    contents = {} if draw is None else draw.images
    if draw is not None:
        files = {image: files[image] for image in draw.images if image in files}
    return DumpedTokens(manifest.name, files, folder.name, manifest, contents)
