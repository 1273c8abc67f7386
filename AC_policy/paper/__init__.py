"""The paper's Tables 1 to 5 in the results form, and the study of its 13 settings."""

import functools
from pathlib import Path

import numpy as np

from AC_policy.study import Study, load_study
from llava.results import read

FOLDER = Path(__file__).parent
TABLES = {
    1: FOLDER / "table1_policy.csv",
    2: FOLDER / "table2_settings.csv",
    3: FOLDER / "table3_r2.csv",
    4: FOLDER / "table4_performance.csv",
    5: FOLDER / "table5_scores.csv",
}
LAW_TABLES = (TABLES[4], TABLES[5])
"""What the law is fitted on: performance, and the A and C scores."""


@functools.cache
def paper_study() -> Study:
    """The 13 settings on the eight benchmarks of the law (Tables 4 and 5)."""
    return load_study(LAW_TABLES)


def is_paper(study: Study) -> bool:
    """Whether a study is the paper's own, so that published figures belong beside it."""
    return set(study.sources) == {str(path) for path in LAW_TABLES}


@functools.cache
def published_policy() -> dict[str, tuple[float, float]]:
    """Table 1: benchmark, `random` or `average` -> (finetunings k', first hit at 3 in percent)."""
    runs = _values(TABLES[1], "finetunings")
    hits = _values(TABLES[1], "first_hit_at_3")
    return {name: (runs[name], hits[name]) for name in runs}


@functools.cache
def published_r2() -> dict[tuple[str, str], float]:
    """Table 3: (feature set such as `AC_degree2`, group) -> R² in percent."""
    table = read(TABLES[3])
    found = {}
    for row in np.arange(len(table)):
        protocol = table.names["protocol"][table.codes["protocol"][row]]
        degree, scores = protocol.split("/")[2:]
        group = table.names["benchmark"][table.codes["benchmark"][row]]
        found[f"{scores}_{degree}", group] = float(table.value[row])
    return found


def _values(path: Path, quantity: str) -> dict[str, float]:
    table = read(path)
    rows = np.flatnonzero(table.rows_of("quantity", quantity))
    names = table.names["benchmark"]
    return {names[table.codes["benchmark"][row]]: float(table.value[row]) for row in rows}
