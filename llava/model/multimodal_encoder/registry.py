"""The one place where names become specs. Nothing here imports torch.

A name is an alias (`clip@336`, `C+D@336`), a known id, a local folder or a hub id, or several of
them joined by `.` or `+`. `.` also stands inside ids, so a name is parsed by longest match, never
split. `@336` behind a part sets its input size, `:t=261` an option of a diffusion tower.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llava import catalog
from llava.config import to_plain
from llava.errors import UnknownNameError, UsageError, unknown_name
from llava.model.multimodal_encoder.diffusion.options import DiffusionOptions, suffix
from llava.model.multimodal_encoder.known import families, towers
from llava.model.multimodal_encoder.pretrained import read_spec
from llava.model.multimodal_encoder.spec import Select, TowerSpec

JOINERS = ".+"
JOINS = ("channel", "append", "interleave")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
OPTION = re.compile(r":([a-z_]+)=([^:.+@]*)")


class Asked(NamedTuple):
    """One part of a name."""

    known: str
    """Id, folder or hub id."""
    size: int | None = None
    options: DiffusionOptions = DiffusionOptions()


@dataclass(frozen=True)
class Representation:
    """One tower or several, every size settled.

    Attributes:
        name: ids joined by `.`, with `@size` and `:option=value` where that is not the usual;
            stands in results tables.
        parts: a spec per tower.
        join: `channel`: widths add up; `append`: tokens add up; `interleave`: tokens alternate.
        grid_align: `` (unequal grids are an error) or `interpolate`.
    """

    name: str
    parts: tuple[TowerSpec, ...]
    join: str = "channel"
    grid_align: str = ""

    def __post_init__(self):
        _check_selected(self.parts, self.join)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of the joined tokens: the largest grid of the parts."""
        return max(part.grid for part in self.parts)

    @property
    def dim(self) -> int:
        """Width of a token, which is what the projector takes in."""
        widths = [part.dim for part in self.parts]
        if self.join != "channel" and len(set(widths)) > 1:
            raise UsageError(
                f"the parts of {self.name} are {' and '.join(map(str, widths))} wide, and join "
                f"'{self.join}' needs one width; project each part first"
            )
        return sum(widths) if self.join == "channel" else widths[0]

    @property
    def tokens(self) -> int:
        """Tokens of an image after the join."""
        if self.join != "channel":
            return sum(part.tokens for part in self.parts)
        first = self.parts[0]
        if first.select == "cls":
            return 1
        rows, columns = self.grid
        return rows * columns + first.tokens - first.grid[0] * first.grid[1]

    @property
    def file_name(self) -> str:
        """The name as part of a file name."""
        return self.name.replace("/", "--")


def resolve(
    name: str | Sequence[str],
    *,
    join: str = "channel",
    select: Select | None = None,
    layer: int | None = None,
    grid_align: str = "",
    replace: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    diffusion: DiffusionOptions | None = None,
) -> Representation:
    """The representation that `name` (or a list of names, joined) stands for.

    `select` and `layer` override every part's own; a diffusion tower's layer is among its options,
    `diffusion`, instead. `replace` maps a tower's id to the folder or id
    that its weights are read from, `sizes` to the size that counts as its own. Raises
    UnknownNameError for a name that is none, with the nearest one, UsageError for parts that do not
    go together.
    """
    names = [name] if isinstance(name, str) else list(name)
    if not names:
        raise UsageError("a representation needs at least one tower; `law towers` lists them")
    if join not in JOINS:
        raise UsageError(unknown_name("join", join, JOINS))
    asked = _asked(names, replace)
    unused = set(replace or {}) - {part.known for part in asked}
    if unused:
        raise UsageError(
            f"no part of '{'.'.join(names)}' is {' or '.join(sorted(unused))}; its parts are "
            + ", ".join(part.known for part in asked)
        )
    own = [_changed(spec_of(part.known, replace), select, layer) for part in asked]
    own = [
        _with_size(spec, (sizes or {}).get(part.known) if spec.flexible else None)
        for spec, part in zip(own, asked, strict=True)
    ]
    diffusion = diffusion or DiffusionOptions()
    diffusion.check_taken(own)
    for spec, part in zip(own, asked, strict=True):
        part.options.check_taken([spec])
    own = [
        diffusion.under(part.options).applied(spec) for spec, part in zip(own, asked, strict=True)
    ]
    wanted = [
        diffusion.img_size if part.size is None and spec.t is not None else part.size
        for spec, part in zip(own, asked, strict=True)
    ]
    specs = [_with_size(spec, size) for spec, size in zip(own, wanted, strict=True)]
    specs = _settle_grids(specs, [size is not None for size in wanted], join, grid_align)
    usual = _usual_sizes(own, join, grid_align)
    full = ".".join(
        part.known + (f"@{size}" if size and size != expected else "") + suffix(spec)
        for part, spec, size, expected in zip(asked, specs, wanted, usual, strict=True)
    )
    return Representation(full, tuple(specs), join, grid_align)


def part_ids(name: str, replace: Mapping[str, str] | None = None) -> list[str]:
    """Ids, folders and hub ids that a name stands for; nothing of theirs is read.

    Raises UnknownNameError for a name that is none.
    """
    return [part.known for part in _asked([name], replace)]


def spec_of(known: str, replace: Mapping[str, str] | None = None) -> TowerSpec:
    """The spec of one id, local folder or hub id, at its own size."""
    source = (replace or {}).get(known, known)
    if source in towers() and not Path(source).is_dir():
        spec = towers()[source]
        if known in (replace or {}) and source == known:  # its own id, and not the usual copy
            spec = dataclasses.replace(spec, weights="")
    else:
        spec = read_spec(source, families())
    if source != known:
        spec = dataclasses.replace(spec, id=known, weights=spec.weights or source)
    return spec


def tower_class(spec: TowerSpec) -> type:
    """The class that builds `spec`; its module is imported now, with what it needs."""
    family = families().get(spec.family)
    if family is None:
        raise UsageError(unknown_name("family", spec.family, families()))
    module, _, name = family.tower.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def _known() -> dict[str, tuple[str, int | None]]:
    """Lower-case id or alias -> (id, size or None), longest first."""
    found: dict[str, tuple[str, int | None]] = {
        name.lower(): (entry.id, None)
        for entry in catalog.representations().values()
        if entry.family != "combination"
        for name in (entry.id, entry.display, *entry.aliases)
    }
    for family in families().values():
        for tower in family.towers:
            found[tower.id.lower()] = (tower.id, None)
        for alias, target in family.aliases.items():
            known, _, size = target.partition("@")
            found[alias.lower()] = (known, int(size) if size else None)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def known_names() -> list[str]:
    """Every id and alias, as a suggestion is looked for among."""
    aliases = [alias for family in families().values() for alias in family.aliases]
    return [*towers(), *aliases, *(e.display for e in catalog.representations().values())]


def _asked(names: Sequence[str], replace: Mapping[str, str] | None) -> list[Asked]:
    return [part for text in names for part in _moved(text, replace) or _parts(text)]


def _moved(text: str, replace: Mapping[str, str] | None) -> list[Asked]:
    """The part that is a folder whose weights are elsewhere now; it need not be there."""
    known = _folder_id(text)
    return [Asked(known)] if "/" in text and known in (replace or {}) else []


def _parts(text: str) -> list[Asked]:
    """Every part of a name."""
    text = text.strip()
    parsed = _parse(catalog.representation_id(text)) if text else None
    if parsed is None:
        wrong = unknown_name("tower", text, known_names(), "law towers")
        raise UnknownNameError(
            f"{wrong}{'' if wrong.endswith('?') else '.'} A local folder or hub id of a supported "
            "family works too, several are joined by '.' or '+', NAME@336 sets the input size and "
            "NAME:t=261 an option of a diffusion tower"
        )
    return parsed


def _parse(text: str) -> list[Asked] | None:
    """The parts of `text`, longest match first with backtracking, or None."""
    for end, known, size in _beginnings(text):
        rest = text[end:]
        asked = re.match(r"@([0-9]+)(?![\w/])", rest)
        if asked:
            size, rest = int(asked[1]), rest[asked.end() :]
        options = {}
        while option := OPTION.match(rest):
            if option[1] in options:
                raise UsageError(f"'{text}' says {option[1]} twice")
            options[option[1]], rest = option[2], rest[option.end() :]
        if options and (late := re.match(r"@[0-9]+", rest)):
            raise UsageError(f"'{text}': the size {late[0]} stands before the options")
        part = Asked(known, size, DiffusionOptions.read(options) if options else DiffusionOptions())
        if not rest:
            return [part]
        if rest[0] in JOINERS and (following := _parse(rest[1:])):
            return [part, *following]
    return None


def _beginnings(text: str) -> Iterator[tuple[int, str, int | None]]:
    """(length, id, size) of what `text` may begin with: folders and known names, then hub ids."""
    cuts = [i for i, letter in enumerate(text) if letter in JOINERS + "@:"]
    beginnings = [text[:end] for end in (len(text), *reversed(cuts)) if end]
    folders = [part for part in beginnings if _is_folder(part)]
    yield from ((len(part), _folder_id(part), None) for part in folders if "/" in part)
    lower = text.lower()
    for name, (known, size) in _known().items():
        if lower.startswith(name):
            yield len(name), known, size
    yield from ((len(part), _folder_id(part), None) for part in folders if "/" not in part)
    yield from ((len(part), part, None) for part in beginnings if HUB_ID.fullmatch(part))


def _is_folder(text: str) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, not readable, no such home
        return False


def _folder_id(text: str) -> str:
    """One spelling for a folder: `a`, `a/` and `b/../a` are all `./a`, which is never an alias."""
    path = os.path.normpath(Path(text).expanduser())
    return path if "/" in path else f"./{path}"


def _changed(spec: TowerSpec, select: Select | None, layer: int | None) -> TowerSpec:
    changes = {"select": select, "layer": layer}
    changes = {key: value for key, value in changes.items() if value is not None}
    try:
        return dataclasses.replace(spec, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _usual_sizes(own: list[TowerSpec], join: str, grid_align: str) -> list[int]:
    """The sizes that the parts take where none is asked for, which a name need not say."""
    with contextlib.suppress(UsageError):  # without a size they do not fit: each one's own
        own = _settle_grids(own, [False] * len(own), join, grid_align)
    return [spec.size for spec in own]


def _with_size(spec: TowerSpec, size: int | None) -> TowerSpec:
    """The spec at the size asked for; only a flexible tower has another than its own."""
    if size is None or size == spec.size:
        return spec
    if not spec.flexible:
        siblings = [t.id for t in towers().values() if t.family == spec.family and t.size == size]
        hint = f"; at {size} px there is {', '.join(siblings[:3])}" if siblings else ""
        raise UsageError(f"{spec.id} takes {spec.size} x {spec.size} px only{hint}")
    try:
        return spec.at(size)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _settle_grids(
    specs: list[TowerSpec], fixed: list[bool], join: str, grid_align: str
) -> list[TowerSpec]:
    """Sizes so that grids agree: flexible parts adopt the first fixed grid, else the first's own.

    Raises UsageError naming two parts whose grids stay unequal, unless they are interpolated, or
    that select unlike tokens.
    """
    if grid_align not in ("", "interpolate"):
        raise UsageError(unknown_name("grid_align", grid_align, ["interpolate"]))
    _check_selected(specs, join)
    if len(specs) == 1 or join == "append" or all(spec.select == "cls" for spec in specs):
        return specs
    free = [s.flexible and not f for s, f in zip(specs, fixed, strict=True)]
    leader = specs[free.index(False)] if False in free else specs[0]
    settled = [
        spec.at(leader.grid[0] * spec.patch) if can else spec
        for spec, can in zip(specs, free, strict=True)
    ]
    for spec in settled:
        if spec.grid != leader.grid and not (grid_align and join == "channel"):
            raise UsageError(
                f"{leader.id} has a grid of {leader.grid[0]} x {leader.grid[1]}, {spec.id} one of "
                f"{spec.grid[0]} x {spec.grid[1]}, and tokens are joined place by place; take "
                f"towers of one grid, or say grid_align: interpolate"
            )
    return settled


def _check_selected(specs: Sequence[TowerSpec], join: str) -> None:
    """UsageError naming two parts that select unlike tokens, where these are joined one by one."""
    first = specs[0]
    other = next((spec for spec in specs if spec.select != first.select), first)
    if other is not first and join != "append":
        raise UsageError(
            f"{first.id} selects '{first.select}' ({first.tokens} tokens of an image), {other.id} "
            f"'{other.select}' ({other.tokens}), and tokens are joined one by one; select the same "
            "of all, e.g. --mm_vision_select_feature patch (--select patch of `law features`)"
        )


def plain(representation: Representation) -> dict:
    """The representation as what JSON and YAML hold, with each part's hash."""
    return {
        "name": representation.name,
        "join": representation.join,
        "grid_align": representation.grid_align,
        "parts": [{**to_plain(part), "hash": part.hash()} for part in representation.parts],
    }


def named_in(text: str, towers: Mapping[str, str]) -> dict[str, str]:
    """Those of `towers` (a tower's name -> where its weights are) that a representation names."""
    return {
        name: source
        for name, source in towers.items()
        if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", text)
    }


def parts_of(name: str, towers: Mapping[str, str] | None = None) -> list[str]:
    """Ids of a representation's towers, in order; `towers` as `parse_replacements` gives them.

    Raises UnknownNameError for a name that is none.
    """
    return [part.known for part in _moved(name, towers) or _parts(name)]


def replacements_in(name: str, towers: Mapping[str, str]) -> dict[str, str]:
    """Those of `parse_replacements`' towers that are parts of a representation, by any alias."""
    parts = parts_of(name, towers)
    return {known: source for known, source in towers.items() if known in parts}


def parse_replacements(pairs: Sequence[str]) -> dict[str, str]:
    """`OLD=NEW` flags as a mapping from a tower's id to where its weights are.

    OLD is a name, or the path of a folder that is no longer there, as a model's config names it.
    """
    found = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not old or not new:
            raise UsageError(f"'{pair}': expected OLD=NEW, a tower's name and a folder or hub id")
        known = _alone(old)
        if _is_folder(new):
            found[known] = _folder_id(new)
        else:
            found[known], _ = _known().get(new.lower(), (new, None))
    return found


def _alone(old: str) -> str:
    """The id of the one tower that `old` names; UsageError for several, or for one with settings.

    A path that is nothing else names a folder that was there.
    """
    if "/" in old and _parse(catalog.representation_id(old)) is None:
        return _folder_id(old)
    part, *more = _parts(old)
    if more:
        raise UsageError(f"'{old}' names several towers; replace them one by one")
    if part.size or part.options.given:
        raise UsageError(f"'{old}': name the tower alone, {part.known}, without its settings")
    return part.known
