"""The YAML of `law run`: a list of steps, or a sweep; `{run_dir}` in it is filled in."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.config import build, read_yaml
from llava.errors import ConfigError
from llava.sweep.config import SweepConfig
from llava.sweep.step import StepConfig, check_steps

RUN_DIR = "{run_dir}"


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
                value = _filled(value, value["run_dir"])
        config = build(kind, {} if value is None else value)
    except ConfigError as error:
        other = "; a run is either a list of `steps` or a sweep of representations"
        raise ConfigError(f"{path}: {error}{'' if kind is RunConfig else other}") from None
    return dataclasses.replace(config, run_dir=Path(os.path.normpath(config.run_dir)))


def _filled(value: Any, run_dir: str) -> Any:
    """`value` with the run folder in the place of every {run_dir}."""
    if isinstance(value, dict):
        return {_filled(key, run_dir): _filled(item, run_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, run_dir) for item in value]
    return value.replace(RUN_DIR, run_dir) if isinstance(value, str) else value
