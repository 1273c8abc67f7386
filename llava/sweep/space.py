"""The representations of a sweep: those listed, and the combinations of its search space."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.errors import LawError, UsageError
from llava.log import get_logger
from llava.model.multimodal_encoder.known import families, missing_packages
from llava.model.multimodal_encoder.registry import (
    Representation,
    named_in,
    resolve,
    spec_of,
    suffix,
)
from llava.model.multimodal_encoder.spec import TowerSpec
from llava.sweep.config import Search, SweepConfig

logger = get_logger("run")


@dataclass(frozen=True)
class Candidate:
    """One vision representation of a sweep."""

    representation: Representation
    aliases: tuple[tuple[str, str], ...] = ()
    """(tower, folder or hub id) where its weights are read from elsewhere."""

    @property
    def name(self) -> str:
        """As results tables have it."""
        return self.representation.name

    @property
    def towers(self) -> dict[str, TowerSpec]:
        """Name of each tower, which `law features --model` takes -> its spec."""
        replace = dict(self.aliases)
        return {_tower_name(spec, replace): spec for spec in self.representation.parts}


def names(config: SweepConfig) -> list[str]:
    """Every name that the YAML asks for, the search space's combinations by their number."""
    found = [*config.representations, *(combinations(config.search) if config.search else ())]
    for name in found:
        if not name.strip():
            raise UsageError("representations: a name is empty; `law towers` lists towers")
    return list(dict.fromkeys(found))


def combinations(search: Search) -> Iterator[str]:
    """All combinations of up to `up_to` encoders, joined by `+`, single ones first."""
    apart = [set(group) for group in search.without]
    for count in range(1, search.up_to + 1):
        for parts in itertools.combinations(search.encoders, count):
            if not any(len(group & set(parts)) > 1 for group in apart):
                yield "+".join(parts)


def extra_names(config: SweepConfig) -> list[str]:
    """References of the cosine A score, which may be no candidates."""
    return list(config.alignment.cosine.references) if config.alignment.cosine else []


def candidates(config: SweepConfig, texts: Sequence[str]) -> list[Candidate]:
    """The candidates of these names, each once, in order; those whose packages lack are left out.

    Raises UnknownNameError, UsageError for names and combinations that stand for nothing.
    """
    found: dict[str, Candidate] = {}
    lacking: dict[str, list[str]] = {}
    for text in texts:
        candidate = _candidate(config, text)
        missing = _missing(candidate)
        if missing:
            lacking.setdefault(missing, []).append(candidate.name)
        else:
            found.setdefault(candidate.name, candidate)
    for missing, without in lacking.items():
        shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        logger.warning("left out for want of %s: %s", missing, shown)
    return list(found.values())


def check_names(config: SweepConfig) -> None:
    """Raises UsageError for names that can be seen to be wrong before `prepare` has run."""
    for text in [*names(config), *extra_names(config)]:
        if not _awaited(config, text):
            _candidate(config, text)


def _awaited(config: SweepConfig, text: str) -> list[str]:
    """Towers of a name whose folders are in the run folder and not there yet."""
    return [
        name
        for name, source in named_in(text, config.towers).items()
        if Path(source).is_relative_to(config.run_dir) and not Path(source).is_dir()
    ]


def _candidate(config: SweepConfig, text: str) -> Candidate:
    aliases = named_in(text, config.towers)
    if awaited := _awaited(config, text):
        source = aliases[awaited[0]]
        raise LawError(f"{text}: {source} is not there; a step of `prepare` must make it")
    flags = config.stage1
    representation = resolve(
        text,
        join=flags.get("mm_vision_join", "channel"),
        select=flags.get("mm_vision_select_feature"),
        layer=flags.get("mm_vision_select_layer"),
        grid_align=flags.get("mm_vision_grid_align", ""),
        replace=aliases,
    )
    return Candidate(representation, tuple(aliases.items()))


def _missing(candidate: Candidate) -> str:
    """The packages that a candidate's towers need and that are not installed; else nothing."""
    known = families()
    missing = [p for s in candidate.representation.parts for p in missing_packages(known[s.family])]
    return ", ".join(dict.fromkeys(missing))


def _tower_name(spec: TowerSpec, replace: Mapping[str, str]) -> str:
    used = {spec.id: replace[spec.id]} if spec.id in replace else {}
    own = spec_of(spec.id, used)
    return spec.id + (f"@{spec.size}" if spec.size != own.size else "") + suffix(spec)
