"""The families of towers that are known: those of this package, then those of installed ones.

Nothing here imports torch.
"""

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from packaging.requirements import Requirement

from llava.config import build, read_yaml
from llava.errors import ConfigError, MissingPackageError
from llava.log import get_logger
from llava.model.multimodal_encoder.spec import Family, TowerSpec

logger = get_logger("towers")

ENTRY_POINTS = "llava.vision_towers"


@functools.cache
def families() -> dict[str, Family]:
    """Every family by name: those beside this file, then those of installed packages."""
    found: dict[str, Family] = {}
    for path in sorted(Path(__file__).with_name("families").glob("*.yaml")):
        _add(found, read_family(read_yaml(path), path.name), path.name)
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: (p.name, p.value)):
        where = f"entry point {point.name} = {point.value}"
        try:
            added = [f if isinstance(f, Family) else read_family(f, where) for f in point.load()]
        except Exception as error:  # another package's module can fail in any way
            logger.warning("%s does not load and is left out: %s", where, error)
            continue
        for family in added:
            _add(found, family, where)
    return found


def read_family(value: object, where: str) -> Family:
    """A family from plain values; each tower takes what it does not say from `defaults`."""
    if isinstance(value, Mapping):
        shared = {**(value.get("defaults") or {}), "family": value.get("name")}
        listed = [{**shared, **tower} for tower in value.get("towers") or []]
        value = {**value, "towers": listed}
    return build(Family, value, where)


def _add(found: dict[str, Family], family: Family, where: str) -> None:
    """Adds a family; a name, id or alias that another family has is an error, not a choice."""
    if family.name in found:
        raise ConfigError(f"{where}: there is already a family '{family.name}'")
    taken = {name.lower(): other.name for other in found.values() for name in names_of(other)}
    for name in names_of(family):
        if name.lower() in taken:
            raise ConfigError(f"{where}: '{name}' is already of family '{taken[name.lower()]}'")
        taken[name.lower()] = family.name
    found[family.name] = family


def names_of(family: Family) -> list[str]:
    """Ids and aliases of a family."""
    return [*(tower.id for tower in family.towers), *family.aliases]


@functools.cache
def towers() -> dict[str, TowerSpec]:
    """Every known tower by id."""
    return {tower.id: tower for family in families().values() for tower in family.towers}


def missing_packages(family: Family) -> list[str]:
    """The requirements of a family that are not installed."""
    return [text for text in family.needs if not _met(text, version)]


@functools.cache
def _met(text: str, version_of: Callable[[str], str]) -> bool:
    """Whether a requirement is met; a thousand combinations ask for the same few."""
    requirement = Requirement(text)
    try:
        return requirement.specifier.contains(version_of(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def check_packages(spec: TowerSpec) -> None:
    """Raises MissingPackageError where what the tower's family needs is not installed."""
    family = families()[spec.family]
    if missing := missing_packages(family):
        raise MissingPackageError(f"{spec.id} needs {', '.join(missing)}; type `{family.install}`")
