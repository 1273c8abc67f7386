"""Strict YAML to frozen dataclasses: an unknown key is an error, `2e-5` is a number.

Fields carry the types; YAML only selects. The resolved configuration, defaults included, is
written into the run folder before work starts (`save`), so a run can be repeated from its folder.
"""

import contextlib
import dataclasses
import math
import os
import re
import reprlib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llava.errors import ConfigError, unknown_name
from llava.files import write_text

C = TypeVar("C")


# Plain words as the YAML 1.2 core schema reads them: `2e-5` is a number, and `no`, `010` and
# `12:00:00` are not false, 8 and 43200.
_PLAIN = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice in one mapping."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes the text that the loader would take for a number: a commit such as 123e4567."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


for _side in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _PLAIN.items():
        _side.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}",
            re.compile(rf"^(?:{_pattern})$"),
            ["" if letter == "\0" else letter for letter in _first],
        )


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str | int | float | bool | None):
            raise ConfigError(f"line {line}: a key must be a word, not {type(key).__name__}")
        if key in seen:
            raise ConfigError(f"line {line}: key '{key}' stands already on line {seen[key]}")
        seen[key] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def read_yaml(path: str | os.PathLike) -> Any:
    """The plain Python value of a YAML file; raises ConfigError naming the file and the line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (seen from {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except (ValueError, KeyError, AttributeError) as error:  # `2024-02-30`, `!!int x`, `!!bool x`
        raise ConfigError(f"{path}: a value does not fit its form: {error}") from error


def load(cls: type[C], path: str | os.PathLike) -> C:
    """An instance of dataclass `cls` from a YAML file, every key and type checked."""
    value = read_yaml(path)
    try:
        return build(cls, {} if value is None else value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def build(cls: type[C], value: Any, where: str = "") -> C:
    """An instance of dataclass `cls` from a mapping; `where` is the path shown in errors."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'top level'}: expected a mapping, got {_show(value)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in fields:
            raise ConfigError(f"{where and where + ': '}{unknown_name('key', str(key), fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in value:
            raise ConfigError(f"{_join(where, name)}: this key is required")
    values = {key: _coerce(hints[key], item, _join(where, key)) for key, item in value.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where + ': ' if where else ''}{error}") from None


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or ConfigError that names the place and what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments or type(value) is not type(arguments[arguments.index(value)]):
            names = [str(argument) for argument in arguments]
            raise ConfigError(f"{where}: {unknown_name('value', str(value), names)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin in (list, tuple):
        return _coerce_sequence(origin, arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {_show(value)}")
        key_hint, item_hint = arguments
        return {
            _coerce(key_hint, key, where): _coerce(item_hint, item, _join(where, str(key)))
            for key, item in value.items()
        }
    return _coerce_scalar(hint, value, where)


def _coerce_union(arguments: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for argument in arguments:
        if argument is not type(None):
            try:
                return _coerce(argument, value, where)
            except ConfigError as error:
                errors.append(str(error))
    raise ConfigError(" or ".join(dict.fromkeys(errors)))


def _coerce_sequence(origin: type, arguments: tuple, value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: expected a list, got {_show(value)}")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} items, got {len(value)}")
        hints = arguments
    else:
        hints = (arguments[0],) * len(value)
    return origin(
        _coerce(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _coerce_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number beyond the floats
            if math.isfinite(value):
                return float(value)
        raise ConfigError(f"{where}: expected a finite number, got {_show(value)}")
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(f"{where}: expected {_NAMES.get(hint, hint.__name__)}, got {_show(value)}")


_NAMES = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    Path: "a path",
}


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _show(value: Any) -> str:
    text = reprlib.repr(value)  # bounded: aliases can make a value huge
    return text if len(text) <= 60 else text[:57] + "..."


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def save(config: Any, path: str | os.PathLike) -> None:
    """Writes the resolved configuration as YAML, whole or not at all."""
    plain = to_plain(config)
    write_text(path, yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
