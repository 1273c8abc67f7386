"""inputs.json of a run folder: the digest of every input when it was last seen.

Data that is gone when what was made of it is done, or a disk that is not there for a moment, makes
nothing out of date: the digest that the input had counts.
"""

from pathlib import Path

from llava.errors import LawError
from llava.files import read_json, write_json
from llava.sweep.digests import input_digest

NAME = "inputs.json"


class Inputs:
    """Digests of files and folders of outside, each read once."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / NAME
        self._seen = self._kept()
        self._now: dict[str, str] = {}

    def digest(self, path: str) -> str:
        """Of what is there now, else of what was there; of a hub id nothing."""
        if path not in self._now:
            found = input_digest(path)
            if found and self._seen.get(path) != found:
                self._seen[path] = found
                write_json(self.path, self._seen)
            self._now[path] = found or self._seen.get(path, "")
        return self._now[path]

    def _kept(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        kept = read_json(self.path, "remove it; what is done may then be done again")
        for path, digest in kept.items():
            if not isinstance(digest, str):
                raise LawError(f"{self.path}: {path}: expected text, got {digest!r}; remove it")
        return kept
