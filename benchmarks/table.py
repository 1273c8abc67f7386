"""A results table of a million rows: reading it, and fitting the law on it.

    OMP_NUM_THREADS=1 python benchmarks/table.py

Beside our reader stands `csv.DictReader` with a float per row, the plain way, in the same run.
"""

import argparse
import csv
import random
import tempfile
import time
from pathlib import Path

from AC_policy.law import fit_law
from AC_policy.study import study_of
from llava import catalog
from llava.results import COLUMNS, read


def write_table(path: Path, rows: int) -> None:
    """Random representations with C, and A and performance on the law's eight benchmarks."""
    names = [name for name, entry in catalog.benchmarks().items() if entry.in_law]
    drawn = random.Random(0)
    tail = "true,,100,protocol,0,0123abcd,runs/x,deadbeef,2026-01-01"
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(",".join(COLUMNS) + "\n")
        for number in range(rows // (1 + 2 * len(names))):
            a, c = drawn.random(), drawn.random()
            handle.write(f"rep{number},C_pck,spair71k,{100 * c:.3f},percent,{tail}\n")
            for name in names:
                y = 50 * (a + c - a * c) + drawn.gauss(0, 5)
                handle.write(f"rep{number},A_cosine,{name},{a:.4f},fraction,{tail}\n")
                handle.write(f"rep{number},performance,{name},{y:.3f},percent,{tail}\n")


def main() -> None:
    """Prints seconds for reading, the plain way, and fitting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.csv"
        write_table(path, rows)
        start = time.perf_counter()
        table = read(path)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        fit_law(study_of(table, "cosine", {}))
        fitted = time.perf_counter() - start
        start = time.perf_counter()
        with open(path, encoding="utf-8", newline="") as handle:
            kept = [(row["representation"], float(row["value"])) for row in csv.DictReader(handle)]
        plain = time.perf_counter() - start
    print(f"{len(table)} rows: read {ours:.1f} s, fit {fitted:.1f} s, both {ours + fitted:.1f} s")
    print(f"csv.DictReader, two columns of {len(kept)} rows kept: {plain:.1f} s")


if __name__ == "__main__":
    main()
