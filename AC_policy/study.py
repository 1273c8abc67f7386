"""From rows of the results table to a study: candidates with A, C and performance per benchmark.

A study never mixes: each quantity has one protocol, each benchmark one unit. Scores are oriented so
that higher is better (a likelihood A score is negated), and predictions are turned back.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from AC_policy.features import min_max
from llava import catalog
from llava.errors import TableError, UsageError, unknown_name
from llava.log import get_logger
from llava.results import QUANTITIES, UNITS, ResultsTable, read

logger = get_logger("policy")

A_QUANTITY = {"cosine": "A_cosine", "nll": "A_nll"}


@dataclass(frozen=True, eq=False)
class Task:
    """One benchmark of a study: every candidate's scores, and performance where it is known.

    Attributes:
        benchmark: lmms-eval task.
        representations: the n candidates that have both scores.
        scores: [n, 2] A and C, oriented so that higher is better, in base units.
        performance: [n], oriented, in the benchmark's unit; NaN where not finetuned.
        stderr: [n] standard errors in the same unit; NaN where none is given.
        unit: unit of `performance` (fractions are turned into percent).
        sign: -1 where lower is better, so that `sign * performance` is what was measured.
        score_signs: the same of A and C.
        unaligned: representations with C and without A, and their C; only where they were asked
            for. They are no candidates of the law.
    """

    benchmark: str
    representations: tuple[str, ...]
    scores: np.ndarray
    performance: np.ndarray
    stderr: np.ndarray
    unit: str
    sign: int = 1
    score_signs: tuple[int, int] = (1, 1)
    unaligned: dict[str, float] = field(default_factory=dict)

    @property
    def finetuned(self) -> np.ndarray:
        """bool [n]."""
        return np.isfinite(self.performance)

    @property
    def finished(self) -> bool:
        """Whether every candidate is finetuned."""
        return bool(self.finetuned.all())

    @property
    def measured_scores(self) -> np.ndarray:
        """[n, 2] A and C as they were measured."""
        return self.scores * np.array(self.score_signs)

    @property
    def last_open(self) -> int:
        """Runs after which one candidate is left."""
        return len(self.performance) - 1

    def points(self, scale: str = "candidates") -> np.ndarray:
        """[n, 2] A and C min-max scaled, over all candidates or over the finetuned ones only."""
        over = self.scores if scale == "candidates" else self.scores[self.finetuned]
        return min_max(self.scores, over)

    def known_points(self, scale: str = "candidates") -> tuple[np.ndarray, np.ndarray]:
        """(points [k, 2], performance [k]) of the finetuned candidates."""
        return self.points(scale)[self.finetuned], self.performance[self.finetuned]

    def only(self, rows: Iterable[int]) -> "Task":
        """The same task with only the candidates `rows`, in that order."""
        rows = list(rows)
        return replace(
            self,
            representations=tuple(self.representations[row] for row in rows),
            scores=self.scores[rows],
            performance=self.performance[rows],
            stderr=self.stderr[rows],
        )

    def hide(self, keep: Iterable[int]) -> "Task":
        """The same task when only the candidates `keep` had been finetuned."""
        shown = np.full(len(self.performance), np.nan)
        keep = list(keep)
        shown[keep] = self.performance[keep]
        return replace(self, performance=shown)


@dataclass(frozen=True)
class Study:
    """Tasks that share their candidates, with the protocols of every number in them."""

    tasks: dict[str, Task]
    a: str
    """`cosine` or `nll`."""
    protocols: dict[str, list[str]]
    """Quantity -> its protocol on each benchmark, without repetition."""
    sources: tuple[str, ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Why -> representations that are no candidates."""

    def task(self, name: str) -> Task:
        """The task of a benchmark, by id or alias; UsageError with the nearest name otherwise."""
        name = catalog.benchmark_id(name)
        if name not in self.tasks:
            shown = [*self.tasks, *(catalog.display_benchmark(b) for b in self.tasks)]
            raise UsageError(unknown_name("benchmark", name, shown))
        return self.tasks[name]

    def measured(self, least: int = 1) -> list[Task]:
        """Tasks with at least `least` finetuned candidates."""
        return [task for task in self.tasks.values() if task.finetuned.sum() >= least]


def load_study(
    tables: Iterable[str | os.PathLike],
    a: str = "cosine",
    protocols: dict[str, str] | None = None,
    also: Iterable[str] = (),
    unaligned: bool = False,
    new: bool = False,
) -> Study:
    """The study that the results tables hold.

    Its benchmarks are those with performance; of the paper's twelve columns the eight of its law.

    Args:
        tables: CSV files in the results form.
        a: which A score the law takes, `cosine` or `nll`.
        protocols: `quantity`, or `quantity:benchmark`, which wins, to protocol; needed only where
            the tables hold several.
        also: benchmarks that are asked for, such as one that nothing is finetuned for yet; where
            there are any, one of the others that cannot be used is passed over aloud.
        unaligned: keep what has C and no A in `Task.unaligned`, rather than leave it out aloud.
        new: take `also` by name even where no row and no catalog knows it, and say so.

    Raises:
        TableError: no candidate, several protocols or units for one number, constant scores.
        UsageError: unknown A score, quantity or benchmark.
    """
    if a not in A_QUANTITY:
        raise UsageError(unknown_name("A score", a, A_QUANTITY))
    table = read(tables)
    return study_of(table, a, protocols or {}, also, unaligned, new)


def study_of(
    table: ResultsTable,
    a: str,
    protocols: dict[str, str],
    also: Iterable[str] = (),
    unaligned: bool = False,
    new: bool = False,
) -> Study:
    """The study that an already read table holds; see `load_study`."""
    also = list(also)
    names = _wanted(table, also, new)
    pivot = _Pivot(table, _chosen(table, protocols))
    c = pivot.shared("C_pck")
    tasks, left_out = {}, {}
    asked = {catalog.benchmark_id(name) for name in also}
    for name in names:
        try:
            task, without = _task(pivot, name, A_QUANTITY[a], c, unaligned)
        except TableError as error:
            if not asked or name in asked:
                raise
            logger.warning("%s does not take part: %s", name, error)
            continue
        tasks[name] = task
        for why, rows in without.items():
            known = left_out.setdefault(why, [])
            known.extend(row for row in rows if row not in known)
    for why, rows in left_out.items():
        shown = ", ".join(rows[:5]) + (", ..." if len(rows) > 5 else "")
        logger.warning("%d representations are no candidates, they %s: %s", len(rows), why, shown)
    used = {quantity: sorted(found) for quantity, found in pivot.used.items()}
    return Study(tasks, a, used, table.sources, left_out)


def _chosen(table: ResultsTable, protocols: dict[str, str]) -> dict[tuple[str, str], str]:
    """(quantity, benchmark, or nothing for all) -> protocol, each of which the table holds."""
    chosen = {}
    for where, protocol in protocols.items():
        quantity, _, name = where.partition(":")
        if quantity not in QUANTITIES:
            raise UsageError(unknown_name("quantity", quantity, QUANTITIES))
        rows = table.rows_of("quantity", quantity)
        benchmark = catalog.benchmark_id(name)
        if name:
            known = table.present("benchmark", rows)
            if benchmark not in known:
                raise UsageError(unknown_name(f"benchmark of {quantity}", name, known))
            rows &= table.rows_of("benchmark", benchmark)
        held = table.present("protocol", rows)
        if protocol not in held:
            raise UsageError(unknown_name(f"protocol of {where}", protocol, held))
        chosen[quantity, benchmark] = protocol
    return chosen


def _wanted(table: ResultsTable, also: Iterable[str], new: bool) -> list[str]:
    """Benchmark ids to take, the paper's eight first and in its order."""
    found = table.present("benchmark", table.rows_of("quantity", "performance"))
    known = catalog.benchmarks()
    law = [name for name, entry in known.items() if entry.in_law and name in found]
    wanted = law + [name for name in found if name not in known] or found
    also = [catalog.benchmark_id(name) for name in also]
    if not wanted and not also:
        raise TableError(
            f"{', '.join(table.sources)}: no row of quantity 'performance'; expected at least one "
            f"finetuned representation per benchmark"
        )
    scored = [
        name
        for quantity in A_QUANTITY.values()
        for name in table.present("benchmark", table.rows_of("quantity", quantity))
    ]
    allowed = dict.fromkeys([*found, *scored, *known])
    for name in also:
        if name not in allowed and new:
            logger.warning("%s: no table holds a row of it: nothing is finetuned for it yet", name)
        elif name not in allowed:
            shown = [*allowed, *(catalog.display_benchmark(entry) for entry in allowed)]
            raise UsageError(unknown_name("benchmark", name, shown))
    return list(dict.fromkeys([*wanted, *also]))


class _Pivot:
    """Columns of one quantity on one benchmark over all representations, checked for mixing."""

    def __init__(self, table: ResultsTable, protocols: dict[tuple[str, str], str]):
        self.table = table
        self.protocols = protocols
        self.names = table.names["representation"]
        self.used: dict[str, set[str]] = {}

    def column(self, quantity: str, benchmark: str) -> "_Column | None":
        """The numbers of (quantity, benchmark), or None where the table holds none."""
        table = self.table
        rows = self._rows(quantity, benchmark)
        if not rows.any():
            return None
        self._one_protocol(quantity, benchmark, rows)
        factor, unit = self._one_unit(quantity, benchmark, rows)
        higher = np.unique(table.higher_is_better[rows])
        if len(higher) > 1:
            raise TableError(
                f"{quantity} on {benchmark}: some rows say higher is better, others lower; "
                f"make higher_is_better the same in all of them"
            )
        sign = 1 if higher[0] else -1
        value, stderr = (np.full(len(self.names), np.nan) for _ in range(2))
        where = table.codes["representation"][rows]
        value[where] = sign * table.value[rows] * factor[rows]
        stderr[where] = table.stderr[rows] * factor[rows]
        return _Column(value, stderr, unit, sign)

    def shared(self, quantity: str) -> "_Column":
        """The one column of a quantity that does not depend on the benchmark (C)."""
        found = self._benchmarks_of(quantity)
        if not found:
            raise TableError(self._no_rows(quantity))
        if len(found) > 1:
            raise TableError(
                f"{quantity} was measured on {' and '.join(found)}; "
                f"the law takes one: pass --protocol {quantity}=NAME or remove the other rows"
            )
        return self.column(quantity, found[0])

    def alignment(self, quantity: str, benchmark: str) -> "_Column":
        """A on the benchmark's own images, else the one A that belongs to no benchmark."""
        own = self.column(quantity, benchmark)
        if own is not None:
            return own
        performance = self.table.rows_of("quantity", "performance")
        scored = set(self.table.present("benchmark", performance))
        general = [name for name in self._benchmarks_of(quantity) if name not in scored]
        if len(general) == 1:
            return self.column(quantity, general[0])
        if general:
            raise TableError(
                f"{benchmark}: {quantity} was measured on {' and '.join(general)}, none of which "
                f"has performance; name the images after the benchmark, or keep one set of rows "
                f"that stands for all benchmarks"
            )
        raise TableError(f"{benchmark}: {self._no_rows(quantity)}")

    def _rows(self, quantity: str, benchmark: str) -> np.ndarray:
        """bool [R]: the numbers of both, of the protocol that was chosen for them."""
        table = self.table
        rows = table.rows_of("quantity", quantity) & table.rows_of("benchmark", benchmark)
        for where in ((quantity, benchmark), (quantity, "")):
            if where in self.protocols:
                return rows & table.rows_of("protocol", self.protocols[where])
        return rows

    def _benchmarks_of(self, quantity: str) -> list[str]:
        present = self.table.present("benchmark", self.table.rows_of("quantity", quantity))
        return [name for name in present if self._rows(quantity, name).any()]

    def _no_rows(self, quantity: str) -> str:
        meaning = QUANTITIES[quantity][0]
        protocol = self.protocols.get((quantity, ""))
        of = f" of protocol '{protocol}'" if protocol is not None else ""
        sources = ", ".join(self.table.sources)
        return f"no row of quantity '{quantity}'{of} ({meaning}) in {sources}"

    def _one_protocol(self, quantity: str, benchmark: str, rows: np.ndarray) -> None:
        found = self.table.present("protocol", rows)
        if len(found) > 1:
            shown = " and ".join(f"'{name}'" for name in found)
            raise TableError(
                f"{quantity} on {benchmark} has rows of protocols {shown}; numbers of different "
                f"protocols do not compare: pass --protocol {quantity}:{benchmark}="
                f"{found[0] or 'NAME'}"
            )
        self.used.setdefault(quantity, set()).update(found)

    def _one_unit(self, quantity: str, benchmark: str, rows: np.ndarray):
        """(factor of every row [R], unit): ratios become percent for performance, else fraction."""
        units = self.table.present("unit", rows)
        dimensions = {UNITS[unit][0] for unit in units}
        if len(dimensions) > 1:
            raise TableError(
                f"{quantity} on {benchmark} has units {' and '.join(units)}, which do not convert "
                f"into each other; give every row the same unit"
            )
        wanted = units[0]
        if dimensions == {"ratio"}:
            wanted = "percent" if quantity == "performance" else "fraction"
        sizes = np.array([UNITS[name][1] for name in self.table.names["unit"]])
        return sizes[self.table.codes["unit"]] / UNITS[wanted][1], wanted


@dataclass(frozen=True)
class _Column:
    value: np.ndarray
    stderr: np.ndarray
    unit: str
    sign: int


def _task(pivot: _Pivot, benchmark: str, a_quantity: str, c: _Column, unaligned: bool):
    """(task, why -> representations left out); raises TableError where no law can be fitted."""
    a = pivot.alignment(a_quantity, benchmark)
    performance = pivot.column("performance", benchmark)
    if performance is None:
        unknown = np.full(len(pivot.names), np.nan)
        performance = _Column(unknown, unknown, "percent", 1)
    has_a, has_c = np.isfinite(a.value), np.isfinite(c.value)
    has_y = np.isfinite(performance.value)
    names = np.array(pivot.names, dtype=object)
    left_out = {
        why: list(names[rows])
        for why, rows in (
            (f"have no {a_quantity}", ~has_a & (has_y & ~has_c if unaligned else has_y | has_c)),
            ("have no C_pck", ~has_c & (has_y | has_a)),
        )
        if rows.any()
    }
    apart = ~has_a & has_c & unaligned
    keep = has_a & has_c
    if keep.sum() < 2:
        raise TableError(
            f"{benchmark}: {keep.sum()} representation(s) have both {a_quantity} and C_pck; a law "
            f"needs at least 2"
        )
    scores = np.stack([a.value[keep], c.value[keep]], 1)
    for name, column, sign in (
        (a_quantity, scores[:, 0], a.sign),
        ("C_pck", scores[:, 1], c.sign),
    ):
        if np.ptp(column) == 0:
            raise TableError(
                f"{benchmark}: {name} is {sign * column[0]:g} for all {len(column)} candidates; "
                f"a law needs scores that differ"
            )
    task = Task(
        benchmark,
        tuple(names[keep]),
        scores,
        performance.value[keep],
        performance.stderr[keep],
        performance.unit,
        performance.sign,
        (a.sign, c.sign),
        dict(zip(names[apart], c.value[apart].tolist(), strict=True)),
    )
    return task, left_out
