"""Results tables of made-up numbers, for tests of the report."""

import csv
from pathlib import Path

import numpy as np

HEAD = ("representation", "quantity", "benchmark", "value", "unit", "protocol", "stderr")
TOWERS = ("one", "two", "three", "four", "five")


def names(count: int) -> list[str]:
    """Single towers, then pairs of them."""
    pairs = [f"{a}.{b}" for i, a in enumerate(TOWERS) for b in TOWERS[i + 1 :]]
    return [*TOWERS, *pairs][:count]


def rows(count: int, benchmarks=("lawful", "random"), finetuned: int | None = None) -> list[list]:
    """`count` representations; `lawful` follows A and C exactly but for a little noise.

    A_nll belongs to no benchmark and says nothing of anything.
    """
    rng = np.random.default_rng(6)
    found = []
    for index, name in enumerate(names(count)):
        a, c, noise = rng.uniform(0.3, 0.8), rng.uniform(10, 40), rng.normal(size=2)
        found += [
            [name, "C_pck", "pairs", c, "percent", "p", 1.5],
            [name, "A_nll", "captions", 1 + rng.uniform(), "nats", "n", 0.02],
        ]
        for benchmark in benchmarks:
            found.append([name, "A_cosine", benchmark, a, "fraction", "q", 0.004])
            value = 0.3 + 0.6 * a + 0.001 * c + 0.002 * noise[0]
            value = value if benchmark == "lawful" else 0.5 + 0.1 * noise[1]
            if index < (count if finetuned is None else finetuned):
                found.append([name, "performance", benchmark, value, "fraction", "", 0.02])
    return found


def write(path: Path, lines: list[list]) -> Path:
    """The rows as a results table."""
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(HEAD)
        writer.writerows(lines)
    return path
