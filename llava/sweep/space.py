"""The representations of a sweep: those listed, and the combinations of its search space."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.errors import LawError, UsageError, unknown_name
from llava.log import get_logger
from llava.model.multimodal_encoder.known import families, missing_packages, towers
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


def references(config: SweepConfig) -> list[Candidate]:
    """The references of the cosine A score; UsageError for one that cannot be run here.

    A mean over fewer references would be another quantity under the same name.
    """
    found = [_candidate(config, text) for text in extra_names(config)]
    for candidate in found:
        if missing := _missing(candidate):
            raise UsageError(
                f"alignment.cosine.references: {candidate.name} needs {missing}, which is not "
                "installed; install it, or take another reference"
            )
    return found


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
    texts = names(config)
    known = dict.fromkeys(_name(config, text) for text in texts)
    for text in config.policy.first:
        if _name(config, text) not in known:
            told = unknown_name("representation of this sweep", text, texts)
            raise UsageError(f"policy.first: {told}")
    _check_capitals([*known, *(_name(config, text) for text in extra_names(config))])
    if not any(awaited(config, text) for text in extra_names(config)):
        references(config)


def _check_capitals(names: Sequence[str]) -> None:
    """Raises UsageError for names whose folders are one where a disk does not tell capitals."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UsageError(
                f"representations: {other} and {name} differ in capitals only, and some disks do "
                "not tell them apart; rename one, with `towers:` if need be"
            )


def _name(config: SweepConfig, text: str) -> str:
    """As tables have it, or as the YAML has it where its towers are yet to be made."""
    return text if awaited(config, text) else _candidate(config, text).name


def awaited(config: SweepConfig, text: str) -> list[str]:
    """Towers of a name whose folders are in the run folder and not there yet."""
    return [
        name
        for name, source in named_in(text, config.towers).items()
        if Path(source).is_relative_to(config.run_dir) and not Path(source).is_dir()
    ]


def _candidate(config: SweepConfig, text: str) -> Candidate:
    aliases = named_in(text, config.towers)
    if lacking := awaited(config, text):
        source = aliases[lacking[0]]
        raise LawError(f"{text}: {source} is not there; a step of `prepare` must make it")
    flags = config.stage1
    asked = {
        "join": flags.get("mm_vision_join", "channel"),
        "select": flags.get("mm_vision_select_feature"),
        "layer": flags.get("mm_vision_select_layer"),
        "grid_align": flags.get("mm_vision_grid_align", ""),
    }
    key = (text, *asked.values())
    if key in _known:
        return Candidate(_known[key])
    representation = resolve(text, replace=aliases, **asked)
    if all(part.id in towers() for part in representation.parts):
        _known[key] = representation
    return Candidate(representation, tuple(aliases.items()))


_known: dict[tuple, Representation] = {}
"""Names that were resolved before; only of known towers, for a folder's may change."""


def _missing(candidate: Candidate) -> str:
    """The packages that a candidate's towers need and that are not installed; else nothing."""
    known = families()
    missing = [p for s in candidate.representation.parts for p in missing_packages(known[s.family])]
    return ", ".join(dict.fromkeys(missing))


def _tower_name(spec: TowerSpec, replace: Mapping[str, str]) -> str:
    used = {spec.id: replace[spec.id]} if spec.id in replace else {}
    own = spec_of(spec.id, used)
    return spec.id + (f"@{spec.size}" if spec.size != own.size else "") + suffix(spec)
