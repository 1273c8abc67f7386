"""Names that everybody shares: benchmarks and the paper's vision representations, as data.

`benchmarks.yaml` and `representations.yaml` beside this file hold the facts. A name is looked up by
id or alias, whatever its case; a name that the catalog does not list is the user's own and stays.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml


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
    items: int | None = None
    """Questions of the evaluated split: what the standard error of an accuracy rests on."""
    run_noise: float | None = None
    """Documented standard deviation between identical training runs, in `unit`."""
    in_law: bool = False
    """One of the eight benchmarks that the paper fits the law on."""


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
