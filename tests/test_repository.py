"""What holds for every file: YAML that loads, no personal paths, docstrings and annotations."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import PACKAGES, ROOT, tracked

from llava.config import read_yaml

GOLDEN_BYTES = 18_000_000
"""Golden data travel with every clone."""
PERSONAL = re.compile("/(work|farm|Users|home/[a-z]+)/")


FILES = [Path(name) for name in tracked(ROOT)]
MODULES = [path for path in FILES if path.suffix == ".py" and path.parts[0] in PACKAGES]
LMMS_EVAL_TASKS = Path("llava/eval/tasks")
"""In lmms-eval's own form, with `!function`: tests/llava/eval/test_evaluate_tasks.py reads them."""
YAML = [
    path
    for path in FILES
    if path.suffix in (".yaml", ".yml") and not path.is_relative_to(LMMS_EVAL_TASKS)
]


def test_files_are_found():
    """So that the loops below run over something."""
    assert Path("llava/benchmarks.yaml") in YAML
    assert Path("llava/results.py") in MODULES


@pytest.mark.parametrize("path", YAML, ids=str)
def test_yaml_loads(path):
    """With the project's own strict reader."""
    assert read_yaml(ROOT / path) is not None


def personal_paths(text: str) -> list[str]:
    """Lines with an absolute path of somebody's machine."""
    return [line.strip() for line in text.splitlines() if PERSONAL.search(line)]


def test_no_personal_paths():
    """Paths come from configuration or the command line, never from a file of the repository."""
    found = {}
    for path in FILES:
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if lines := personal_paths(text):
            found[str(path)] = lines
    assert found == {}


@pytest.mark.parametrize("parts", [["home", "ann"], ["work"], ["Users"], ["farm"]])
def test_personal_paths_are_seen(parts):
    """The search finds them anywhere in a line, and no relative path."""
    path = "/".join(["", *parts, "data"])
    assert personal_paths(f"x = 1\nopen('{path}')\n") == [f"open('{path}')"]
    assert personal_paths(f"open('runs{path.replace('/', '-')}')") == []


def public(tree: ast.AST, where: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(dotted name, node) of the public classes, functions and methods."""
    for node in tree.body:
        named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and not node.name.startswith("_"):
            yield where + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{where}{node.name}.")


def undocumented(source: str) -> list[str]:
    """The public names without a docstring; `module` where the file has none."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) or not tree.body else ["module"]
    for name, node in public(tree):
        overloads = [ast.unparse(decorator) for decorator in node.decorator_list]
        setter = any(text.endswith((".setter", "overload")) for text in overloads)
        if not ast.get_docstring(node) and not setter:
            found.append(name)
    return found


def unannotated(source: str) -> list[str]:
    """`function(argument)` for every argument without a type in a public function or method."""
    found = []
    for name, node in public(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            continue
        static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
        arguments = [*node.args.posonlyargs, *node.args.args]
        if "." in name and not static:
            arguments = arguments[1:]
        arguments += node.args.kwonlyargs
        arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
        found += [f"{name}({a.arg})" for a in arguments if a.annotation is None]
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_public_names_are_documented(path):
    """Every public module, class, function and method has a docstring."""
    assert undocumented((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_arguments_are_annotated(path):
    """Every argument of every public function and method has a type."""
    assert unannotated((ROOT / path).read_text(encoding="utf-8")) == []


SAMPLE = '''
class A:
    def method(self, a, *rest, b: int, **more: int): ...
    def _hidden(self, a): ...
    @staticmethod
    def static(x): """Doc."""
    class Inner:
        """Doc."""
def f(a: int, b=1): ...
async def g(): """Doc."""
def _hidden(a): ...
class _Hidden:
    def method(self, a): ...
'''


def test_gaps_are_seen():
    """The searches above find what is planted, and pass over what is private."""
    assert undocumented(SAMPLE) == ["module", "A", "A.method", "f"]
    assert unannotated(SAMPLE) == ["A.method(a)", "A.method(rest)", "A.static(x)", "f(b)"]
    assert undocumented("") == []


def test_golden_data_are_small():
    """Everything in folders called `golden`, together."""
    sizes = [(ROOT / path).stat().st_size for path in FILES if "golden" in path.parts]
    assert sum(sizes) < GOLDEN_BYTES


@pytest.mark.parametrize("words", [["tset"], ["install", "eval"]])
def test_run_sh_says_how_it_is_called(words, tmp_path):
    """From any folder, and without installing anything."""
    found = subprocess.run(
        ["bash", ROOT / "run.sh", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 2
    assert "bash run.sh test [--fast]" in found.stderr
    assert "bash run.sh install [--eval]" in found.stderr
    assert "bash run.sh miniature" in found.stderr
    assert found.stdout == ""
