"""configs/miniature_cut.yaml for real: every kind of step, twice, the second time killed again and
again. Towers are random and tiny; the table must be the same to the last digit."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llava.results import COLUMNS

ROOT = Path(__file__).parents[3]
TOLD = [name for name in COLUMNS if name not in ("run_dir", "commit", "date")]
KILLS = 10


def start(run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "llava", "run", "configs/miniature_cut.yaml", "--run-dir", run_dir],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table(run_dir: Path) -> list[tuple[str, ...]]:
    with open(run_dir / "results.csv", newline="") as handle:
        return [tuple(row[name] for name in TOLD) for row in csv.DictReader(handle)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_moments_the_experiment_ends_with_the_same_table(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    rng = random.Random(0)
    for _ in range(KILLS):
        process = start(killed)
        try:
            process.wait(rng.uniform(2, 10))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)
    process = start(killed)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    rows = table(whole)
    assert table(killed) == rows
    assert len({row[0] for row in rows}) == 3
    quantities = {row[1] for row in rows}
    assert {"C_pck", "A_nll", "A_cosine", "performance"} <= quantities
    summary = json.loads((killed / "summary.json").read_text())
    assert set(summary["totals"]["steps"]) == {"done"}
    assert summary["rounds"][-1]["stop"]
    lost = (killed / "ledger.jsonl").read_text().count('"state": "lost"')
    assert lost >= KILLS // 2
    assert (killed / "report.html").stat().st_size > 10_000
