"""Flags of a YAML as words of a command line."""

from collections.abc import Iterable, Mapping
from typing import Any


def words(flags: Mapping[str, Any]) -> list[str]:
    """`--name value`, sorted; true stands alone, false and null are out, a list is repeated."""
    made: list[str] = []
    for name, value in sorted(flags.items()):
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                made.append(f"--{name}")
            elif item is not False and item is not None:
                made += [f"--{name}", _text(item)]
    return made


def train_words(flags: Mapping[str, Any]) -> list[str]:
    """As `law train` takes them, sorted: `--bf16 True`, all items of a list behind one name."""
    made: list[str] = []
    for name, value in sorted(flags.items()):
        if value is not None:
            items = value if isinstance(value, list) else [value]
            made += [f"--{name}", *map(_text, items)]
    return made


def aliases(pairs: Iterable[tuple[str, str]], flag: str = "--tower-alias") -> list[str]:
    """Where towers' weights are, one flag for each."""
    return [word for name, source in pairs for word in (flag, f"{name}={source}")]


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
