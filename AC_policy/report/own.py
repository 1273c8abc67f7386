"""What a results table holds of one's own: scores, performance, and whether the law holds on them.

Everything is taken benchmark by benchmark and for every kind of A score, so what one of them lacks
is told and does not hide the others.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from AC_policy.law import Fit, fit_law
from AC_policy.study import A_QUANTITY, Study, study_of
from llava import catalog
from llava.errors import TableError
from llava.results import UNITS, ResultsTable, read

LEAST_ROWS = 7
"""The law has six coefficients: with one of seven rows left out, six rows are left to fit them."""
NO_BENCHMARK = "no benchmark yet"
QUANTITY_NAMES = {"A_cosine": "A cosine", "A_nll": "A likelihood", "C_pck": "C"}


@dataclass(frozen=True)
class Column:
    """One quantity of every representation that has it."""

    quantity: str
    unit: str
    higher_is_better: bool
    values: dict[str, float]
    stderr: dict[str, float]

    @property
    def name(self) -> str:
        """As tables and axes call it."""
        return QUANTITY_NAMES.get(self.quantity, self.quantity)


@dataclass(frozen=True)
class Verdict:
    """The law on one benchmark with one kind of A score, or why it cannot be tested."""

    benchmark: str
    a: str
    n: int
    fits: dict[str, Fit] | None
    """Feature set of Table 3 -> fit; None where it cannot be tested."""
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether left-out rows are predicted better than a mean does, and than chance does."""
        law = self.fits["AC_degree2"]
        return bool(law.r2_loo > max(0.0, law.loo_null_p95))


@dataclass(frozen=True)
class Measured:
    """Every number on one benchmark."""

    benchmark: str
    scores: list[Column]
    """A of every kind at hand, then C."""
    performance: Column

    def representations(self) -> list[str]:
        """The best performance first; then, without one, the most scores, then the best C."""
        names = dict.fromkeys(
            name for column in [self.performance, *self.scores] for name in column.values
        )
        sign = 1 if self.performance.higher_is_better else -1
        known = self.performance.values

        def place(name: str) -> tuple[float, int, float]:
            scores = [column.values.get(name) for column in self.scores]
            last = scores[-1] if scores and scores[-1] is not None else -np.inf
            have = sum(score is not None for score in scores)
            return -sign * known.get(name, -sign * np.inf), -have, -last

        return sorted(names, key=place)


@dataclass(frozen=True)
class Own:
    """Everything about one's own table."""

    measured: list[Measured]
    verdicts: list[Verdict]
    candidates: tuple[str, ...]
    """Every representation that has a C score, so that it could be chosen."""
    missing: list[str]
    """What is left out, and why."""
    sources: tuple[str, ...]


def gather(tables: Iterable[str], protocols: dict[str, str], seed: int = 0) -> Own:
    """What the tables hold; `protocols` as for `load_study`."""
    table = read(tables)
    missing: dict[str, None] = {}
    measured, verdicts = [], []
    for benchmark in benchmarks(table) or _aligned(table) or [NO_BENCHMARK]:
        try:
            measured.append(_measured(table, benchmark, protocols, missing))
        except TableError as error:
            missing[str(error)] = None
            continue
        held = {column.quantity for column in measured[-1].scores}
        for a, quantity in A_QUANTITY.items():
            if quantity in held:
                verdicts.append(_verdict(table, benchmark, a, protocols, seed))
    candidates = table.present("representation", table.rows_of("quantity", "C_pck"))
    return Own(measured, verdicts, tuple(candidates), list(missing), table.sources)


def benchmarks(table: ResultsTable) -> list[str]:
    """Benchmarks with performance, in the table's order."""
    return table.present("benchmark", table.rows_of("quantity", "performance"))


def _aligned(table: ResultsTable) -> list[str]:
    """Benchmarks with A, where none has performance yet: by their own images, else by captions."""
    found = (
        table.present("benchmark", table.rows_of("quantity", quantity))
        for quantity in A_QUANTITY.values()
    )
    return next(filter(None, found), [])


def partial_study(
    tables: Iterable[str], a: str, protocols: dict[str, str]
) -> tuple[Study | None, list[str]]:
    """The study of those benchmarks that can have one, and why the others cannot."""
    table = read(tables)
    tasks, missing, used, left_out = {}, {}, {}, {}
    for benchmark in benchmarks(table):
        try:
            study = study_of(_only(table, benchmark), a, protocols)
        except TableError as error:
            missing[str(error)] = None
            continue
        tasks |= study.tasks
        for quantity, names in study.protocols.items():
            used.setdefault(quantity, set()).update(names)
        for why, names in study.left_out.items():
            left_out.setdefault(why, {}).update(dict.fromkeys(names))
    if not tasks:
        return None, list(missing) or ["no representation has a benchmark's result yet"]
    whole = Study(
        tasks,
        a,
        {quantity: sorted(names) for quantity, names in used.items()},
        table.sources,
        {why: list(names) for why, names in left_out.items()},
    )
    return whole, list(missing)


def _only(table: ResultsTable, benchmark: str) -> ResultsTable:
    """The table without other benchmarks' performance, and without the A on their images."""
    others = [name for name in benchmarks(table) if name != benchmark]
    of_others = np.zeros(len(table), bool)
    for name in others:
        of_others |= table.rows_of("benchmark", name)
    own = np.zeros(len(table), bool)
    for quantity in ("performance", *A_QUANTITY.values()):
        own |= table.rows_of("quantity", quantity)
    return _where(table, ~(of_others & own))


def _where(table: ResultsTable, rows: np.ndarray) -> ResultsTable:
    return replace(
        table,
        codes={name: codes[rows] for name, codes in table.codes.items()},
        value=table.value[rows],
        stderr=table.stderr[rows],
        higher_is_better=table.higher_is_better[rows],
    )


def _verdict(
    table: ResultsTable, benchmark: str, a: str, protocols: dict[str, str], seed: int
) -> Verdict:
    try:
        study = study_of(_only(table, benchmark), a, protocols)
        n = int(study.tasks[benchmark].finetuned.sum())
        if n < LEAST_ROWS:
            return Verdict(benchmark, a, n, None, _too_few(n))
        return Verdict(benchmark, a, n, fit_law(study, seed=seed).benchmarks[benchmark])
    except TableError as error:
        return Verdict(benchmark, a, 0, None, str(error))


def _too_few(n: int) -> str:
    return (
        f"too few rows: {n} finetuned representation{'s have' if n != 1 else ' has'} both scores, "
        f"and {LEAST_ROWS} are the least. The law has six coefficients, so it fits six rows or "
        "fewer whatever they say"
    )


def _measured(
    table: ResultsTable, benchmark: str, protocols: dict[str, str], missing: dict[str, None]
) -> Measured:
    """Raises TableError where performance itself is of several protocols or units."""
    name = catalog.display_benchmark(benchmark)
    performance = Column("performance", "percent", True, {}, {})
    if benchmark in benchmarks(table):
        performance = _column(table, "performance", benchmark, protocols)
    scores = []
    for quantity in QUANTITY_NAMES:
        try:
            where = _scored_on(table, quantity, benchmark)
            scores.append(_column(table, quantity, where, protocols))
        except TableError as error:
            missing[f"{name}: {error}"] = None
    return Measured(benchmark, scores, performance)


def _scored_on(table: ResultsTable, quantity: str, benchmark: str) -> str:
    """Whose images the scores for `benchmark` are of: its own, else the one set of no benchmark."""
    shown = QUANTITY_NAMES[quantity]
    found = table.present("benchmark", table.rows_of("quantity", quantity))
    if benchmark in found and quantity != "C_pck":
        return benchmark
    general = [name for name in found if name not in benchmarks(table)]
    if len(general) == 1:
        return general[0]
    if not general:
        raise TableError(f"no {shown} was measured for it")
    raise TableError(f"{shown} was measured on {' and '.join(general)}; it takes one of them")


def _column(
    table: ResultsTable, quantity: str, benchmark: str, protocols: dict[str, str]
) -> Column:
    rows = table.rows_of("quantity", quantity) & table.rows_of("benchmark", benchmark)
    chosen = protocols.get(f"{quantity}:{benchmark}", protocols.get(quantity))
    if chosen is not None:
        rows &= table.rows_of("protocol", chosen)
    held = table.present("protocol", rows)
    if len(held) > 1:
        raise TableError(
            f"{quantity} on {benchmark} has protocols {' and '.join(held)}; "
            f"--protocol {quantity}:{benchmark}={held[0]} takes one"
        )
    names = table.present("unit", rows)
    if len({UNITS[name][0] for name in names}) > 1:
        raise TableError(f"{quantity} on {benchmark} has units {' and '.join(names)}")
    if not names:
        raise TableError(f"no row of {quantity} on {benchmark}")
    unit = names[0]
    if UNITS[unit][0] == "ratio":
        unit = "fraction" if quantity.startswith("A_") else "percent"
    values, errors = {}, {}
    for row in np.flatnonzero(rows):
        factor = UNITS[table.names["unit"][table.codes["unit"][row]]][1] / UNITS[unit][1]
        name = table.names["representation"][table.codes["representation"][row]]
        values[name] = float(table.value[row] * factor)
        if np.isfinite(table.stderr[row]):
            errors[name] = float(table.stderr[row] * factor)
    higher = bool(table.higher_is_better[np.flatnonzero(rows)[0]])
    return Column(quantity, unit, higher, values, errors)
