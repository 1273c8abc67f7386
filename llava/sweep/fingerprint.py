"""Fingerprints: what a step's outputs depend on, known before it runs.

A fingerprint is a digest of the command line, of the files of outside that it reads, and of the
fingerprints of the steps that it waits for. The run folder's own name is not in it, nor are the
number of processes, the machine and the commit, which the ledger and environment.json keep.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from llava.sweep.digests import input_digest
from llava.sweep.step import Step

VERSION = 1
"""Goes up when the same step makes something else."""


def fingerprint(step: Step, run_dir: Path, before: Iterable[str]) -> str:
    """64 hexadecimal digits; `before` are the fingerprints of the steps that count, in order."""
    here = str(run_dir)
    facts = {
        "version": VERSION,
        "command": [_without(word, here) for word in step.command],
        "inputs": [[name, input_digest(name)] for name in step.inputs],
        "before": list(before),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _without(word: str, run_dir: str) -> str:
    """A word with {run_dir} in the place of the run folder, where a path begins with it."""
    parts = word.split(run_dir)
    kept = parts[0]
    for before, after in itertools.pairwise(parts):
        begins = not before or before[-1] in "=,: "
        ends = not after or after[0] in "/,: "
        kept += ("{run_dir}" if begins and ends else run_dir) + after
    return kept
