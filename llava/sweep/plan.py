"""The YAML of `law run`: a list of steps, or a sweep; `{run_dir}` in it is filled in."""

import contextlib
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.config import build, read_yaml, save, to_plain
from llava.errors import ConfigError
from llava.sweep.config import SweepConfig
from llava.sweep.step import StepConfig, check_steps

RUN_DIR = "{run_dir}"
LISTS = ("steps", "prepare", "finish")
"""Keys of lists of steps."""
COMMANDS = ("command", "script")
"""Keys of a step whose text is a command line."""


@dataclass(frozen=True)
class RunConfig:
    """A run: its folder and its steps, in order."""

    name: str
    run_dir: Path
    steps: list[StepConfig]

    def __post_init__(self):
        if not self.steps:
            raise ValueError("steps: expected at least one step")
        check_steps(self.steps)


def load_run(path: str | os.PathLike, run_dir: Path | None = None) -> RunConfig | SweepConfig:
    """The run that a YAML file describes, in `run_dir` instead of its own if given.

    Raises ConfigError naming the file, the key and what was expected.
    """
    value = read_yaml(path)
    kind = RunConfig if isinstance(value, dict) and "steps" in value else SweepConfig
    try:
        if isinstance(value, dict):
            if run_dir is not None:
                value = value | {"run_dir": str(run_dir)}
            if isinstance(value.get("run_dir"), str):
                value = _filled(value)
        return build(kind, {} if value is None else value)
    except ConfigError as error:
        other = "; a run is either a list of `steps` or a sweep of representations"
        raise ConfigError(f"{path}: {error}{'' if kind is RunConfig else other}") from None


def save_run(config: RunConfig | SweepConfig, path: Path) -> None:
    """Writes what `load_run` reads as the same, with {run_dir} where the run folder stands.

    So a run folder that was moved is gone on with from its own file and `--run-dir`.
    """
    run_dir = str(config.run_dir)
    # as part of a path, a list or NAME=PATH, not of another word
    place = re.compile(rf"(?<![^=,: ]){re.escape(run_dir)}(?![^/,: ])")
    written = _changed(to_plain(config), lambda text: place.sub(RUN_DIR, text))
    save(written | {"name": config.name, "run_dir": run_dir}, path)


def _filled(value: dict[str, Any]) -> dict[str, Any]:
    """The file's mapping with the run folder in the place of every {run_dir}."""
    given = value["run_dir"]
    if not given.strip() or RUN_DIR in given:
        raise ConfigError(f"run_dir: '{given}'; expected a folder, which {RUN_DIR} stands for")
    run_dir = os.path.normpath(given)
    if run_dir == os.curdir:
        run_dir = str(Path.cwd())  # what is in it could not be told from what is not
    filled = _changed(value, lambda text: text.replace(RUN_DIR, run_dir))
    return filled | {"run_dir": run_dir}


def _changed(value: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The mapping with every text in it changed, a command line's word by word."""
    return {
        key: [_step(item, change) for item in part]
        if key in LISTS and isinstance(part, list)
        else _each(part, change)
        for key, part in value.items()
    }


def _step(value: Any, change: Callable[[str], str]) -> Any:
    if not isinstance(value, dict):
        return value  # whoever reads it says what it should be
    return {
        key: _command(part, change)
        if key in COMMANDS and isinstance(part, str)
        else _each(part, change)
        for key, part in value.items()
    }


def _command(line: str, change: Callable[[str], str]) -> str:
    """Split first, so that a folder with a space in its name is one word."""
    with contextlib.suppress(ValueError):  # StepConfig says what is wrong with it
        line = shlex.join(map(change, shlex.split(line)))
    return line


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        if "<<" in value:  # to YAML 1.1 a merge; among flags it would be one of that name
            raise ConfigError("'<<' is not read here; write the keys themselves")
        return {_each(key, change): _each(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
