"""Files written whole or not at all."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from llava.errors import UsageError


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` under a temporary name and renames it, so no half-written file is ever read."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


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
