"""`configs/pairs/*.yaml`: which benchmarks, of which kind, and where their files are."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.config import build, read_yaml
from llava.errors import ConfigError, LawError, UsageError, unknown_name
from llava.eval.pairs.items import Benchmark
from llava.eval.pairs.sources import published
from llava.log import get_logger

logger = get_logger("pairs")

KINDS = {
    "whatsup": "llava.eval.pairs.readers.whatsup:WhatsUp",
    "spatial": "llava.eval.pairs.readers.spatial:Spatial",
    "mmvp": "llava.eval.pairs.readers.mmvp:MMVP",
    "mmvp_vlm": "llava.eval.pairs.readers.mmvp_vlm:MMVPVLM",
    "grid": "llava.eval.pairs.readers.grid:Grid",
}
"""`kind` -> the dataclass whose fields are a benchmark's other keys; `read()` reads it."""


@dataclass(frozen=True)
class PairsConfig:
    """A file of benchmarks."""

    benchmarks: list[dict[str, Any]]
    """Each with `name`, `kind`, the keys of its kind, and perhaps `expect: published`."""


def read_benchmarks(
    path: Path, only: Sequence[str] = (), limit: int | None = None
) -> list[Benchmark]:
    """The benchmarks of a file, or of them those named `only`; of each the first `limit` items.

    Raises ConfigError for a file that cannot be meant, LawError for data that is not as published.
    """
    entries = _entries(path)
    for name in only:
        if name not in entries:
            raise UsageError(f"--only: {path}: {unknown_name('benchmark', name, entries)}")
    chosen = [name for name in entries if not only or name in only]
    return [_limited(_read(*entries[name]), limit) for name in chosen]


def _entries(path: Path) -> dict[str, tuple[Any, bool]]:
    """Name -> (reader, whether published counts must be met), every key checked."""
    value = read_yaml(path)
    try:
        config = build(PairsConfig, {} if value is None else value)
        entries: dict[str, tuple[Any, bool]] = {}
        for place, entry in enumerate(config.benchmarks):
            reader, strict = _entry(entry, f"benchmarks[{place}]")
            if reader.name in entries:
                raise ConfigError(f"benchmarks[{place}]: '{reader.name}' stands there twice")
            entries[reader.name] = reader, strict
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not entries:
        raise ConfigError(f"{path}: benchmarks: expected at least one")
    return entries


def _entry(entry: dict[str, Any], where: str) -> tuple[Any, bool]:
    keys = dict(entry)
    kind, expect = keys.pop("kind", None), keys.pop("expect", None)
    if kind not in KINDS:
        raise ConfigError(f"{where}.kind: {unknown_name('kind', str(kind), KINDS)}")
    if expect not in (None, "published"):
        raise ConfigError(f"{where}.expect: '{expect}'; expected `published`, or no such key")
    module, _, name = KINDS[kind].partition(":")
    return build(getattr(importlib.import_module(module), name), keys, where), bool(expect)


def _read(reader: Any, strict: bool) -> Benchmark:
    benchmark = reader.read()
    difference = size_difference(benchmark)
    if difference and strict:
        raise LawError(f"{difference}; take the published data, or take `expect` out")
    if difference:
        logger.warning("%s; the numbers will not compare with published ones", difference)
    return benchmark


def size_difference(benchmark: Benchmark) -> str:
    """In what a benchmark that is known by its name differs in size; '' where in nothing."""
    counts = published(benchmark.name)
    found = {
        "images": sum(len(item.images) for item in benchmark.items),
        "items": len(benchmark.items),
    }
    told = [
        f"{found[what]} {what}, published {count}"
        for what, count in counts.items()
        if found[what] != count
    ]
    return f"{benchmark.name}: {'; '.join(told)}" if told else ""


def _limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    if limit is None or limit >= len(benchmark.items):
        return benchmark
    protocol = "/".join(filter(None, (benchmark.protocol, f"limit={limit}")))
    return Benchmark(benchmark.name, benchmark.items[:limit], benchmark.chooses, protocol)
