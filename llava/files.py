"""Files written whole or not at all, and JSON read with an error that names the file."""

import contextlib
import hashlib
import json
import math
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import Any

from llava.errors import LawError, UsageError

LONGEST_FOLDER = 200
"""Bytes of a folder's name; file systems take 255."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` under a temporary name and renames it, so no half-written file is ever read."""
    path = Path(path)
    unique = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too leaves no temporary file
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise LawError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def folder_name(name: str) -> str:
    """A representation's or a benchmark's name as that of a folder.

    Without what stands before a local path; one that is too long ends in its digest, as those of
    six towers and more. UsageError for what makes none.
    """
    folder = name.lstrip("./").replace("/", "--")
    if not folder or "\0" in folder:
        raise UsageError(f"'{name}' makes no name of a folder; give another one with --as NAME")
    whole = folder.encode()
    if len(whole) <= LONGEST_FOLDER:
        return folder
    digest = hashlib.sha256(whole).hexdigest()[:12]
    return f"{whole[: LONGEST_FOLDER - 13].decode(errors='ignore')}-{digest}"


def ensure_writable(path: str | os.PathLike) -> None:
    """Raises LawError where `path` cannot be written, before the work whose result goes there."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise LawError(f"{path}: cannot be written: {error.strerror or error}") from error
    if path.is_dir():
        raise LawError(f"{path}: is a folder; expected the name of a file")


def read_json(path: str | os.PathLike, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file; LawError, ending with the `remedy`, where there is none."""
    ending = f"; {remedy}" if remedy else ""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}{ending}") from error
    except ValueError as error:
        raise LawError(f"{path}: cannot be read as JSON: {error}{ending}") from error
    if not isinstance(value, dict):
        raise LawError(f"{path}: expected a JSON object, got {type(value).__name__}{ending}")
    return value


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes strict JSON: NaN and infinities become null, since many readers refuse them."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    """`value` as plain JSON types; numpy arrays and scalars come as lists and numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
