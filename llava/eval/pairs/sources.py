"""Where published sets are to be had, and how large they are: `sources.yaml` as objects."""

import functools
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml

FILE = Path(__file__).with_name("sources.yaml")


@dataclass(frozen=True)
class Source:
    """One set that is published together."""

    set: str
    title: str
    config: str
    """YAML file that reads it, laid out as `layout` says."""
    get: list[str]
    """Addresses and commands."""
    layout: list[str]
    licence: str
    counts: dict[str, dict[str, int]]
    """Name of a benchmark -> how many `images` (questions about one, each counted) and `items`."""


@functools.cache
def sources() -> dict[str, Source]:
    """Every set by name, in the file's order."""
    entries = read_yaml(FILE)
    found = [build(Source, entry, f"{FILE.name}[{i}]") for i, entry in enumerate(entries)]
    return {one.set: one for one in found}


def published(benchmark: str) -> dict[str, int]:
    """How many images and items a benchmark has as published; empty for one that is not known."""
    return next((s.counts[benchmark] for s in sources().values() if benchmark in s.counts), {})
