"""What a language model is called, so that two of one short name are told apart.

ORG/NAME     on the hub, also where the path is that of a snapshot in the hub's cache
NAME@DIGEST  in a folder; the digest is over its config.json and its tokenizer
NAME         in a folder that is not there any more
"""

import hashlib
import json
import re
from pathlib import Path

from llava.files import read_json

SNAPSHOT = re.compile(r"(?:^|/)models--([^/]+)/snapshots(?:/|$)")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
VOLATILE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"})
"""Fields of config.json that saving a model again may change."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def identity(name: str) -> str:
    """One of the forms above for a name or path as a run has it; '' for none."""
    folder = Path(name)
    is_there = bool(name) and (folder / "config.json").is_file()
    if is_there:
        folder = folder.resolve()
    if snapshot := SNAPSHOT.search(folder.as_posix()):
        return snapshot[1].replace("--", "/", 1)
    if is_there:
        return f"{folder.name}@{_digest(folder)}"
    if HUB_ID.fullmatch(name.rstrip("/")):
        return name.rstrip("/")
    return folder.name


def _digest(folder: Path) -> str:
    """8 hex digits over the config and the first tokenizer's file."""
    config = read_json(folder / "config.json")
    kept = {key: value for key, value in config.items() if key not in VOLATILE}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    files = (folder / file for file in TOKENIZERS)
    if found := next(filter(Path.is_file, files), None):
        digest.update(found.read_bytes())
    return digest.hexdigest()[:8]


def are_different(one: str, other: str) -> bool:
    """Whether two identities are of different models; one without what tells is the other's."""
    if not one or not other:
        return False
    known = zip(_parts(one), _parts(other), strict=True)
    return any(mine and theirs and mine != theirs for mine, theirs in known)


def _parts(name: str) -> tuple[str, str, str]:
    """(organisation, name, digest); the hub takes letters of either case."""
    before, _, digest = name.partition("@")
    organisation, _, last = before.casefold().rpartition("/")
    return organisation, last, digest
