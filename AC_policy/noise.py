"""How far a result would move if it were measured again: what ties and chances rest on.

In this order: the standard error in the table; the benchmark's documented noise between identical
training runs; the standard error of an accuracy over the benchmark's questions; a fraction of the
range of what is finetuned.
"""

import numpy as np

from AC_policy.study import Task
from llava import catalog

NOISE_FRACTION = 0.03
"""Where nothing else is known: MME's documented +/-20 points between identical runs (LLaVA issue
680) over the range of its 13 results in Table 4, 659 points."""


def result_noise(task: Task) -> np.ndarray:
    """[n] standard deviation of each finetuned result in the task's unit, NaN where not run."""
    known = np.where(np.isfinite(task.stderr), task.stderr, _by_benchmark(task))
    return np.where(task.finetuned, known, np.nan)


def tie_band(task: Task) -> float:
    """Noise of the best result, as a fraction of the range of the results."""
    best = int(np.nanargmax(task.performance))
    return float(result_noise(task)[best] / np.ptp(task.performance[task.finetuned]))


def _by_benchmark(task: Task) -> np.ndarray | float:
    entry = catalog.benchmarks().get(task.benchmark)
    if entry and entry.run_noise and task.unit == entry.unit:
        return entry.run_noise
    share = np.abs(task.performance) / 100
    if entry and entry.items and task.unit == "percent" and np.nanmax(share, initial=0.0) <= 1:
        return 100 * np.sqrt(share * (1 - share) / entry.items)
    known = task.performance[task.finetuned]
    return NOISE_FRACTION * np.ptp(known) if len(known) else np.nan
