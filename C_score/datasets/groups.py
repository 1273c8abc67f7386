"""Keypoints that share a meaning: the geo-aware groups and the swaps of a mirrored image.

The tables (`keypoint_groups.yaml`) hold ids of the annotations. A score works on columns, the
position of an id among those used. The reference gets from ids to columns in a way that is wrong
for some categories (bus, car, pottedplant, tvmonitor); both ways are here, the right one is the
default everywhere.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from llava.config import read_yaml
from llava.errors import UsageError, unknown_name

Items = tuple[int | tuple[int, ...], ...]
"""A row of a table: ids without a partner and groups of ids, in the table's order."""

Groups = tuple[tuple[int, ...], ...]
"""Groups of two or more."""

MAPPINGS = ("right", "reference")


def table_row(dataset: str, kind: str, category: str) -> Items:
    """The row of `kind` (`geo_aware`, `flip`, `flip_compact`); () where the set has none."""
    tables = _tables().get(dataset, {})
    rows = tables.get(kind, {})
    if kind == "flip_compact" and category not in rows:
        rows = tables.get("flip", {})
    return rows.get(category, rows.get("*", ()))


def table_categories(dataset: str) -> list[str]:
    """The categories that the tables of `dataset` know: for SPair-71k its 18."""
    return list(_tables()[dataset]["geo_aware"])


def groups_of(items: Items) -> Groups:
    """Only the groups of a row."""
    return tuple(item for item in items if isinstance(item, tuple) and len(item) > 1)


def right_columns(items: Items, slots: Sequence[int | str]) -> Items:
    """`items` as columns: every id becomes its position in `slots`, ids not in it are left out.

    A group of which one id is left becomes a single column.
    """
    column = {slot: i for i, slot in enumerate(slots)}
    return _renumbered(items, column)


def reference_columns(items: Items, slots: Sequence[int | str]) -> Items:
    """`items` as columns the way the reference does it (pck_train.py, `renumber`).

    The ids in use are numbered in the order in which the row lists them, not in ascending order,
    so a row such as [[0, 1], [2, 3, 5, 6], [4, 7]] sends id 5 to column 4. It is right only where
    the row, read from left to right, ascends.
    """
    used = set(slots)
    flat = [slot for item in items for slot in _ids(item) if slot in used]
    return _renumbered(items, {slot: i for i, slot in enumerate(flat)})


def geo_columns(dataset: str, category: str, slots: Sequence[int | str], mapping: str) -> Groups:
    """Geo-aware groups as columns of `slots`, by `mapping`: `right` or `reference`."""
    items = table_row(dataset, "geo_aware", category)
    return groups_of(_mapping(mapping)(items, slots))


def flip_columns(dataset: str, category: str, slots: Sequence[int | str], mapping: str) -> Items:
    """What the adaptive flip swaps, as columns of `slots`, with the columns that have no partner.

    The reference takes its compact table as it stands where that has as many ids as `slots`, which
    is right; otherwise it filters it by uncompacted ids and numbers the rest in the row's order.
    """
    if mapping == "right":
        return right_columns(table_row(dataset, "flip", category), slots)
    renumber = _mapping(mapping)
    items = table_row(dataset, "flip_compact", category)
    whole = sum(len(_ids(item)) for item in items) == len(slots)
    return items if whole else renumber(items, slots)


def _mapping(name: str):
    known = dict(zip(MAPPINGS, (right_columns, reference_columns), strict=True))
    if name not in known:
        raise UsageError(unknown_name("mapping", name, known))
    return known[name]


def _ids(item: int | tuple[int, ...]) -> tuple[int, ...]:
    return item if isinstance(item, tuple) else (item,)


def _renumbered(items: Items, column: dict) -> Items:
    found = []
    for item in items:
        left = tuple(column[slot] for slot in _ids(item) if slot in column)
        if left:
            found.append(left if len(left) > 1 else left[0])
    return tuple(found)


@functools.cache
def _tables() -> dict[str, dict[str, dict[str, Items]]]:
    """dataset -> kind -> category (`*` for all) -> row."""
    read = read_yaml(Path(__file__).with_name("keypoint_groups.yaml"))
    return {
        dataset: {
            kind: {
                category: tuple(tuple(i) if isinstance(i, list) else i for i in row)
                for category, row in rows.items()
            }
            for kind, rows in kinds.items()
        }
        for dataset, kinds in read.items()
    }
