"""How a head is trained, as YAML says it. Nothing here imports torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava.config import build, read_yaml
from llava.errors import ConfigError, UsageError
from llava.model.contrastive.config import HeadConfig


@dataclass(frozen=True)
class TrainConfig:
    """A head, and its training with Adam. Defaults are the published recipe for PACL."""

    head: HeadConfig
    negatives: str = ""
    """A set of opposite phrases, `leftright` or a YAML file: captions that have one of them give a
    negative each."""
    batch_size: int = 4096
    """Images of a step, over all processes."""
    epochs: float = 10.0
    steps: int | None = None
    """In place of epochs."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0
    """The learning rate rises linearly to its value, which it keeps."""
    seed: int = 0
    save_steps: int = 500
    log_steps: int = 10
    select: Literal["patch", "cls_patch", "cls"] = "patch"
    """Which tokens of the tower the head sees."""

    def __post_init__(self):
        for name in ("batch_size", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("learning_rate", "epochs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {self.steps}")

    def check_batch(self, samples: int, processes: int) -> None:
        """Raises UsageError for batches larger than an epoch, or that leave a process nothing."""
        if self.batch_size > samples:
            raise UsageError(
                f"batch_size {self.batch_size} is more than the {samples} records with one image "
                "and an answer, and no batch holds one twice; take less, as in --set "
                f"batch_size={samples}"
            )
        if self.batch_size < processes:
            raise UsageError(
                f"batch_size {self.batch_size} leaves some of {processes} processes without an "
                "image; take more, or fewer processes"
            )

    def total_steps(self, samples: int) -> int:
        """Steps of the whole training, of the whole batches of so many samples; at least one."""
        return self.steps or max(1, int(self.epochs * (samples // self.batch_size)))


def read_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """A YAML file's config, with `KEY=VALUE` changes; a dot leads into a mapping.

    Raises ConfigError for keys and values that do not fit.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: expected a mapping")
    for change in changes:
        _change(plain, change)
    try:
        return build(TrainConfig, plain)
    except ConfigError as error:
        raise ConfigError(f"{path}{' with --set' if changes else ''}: {error}") from None


def _change(plain: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *above, last = key.split(".")
    if not equals or not last:
        raise UsageError(f"--set {change}: expected KEY=VALUE, as in head.text.source=table")
    for name in above:
        plain = plain.setdefault(name, {})
        if not isinstance(plain, dict):
            raise UsageError(f"--set {change}: {name} holds no keys")
    try:
        plain[last] = json.loads(text)
    except ValueError:
        plain[last] = text
