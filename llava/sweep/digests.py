"""Digests of files, remembered by size and time of change so that none is read twice."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import LawError

ALWAYS_READ = 1 << 24
"""Bytes up to which a file is read again although its size and time are as they were."""
LISTED = 1_000_000
"""Files of a folder whose names its digest counts at most; the rest are not looked for."""
SIZED = 20_000
"""Files of a folder whose sizes its digest counts at most: one may take a millisecond."""
DEEPEST = 12
"""Folders inside each other in which a digest looks."""
NO_DATA = ("__pycache__", "thumbs.db", "desktop.ini")
"""What systems and programs leave in folders of data, in small letters; hidden files, too."""
NO_DATA_ENDS = (".md", ".lock", ".tmp", ".index.npz")
"""Of files that are read by people, or made by whoever reads the data."""


@dataclass(frozen=True)
class FileState:
    """What a file was when its step was done."""

    size: int
    changed: int
    """Time of its last change, ns."""
    sha256: str

    def plain(self) -> list:
        """As the ledger has it."""
        return [self.size, self.changed, self.sha256]

    @classmethod
    def read(cls, plain: Any) -> "FileState":
        """From what `plain` gave; ValueError for anything else."""
        size, changed, sha256 = plain
        if type(size) is not int or type(changed) is not int or not isinstance(sha256, str):
            raise ValueError(f"no file's state: {plain!r}")
        return cls(size, changed, sha256)


def state_of(path: Path) -> FileState:
    """Size, time and digest of a file."""
    found = path.stat()
    with open(path, "rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileState(found.st_size, found.st_mtime_ns, sha256)


def states_of(root: Path, names: Iterable[str]) -> dict[str, FileState]:
    """States of files, by their path below `root`."""
    return {name: state_of(root / name) for name in sorted(set(names))}


def compare(root: Path, recorded: Mapping[str, FileState], thorough: bool) -> dict[str, str]:
    """Files that are not what they were -> `missing` or `changed`.

    Large ones are read only where size or time differ, or if `thorough`. Raises LawError for what
    cannot be read: a disk that fails for a moment is no reason to do hours of work again.
    """
    found = {}
    for name, state in recorded.items():
        path = root / name
        try:
            if not path.exists():
                found[name] = "missing"
            elif not _is_still(path, state, thorough):
                found[name] = "changed"
        except OSError as error:
            raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found


def _is_still(path: Path, state: FileState, thorough: bool) -> bool:
    """Whether a file holds what it held."""
    found = path.stat()
    if found.st_size != state.size or not path.is_file():
        return False
    same_time = found.st_mtime_ns == state.changed
    large = found.st_size > ALWAYS_READ
    if same_time and large and not thorough:
        return True
    now = state_of(path)
    if now.sha256 != state.sha256:
        return False
    if large and not same_time and now.changed == path.stat().st_mtime_ns:
        with contextlib.suppress(OSError):  # as after a copy; else it is read at every start
            os.utime(path, ns=(found.st_atime_ns, state.changed))
    return True


def input_digest(path: str) -> str:
    """What stands for a file or folder of outside in a fingerprint.

    Of a file its content; of a folder the names of the files in it and below it, and their sizes
    as far as `SIZED` goes, without hidden files and what is no data. Of what is not there, such as
    a hub id, nothing. Raises LawError for what cannot be read.
    """
    place = Path(path)
    try:
        if place.is_file():
            return _content(str(place.resolve()), place.stat().st_size, place.stat().st_mtime_ns)
        if not place.is_dir():
            return ""
        return _of_folder(place)
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error


def _of_folder(root: Path) -> str:
    """Digest of the names in a folder and, of those nearest to its top, of the sizes."""
    digest = hashlib.sha256()
    for number, (name, path) in enumerate(itertools.islice(_files(root), LISTED)):
        size = path.stat().st_size if number < SIZED else ""
        digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """(path below the folder, path) of the files that count, level by level, in order.

    A folder inside that may not be read counts by its name. Links are followed, to a folder that
    was there already once only.
    """
    level, seen = [("", root)], {_identity(root)}
    for _ in range(DEEPEST):
        below = []
        for prefix, folder in level:
            try:
                with os.scandir(folder) as found:
                    entries = sorted((e for e in found if _counts(e.name)), key=lambda e: e.name)
            except PermissionError:
                if not prefix:
                    raise
                yield prefix, folder
                continue
            for entry in entries:
                if entry.is_file():
                    yield prefix + entry.name, Path(entry.path)
                elif entry.is_dir() and (one := _identity(Path(entry.path))) not in seen:
                    seen.add(one)
                    below.append((f"{prefix}{entry.name}/", Path(entry.path)))
        level = below


def _counts(name: str) -> bool:
    small = name.lower()
    return not (small.startswith(".") or small in NO_DATA or small.endswith(NO_DATA_ENDS))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


_known: dict[tuple[str, int, int], str] = {}


def _content(path: str, size: int, changed: int) -> str:
    """Digest of a file, read once in this process."""
    key = (path, size, changed)
    if key not in _known:
        with open(path, "rb") as handle:
            _known[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _known[key]
