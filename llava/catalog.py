"""Names that everybody shares: benchmarks and the paper's vision representations, as data.

`benchmarks.yaml` and `representations.yaml` beside this file hold the facts. A name is looked up by
id or alias, whatever its case; a name that the catalog does not list is the user's own and stays.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llava.config import build, read_yaml


@dataclass(frozen=True)
class Grader:
    """A service that judges answers, and what there is without one.

    `API_TYPE` and `MODEL_VERSION` are the environment variables that lmms-eval reads, too.
    """

    task: str
    """lmms-eval task whose answers the service judges."""
    keys: dict[str, str]
    """API_TYPE, the first where it is unset -> the variable that holds the service's key."""
    model: str
    """Which model judges, where MODEL_VERSION is unset."""
    without: str
    """lmms-eval task that compares option letters by itself."""

    def key(self, environment: Mapping[str, str] = os.environ) -> str:
        """The variable that the key is read from."""
        return self.keys.get(environment.get("API_TYPE", ""), next(iter(self.keys.values())))

    def judge(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The model that judges; None where no key is set."""
        if not environment.get(self.key(environment)):
            return None
        return environment.get("MODEL_VERSION") or self.model


@dataclass(frozen=True)
class Benchmark:
    """One column of performance, named by its lmms-eval task (or `task:metric`)."""

    id: str
    display: str
    group: str
    """`vision` or `ocr`, as the paper groups them (section 5.1); `other` outside of both."""
    metric: str
    """Metric name in lmms-eval's results."""
    unit: str
    aliases: list[str]
    task: str | None = None
    """lmms-eval task that measures it, where that is not the id."""
    items: int | None = None
    """Documents of the evaluated split: what the standard error of an accuracy rests on."""
    run_noise: float | None = None
    """Documented standard deviation between identical training runs, in `unit`."""
    spread: Literal["mean", "share", "circular", "mme", "groups"] = "mean"
    """How the value is made of what each question scored (llava/eval/evaluation/stderr.py)."""
    together: int = 1
    """Neighbouring documents that are scored together."""
    local: bool = False
    """Its data are files that the user has laid somewhere, and may change or change places."""
    pairs: bool = False
    """An accuracy of a pair benchmark that only `law pairs run` measures, no task of lmms-eval."""
    prompts: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Ways to ask, the usual one first: name -> what of lmms_eval_specific_kwargs it sets."""
    grader: Grader | None = None
    sets: list[str] = field(default_factory=list)
    """Names that stand for several benchmarks."""

    @property
    def in_law(self) -> bool:
        """One of the eight benchmarks that the paper fits the law on."""
        return "paper8" in self.sets

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every lmms-eval task that can measure it."""
        if self.pairs:
            return ()
        if self.grader:
            return (self.grader.task, self.grader.without)
        return (self.task or self.id,)


@dataclass(frozen=True)
class Representation:
    """One of the paper's 13 settings (Table 2): its display name and the towers that make it."""

    id: str
    display: str
    encoder: str
    resolution: int
    """Side of the square input, pixels."""
    family: str
    """`feed-forward`, `diffusion` or `combination`."""
    aliases: list[str]


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """Every known benchmark by id, in the paper's order."""
    return {entry.id: entry for entry in _read("benchmarks.yaml", Benchmark)}


@functools.cache
def benchmark_sets() -> dict[str, list[str]]:
    """Names that stand for several benchmarks, with the ids that they stand for."""
    found: dict[str, list[str]] = {}
    for entry in benchmarks().values():
        for name in entry.sets:
            found.setdefault(name, []).append(entry.id)
    return found


@functools.cache
def representations() -> dict[str, Representation]:
    """The paper's 13 settings by id, in the order of Table 4."""
    return {entry.id: entry for entry in _read("representations.yaml", Representation)}


def benchmark_id(name: str) -> str:
    """The id that `name` is an alias of, or `name` itself."""
    return _aliases(benchmarks).get(name.lower(), name)


def representation_id(name: str) -> str:
    """The id that `name` is an alias of, or `name` itself."""
    return _aliases(representations).get(name.lower(), name)


def display_benchmark(name: str) -> str:
    """What tables and figures call the benchmark."""
    entry = benchmarks().get(name)
    return entry.display if entry else name


def display_representation(name: str) -> str:
    """What tables and figures call the representation."""
    entry = representations().get(name)
    return entry.display if entry else name


def group(name: str) -> str:
    """`vision`, `ocr`, or `other` for a benchmark that the paper does not group."""
    entry = benchmarks().get(benchmark_id(name))
    return entry.group if entry else "other"


@functools.cache
def _aliases(table) -> dict[str, str]:
    """Lower-case id, display name and alias -> id; two entries never claim one name."""
    found: dict[str, str] = {}
    for entry in table().values():
        for name in {n.lower() for n in (entry.id, entry.display, *entry.aliases)}:
            if name in found:
                raise ValueError(f"'{name}' names both '{found[name]}' and '{entry.id}'")
            found[name] = entry.id
    return found


def _read(file: str, cls: type) -> list:
    path = Path(__file__).with_name(file)
    return [build(cls, entry, f"{file}[{i}]") for i, entry in enumerate(read_yaml(path))]
