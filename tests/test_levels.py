"""Imports point down: a file imports from lower levels, or from its own folder without cycles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("llava", "A_score", "C_score", "AC_policy")

LEVELS = {
    "llava/__init__.py": 0,
    "llava/constants.py": 0,
    "llava/errors.py": 0,
    "llava/exits.py": 0,
    "llava/catalog.py": 1,
    "llava/config.py": 1,
    "llava/conversation.py": 1,
    "llava/estimate.py": 1,
    "llava/costs.py": 1,
    "llava/files.py": 1,
    "llava/launch.py": 1,
    "llava/log.py": 1,
    "llava/provenance.py": 1,
    "llava/results.py": 1,
    "llava/results_csv.py": 1,
    "llava/results_schema.py": 1,
    "llava/model/multimodal_encoder/": 2,
    "llava/sweep/": 3,
    "llava/model/__init__.py": 0,
    "llava/features.py": 3,
    "llava/extraction.py": 3,
    "llava/mm_utils.py": 3,
    "llava/text_encoder.py": 3,
    "llava/tokenization.py": 3,
    "llava/chat_template.py": 3,
    "llava/data/": 4,
    "llava/model/": 4,
    "llava/eval/": 5,
    "llava/train/": 6,
    "A_score/": 7,
    "C_score/": 7,
    "AC_policy/": 7,
    "llava/__main__.py": 8,
    "llava/doctor.py": 8,
}
"""Path, or the beginning of one -> level; the longest that fits counts."""

HIGHEST = {
    "llava/sweep/": 2,
    "AC_policy/": 1,
    "llava/__main__.py": 0,
    "llava/doctor.py": 1,
}
"""The highest level that these may import; the command line reaches all others by name only."""

FORBIDDEN = {"C_score/": ("llava/model/language_model/",)}
"""Pairs that the levels alone would allow."""


@dataclass(frozen=True)
class Edge:
    """One import of a project file by another."""

    source: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def longest(path: str, table: dict) -> str | None:
    """The key of `table` that `path` is or begins with, the longest where several fit."""
    fitting = [key for key in table if path == key or (key.endswith("/") and path.startswith(key))]
    return max(fitting, key=len, default=None)


def folder(path: str) -> str:
    """The folder inside of which files may import each other: that of the entry in LEVELS."""
    key = longest(path, LEVELS)
    return key if key.endswith("/") else key.rpartition("/")[0] + "/"


def project_files(root: Path) -> list[str]:
    """Every .py file of the packages, relative to `root`."""
    return sorted(
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    )


def edges(root: Path, files: list[str]) -> Iterator[Edge]:
    """Every import statement between project files, those inside of functions included.

    A name in a project package that leads to no file is an edge to that name with dots.
    """
    known = set(files)

    def file_of(module: str) -> str | None:
        path = module.replace(".", "/")
        return next((p for p in (f"{path}/__init__.py", f"{path}.py") if p in known), None)

    for source in files:
        tree = ast.parse((root / source).read_text(encoding="utf-8"), source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    package = source.split("/")[: -node.level]
                    module = ".".join([*package, *filter(None, [module])])
                inside = [f"{module}.{alias.name}" for alias in node.names]
                modules = [name if file_of(name) else module for name in inside]
            else:
                continue
            for module in dict.fromkeys(modules):
                if module.partition(".")[0] in PACKAGES:
                    yield Edge(source, node.lineno, file_of(module) or module)


def cycles(found: list[Edge]) -> list[list[str]]:
    """The groups of files that import each other, directly or through others, or themselves."""
    after = {}
    for edge in found:
        after.setdefault(edge.source, set()).add(edge.target)

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            for target in after.get(left.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    left.append(target)
        return seen

    reach = {source: reached(source) for source in after}
    groups = {
        tuple(sorted({source, *(t for t in reach[source] if source in reach.get(t, ()))}))
        for source in after
        if source in reach[source]
    }
    return [list(group) for group in sorted(groups)]


def problems(root: Path) -> list[str]:
    """What breaks the rules below `root`, one line each."""
    files = project_files(root)
    found = list(edges(root, files))
    lines = [f"{path}: no level; add it to LEVELS" for path in files if not longest(path, LEVELS)]
    for edge in found:
        if edge.target not in files:
            lines.append(f"{edge}, which is no file")
            continue
        if not longest(edge.source, LEVELS) or not longest(edge.target, LEVELS):
            continue
        source, target = (LEVELS[longest(p, LEVELS)] for p in (edge.source, edge.target))
        same = source == target and folder(edge.source) == folder(edge.target)
        limit = longest(edge.source, HIGHEST)
        forbidden = FORBIDDEN.get(longest(edge.source, FORBIDDEN), ())
        if source <= target and not same:
            lines.append(f"{edge}: level {source} imports level {target}")
        elif limit and target > HIGHEST[limit] and not same:
            lines.append(f"{edge}: {limit} may import levels 0 to {HIGHEST[limit]} only")
        elif edge.target.startswith(forbidden):
            lines.append(f"{edge}: {longest(edge.source, FORBIDDEN)} may not")
    lines += [f"cycle: {', '.join(group)}" for group in cycles(found)]
    return lines


def test_imports_point_down():
    """The whole project."""
    assert problems(ROOT) == []


def test_imports_are_seen():
    """The walk finds what is known to be there, so that an empty answer above means something."""
    found = {(edge.source, edge.target) for edge in edges(ROOT, project_files(ROOT))}
    assert ("llava/results_csv.py", "llava/catalog.py") in found
    assert ("llava/config.py", "llava/errors.py") in found
    assert ("AC_policy/paper/__init__.py", "AC_policy/study.py") in found
    assert len(found) > 30


def plant(root: Path, files: dict[str, str]) -> Path:
    """A tree of files below `root`, with an `__init__.py` in every folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.relative_to(root).parents:
            if parent.name:
                (root / parent / "__init__.py").touch()
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"llava/errors.py": "import llava.log", "llava/log.py": ""},
            ["llava/errors.py:1 imports llava/log.py: level 0 imports level 1"],
        ),
        (
            {
                "llava/features.py": "def f():\n    from llava.train.train import main\n",
                "llava/train/train.py": "main = 1",
            },
            ["llava/features.py:2 imports llava/train/train.py: level 3 imports level 6"],
        ),
        (
            {
                "llava/data/dataset.py": "from llava.model import builder",
                "llava/model/builder.py": "",
            },
            ["llava/data/dataset.py:1 imports llava/model/builder.py: level 4 imports level 4"],
        ),
        (
            {
                "llava/model/multimodal_encoder/tower.py": "from ..llava_arch import x",
                "llava/model/llava_arch.py": "x = 1",
            },
            [
                "llava/model/multimodal_encoder/tower.py:1 imports llava/model/llava_arch.py: "
                "level 2 imports level 4"
            ],
        ),
        (
            {"A_score/compute.py": "if True:\n    import C_score.pck", "C_score/pck.py": ""},
            ["A_score/compute.py:2 imports C_score/pck.py: level 7 imports level 7"],
        ),
        (
            {"AC_policy/law.py": "from llava.mm_utils import x", "llava/mm_utils.py": "x = 1"},
            [
                "AC_policy/law.py:1 imports llava/mm_utils.py: "
                "AC_policy/ may import levels 0 to 1 only"
            ],
        ),
        (
            {"llava/__main__.py": "from llava import results", "llava/results.py": ""},
            [
                "llava/__main__.py:1 imports llava/results.py: "
                "llava/__main__.py may import levels 0 to 0 only"
            ],
        ),
        (
            {
                "C_score/pck.py": "import llava.model.language_model.llava_llama",
                "llava/model/language_model/llava_llama.py": "",
            },
            [
                "C_score/pck.py:1 imports llava/model/language_model/llava_llama.py: "
                "C_score/ may not"
            ],
        ),
        (
            {"llava/sweep/a.py": "import llava.sweep.b", "llava/sweep/b.py": "from . import a"},
            ["cycle: llava/sweep/a.py, llava/sweep/b.py"],
        ),
        (
            {
                "AC_policy/a.py": "from AC_policy.b import x",
                "AC_policy/b.py": "def f():\n    from AC_policy.report import y",
                "AC_policy/report/__init__.py": "from AC_policy import a",
            },
            ["cycle: AC_policy/a.py, AC_policy/b.py, AC_policy/report/__init__.py"],
        ),
        (
            {"llava/log.py": "from llava.config import x", "llava/config.py": "import llava.log"},
            ["cycle: llava/config.py, llava/log.py"],
        ),
        (
            {"AC_policy/a.py": "from AC_policy.gone import x"},
            ["AC_policy/a.py:1 imports AC_policy.gone, which is no file"],
        ),
        ({"llava/new.py": ""}, ["llava/new.py: no level; add it to LEVELS"]),
        (
            {
                "llava/model/builder.py": "import llava.model.llava_arch, torch, llavanother",
                "llava/model/llava_arch.py": "from llava.model.multimodal_encoder import tower",
                "llava/model/multimodal_encoder/tower.py": "from llava.config import load",
                "llava/config.py": "from llava import errors",
                "llava/errors.py": "",
                "AC_policy/law.py": "import AC_policy.study as study, llava.errors",
                "AC_policy/study.py": "from . import *",
            },
            [],
        ),
    ],
)
def test_planted(tmp_path, files, expected):
    """Each kind of wrong import is reported with the pair, and right ones are not."""
    assert problems(plant(tmp_path, files)) == expected


LIGHT = ("AC_policy", "llava.results", "llava.config")
HEAVY = ("torch", "sklearn")
IMPORT_SECONDS = 0.5

WATCH = """
import sys, time

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            print("asked for", name)

sys.meta_path.insert(0, Watch())
start = time.perf_counter()
import {module}
print("took", time.perf_counter() - start)
"""
"""Tells also of an import that fails, or the test would hold wherever torch is not installed."""


def import_in_a_process(module: str) -> tuple[float, list[str]]:
    """(seconds that the import took, which of the heavy packages it asked for)."""
    script = WATCH.format(module=module, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    *asked, took = done.stdout.splitlines()
    return float(took.split()[1]), asked


@pytest.mark.parametrize("module", LIGHT)
def test_imports_without_torch(module):
    """Neither torch nor scikit-learn is asked for when these are imported."""
    assert import_in_a_process(module)[1] == []


def test_torch_would_be_seen(tmp_path, monkeypatch):
    """The watch above sees an import inside of a module, installed or not."""
    (tmp_path / "law_planted.py").write_text("try:\n    import torch\nexcept ImportError: pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert import_in_a_process("law_planted")[1][:1] == ["asked for torch"]


def test_policy_imports_quickly():
    """Best of three: a busy machine makes an import slower, never quicker."""
    assert min(import_in_a_process("AC_policy")[0] for _ in range(3)) < IMPORT_SECONDS
