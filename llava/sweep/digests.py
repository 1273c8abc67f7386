"""Digests of files, remembered by size and time of change so that none is read twice."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import LawError

ALWAYS_READ = 1 << 24
"""Bytes up to which a file is read again although its size and time are as they were."""
LISTED = 100_000
"""Files of a folder that its digest counts at most."""


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

    Large ones are read only where size or time differ, or if `thorough`.
    """
    found = {}
    for name, state in recorded.items():
        path = root / name
        try:
            now = path.stat()
        except OSError:
            found[name] = "missing"
            continue
        same = (now.st_size, now.st_mtime_ns) == (state.size, state.changed)
        if now.st_size != state.size:
            found[name] = "changed"
        elif not same or thorough or now.st_size <= ALWAYS_READ:
            with contextlib.suppress(OSError):
                if state_of(path).sha256 == state.sha256:
                    continue
            found[name] = "changed"
    return found


def input_digest(path: str) -> str:
    """What stands for a file or folder of outside in a fingerprint.

    Of a file its content; of a folder the names and sizes of its files, without folders inside. Of
    what is not there, such as a hub id, nothing. Raises LawError for what cannot be read.
    """
    place = Path(path)
    try:
        if place.is_file():
            return _content(str(place.resolve()), place.stat().st_size, place.stat().st_mtime_ns)
        if not place.is_dir():
            return ""
        with os.scandir(place) as entries:
            files = [(e.name, e.stat().st_size) for e in entries if e.is_file()]
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error
    told = repr((len(files), sorted(files)[:LISTED]))
    return hashlib.sha256(told.encode()).hexdigest()


_known: dict[tuple[str, int, int], str] = {}


def _content(path: str, size: int, changed: int) -> str:
    """Digest of a file, read once in this process."""
    key = (path, size, changed)
    if key not in _known:
        with open(path, "rb") as handle:
            _known[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _known[key]
