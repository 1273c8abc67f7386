"""Fingerprints: what a step's outputs depend on, known before it runs.

A fingerprint is a digest of the command line, of the files of outside that it reads, and of the
fingerprints of the steps whose outputs it reads. The run folder's own name is not in it, nor flags
without effect on what comes out, nor the machine, the number of processes and the commit, which the
ledger and environment.json keep.

It has two halves. Steps whose first halves are the same may go on in each other's folder: of
`law evaluate`, which keeps every finished benchmark, the list of benchmarks is in the second.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from llava.sweep.step import Step

VERSION = 1
"""Goes up when the same step makes something else."""
HALF = 32
"""Hexadecimal digits of each half."""
WITHOUT_EFFECT = {
    *("--logging_steps", "--logging_strategy", "--report_to", "--run_name"),
    *("--save_steps", "--save_strategy", "--save_total_limit"),
    *("--dataloader_num_workers", "--dataloader_prefetch_factor", "--workers", "--processes"),
}
"""Flags that change how a step goes, and not what it leaves."""
GROWING = {"evaluate": "--tasks"}
"""Kind of step -> the flag whose values are worked off one by one in the same folder."""


def fingerprint(
    step: Step, run_dir: Path, before: Iterable[str], digest: Callable[[str], str]
) -> str:
    """64 hexadecimal digits.

    Args:
        before: fingerprints of the steps that count, in order.
        digest: what stands for a file or folder of outside.
    """
    flags = [(name, values) for name, values in _flags(step.command) if name not in WITHOUT_EFFECT]
    growing = GROWING.get(step.kind)
    here = str(run_dir)
    facts = {
        "version": VERSION,
        "command": _told((f for f in flags if f[0] != growing), here),
        "inputs": [[name, digest(name)] for name in (*step.inputs, *step.sources)],
        "before": list(before),
    }
    return _half(facts) + _half(_told((f for f in flags if f[0] == growing), here))


def same_folder(one: str, other: str) -> bool:
    """Whether what has the one fingerprint may go on where the other began."""
    return one[:HALF] == other[:HALF]


def _half(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:HALF]


def _flags(command: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """(flag, or nothing for the words before the first; its values), in order."""
    name, values = "", []
    for word in command:
        if word.startswith("--"):
            yield name, values
            name, values = word, []
        else:
            values.append(word)
    yield name, values


def _told(flags: Iterable[tuple[str, list[str]]], run_dir: str) -> list[list[str]]:
    """Flags with their values, {run_dir} in the place of the run folder."""
    return [[name, *(_without(value, run_dir) for value in values)] for name, values in flags]


def _without(word: str, run_dir: str) -> str:
    """A word with {run_dir} in the place of the run folder, where a path in it begins so."""
    return re.sub(rf"(?<![\w./-]){re.escape(run_dir)}(?![\w.-])", "{run_dir}", word)
