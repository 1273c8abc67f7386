"""The wheel: our packages with their data, and nothing else of the repository."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from repository import PACKAGES, ROOT, tracked

from llava.config import read_yaml

DATA = (".yaml", ".csv", ".html", ".css")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tracked files, so that building leaves the working tree clean."""
    root = tmp_path_factory.mktemp("tree")
    for name in tracked(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of the tracked files, built without a network."""
    built = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "-q", "-w", str(built), "."],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_only_our_packages(wheel):
    """No tests, no configs, no diffusers, nothing at the top but packages and the metadata."""
    tops = {PurePosixPath(name).parts[0] for name in wheel.namelist()}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert info.startswith("law_of_vision-")
    assert tops - {info} <= set(PACKAGES)
    assert {"llava", "AC_policy"} <= tops


def test_every_module_is_in_it(wheel):
    """Every tracked .py file of the packages; a folder without `__init__.py` would be left out."""
    expected = {
        name for name in tracked(ROOT) if name.split("/")[0] in PACKAGES and name.endswith(".py")
    }
    found = {name for name in wheel.namelist() if name.endswith(".py")}
    assert found == expected
    assert len(expected) > 10


def test_every_data_file_is_in_it(wheel):
    """Tables, catalogs and pages that the code reads from beside itself."""
    expected = {
        name for name in tracked(ROOT) if name.split("/")[0] in PACKAGES and name.endswith(DATA)
    }
    found = {name for name in wheel.namelist() if name.endswith(DATA)}
    assert found == expected
    assert "llava/benchmarks.yaml" in expected
    assert "AC_policy/paper/table5_scores.csv" in expected


def test_data_is_unchanged(wheel, tree):
    """What is shipped is what is in the repository."""
    for name in wheel.namelist():
        if name.endswith(DATA):
            assert wheel.read(name) == (tree / name).read_bytes()


def test_the_law_command(wheel):
    """One entry point, which exists."""
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == {"law": "llava.__main__:main"}
    assert "llava/__main__.py" in wheel.namelist()


def test_metadata(wheel):
    """Name, version of the package, license file, and the extras that `law doctor` examines."""
    from llava import __version__
    from llava.doctor import DISTRIBUTION, EXTRAS

    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
    assert f"Name: {DISTRIBUTION}" in lines
    assert f"Version: {__version__}" in lines
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    extras = {line.split(": ")[1] for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == {*EXTRAS, "dev"}


def test_one_release_of_lmms_eval():
    """Whatever tells how to install it names the one that is tested."""
    from llava import LMMS_EVAL

    named = {}
    for name in tracked(ROOT):
        if name.endswith((".md", ".py", ".sh", ".toml", ".yaml")):
            text = (ROOT / name).read_text(encoding="utf-8")
            named |= {name: set(re.findall(r"lmms-eval==([\w.]+)", text))}
    assert {name: found for name, found in named.items() if found - {LMMS_EVAL}} == {}
    assert named["pyproject.toml"] == {LMMS_EVAL}


def test_diffusers_folder_is_no_package():
    """A .py file at its top would be imported in the place of the library."""
    folder = ROOT / "diffusers"
    assert sorted(path.name for path in folder.glob("*.py")) == []


def test_diffusers_folder_installs_what_the_extra_does():
    """`cd diffusers && pip install -e .` and the extra ask for the same versions, as towers do."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ours["optional-dependencies"]
    there = tomllib.loads((ROOT / "diffusers" / "pyproject.toml").read_text())["project"]
    assert there["dependencies"] == extras["diffusion"]
    assert there["optional-dependencies"]["xformers"] == extras["xformers"]
    assert there["requires-python"] == ours["requires-python"]
    folder = ROOT / "llava" / "model" / "multimodal_encoder" / "families"
    needs = [read_yaml(path)["needs"] for path in folder.glob("*.yaml")]
    assert sum(need == extras["diffusion"] for need in needs) == 8
    assert not any(
        "diffusers" in text for need in needs for text in need if need != extras["diffusion"]
    )
