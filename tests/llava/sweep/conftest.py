"""A sweep of the paper's towers whose commands are stand-ins (stub_law.py)."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava.results import COLUMNS

STUB = Path(__file__).with_name("stub_law.py")
SWEEP = """
name: stub
run_dir: {folder}
prepare:
  - {{name: world, command: "prepare {{run_dir}}/world.txt", outputs: [world.txt]}}
llm: "{{run_dir}}/llm"
representations: [clip336, dinov2, clip336+dinov2]
stage1: {{data_path: captions.json, learning_rate: 1e-3}}
stage2: {{data_path: conversations.json, learning_rate: 2e-5}}
correspondence: {{data: pairs}}
alignment:
  law: nll
  nll: {{}}
  cosine: {{benchmarks: [scenes], references: [clip224]}}
evaluation: {{tasks: [quiz, exam]}}
features: {{images: images}}
policy: {{stage2: {stage2}}}
launch: {{at_once: 2, gpus: 0}}
"""
TOLD = [name for name in COLUMNS if name not in ("run_dir", "commit", "date")]


class StubSweep:
    """A YAML in a folder, and what `law run` makes of it in a process of its own."""

    def __init__(self, folder: Path, stage2: str = "all"):
        folder.mkdir(exist_ok=True)
        self.run_dir = folder / "run"
        self.yaml = folder / "sweep.yaml"
        self.yaml.write_text(SWEEP.format(folder=self.run_dir, stage2=stage2))
        self.log = folder / "commands.txt"
        self.folder = folder
        for name in ("captions.json", "conversations.json", "pairs/JPEGImages/1", "images/1"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("[]")

    def change(self, old: str, new: str) -> None:
        """Puts `new` in the place of `old` in the YAML."""
        text = self.yaml.read_text()
        assert old in text
        self.yaml.write_text(text.replace(old, new))

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """`law run`, in the background."""
        return subprocess.Popen(
            [sys.executable, STUB, "run", self.yaml, *words],
            cwd=self.folder,
            env={**os.environ, "STUB_LOG": str(self.log), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # what a shell has put into the background ignores Ctrl-C, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """`law run`, to its end."""
        self.log.unlink(missing_ok=True)
        process = self.start(*words, **environment)
        out, error = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def commands(self) -> list[str]:
        """The commands of the last run, as far as they were begun."""
        return [line for line in self._logged() if not line.startswith("asks ")]

    def asked(self) -> list[str]:
        """The benchmarks that the last run has really asked, and of what."""
        return [line for line in self._logged() if line.startswith("asks ")]

    def _logged(self) -> list[str]:
        return sorted(self.log.read_text().splitlines()) if self.log.exists() else []

    def kinds(self) -> list[str]:
        """Their first words."""
        return [line.split()[0] for line in self.commands()]

    def table(self) -> list[tuple[str, ...]]:
        """The rows, without what depends on the run."""
        with open(self.run_dir / "results.csv", newline="") as handle:
            return [tuple(row[name] for name in TOLD) for row in csv.DictReader(handle)]


@pytest.fixture
def sweep(tmp_path):
    """Finetunes everything."""
    return StubSweep(tmp_path)


@pytest.fixture
def guided(tmp_path):
    """Finetunes what the policy proposes."""
    return StubSweep(tmp_path, "policy")
