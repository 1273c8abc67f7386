"""`law doctor`: every finding with what to type, and exit code 1 only for what is needed."""

import importlib
import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace

import pytest

from llava import LMMS_EVAL, doctor
from llava.doctor import Finding, examine, installed, main

NEEDED = [
    "torch<2.14,>=2.10",
    "scikit-learn>=1.6",
    'peft>=0.18; extra == "train"',
    'deepspeed>=0.19.8; extra == "train"',
    'diffusers<0.43,>=0.42; extra == "diffusion"',
    'pytz; extra == "eval"',
    'datasets>=4; extra == "eval"',
    'xformers>=0.0.35; extra == "xformers"',
    'pytest>=8; extra == "dev"',
]
ALL = {
    "torch": "2.12.0",
    "scikit-learn": "1.7.2",
    "peft": "0.18.0",
    "deepspeed": "0.19.8",
    "diffusers": "0.42.1",
    "pytz": "2025.2",
    "datasets": "4.0.0",
    "xformers": "0.0.35",
    "lmms-eval": LMMS_EVAL,
}
"""An installation in which nothing is missing."""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with given packages; returns the findings by name.

    `broken` maps a module to what its import raises. `tried` lists the modules imported.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: NEEDED)
    entries = [SimpleNamespace(value=doctor.PLUGIN)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=500 * doctor.GIB)
    )
    cuda = SimpleNamespace(is_available=lambda: False)
    torch = ModuleType("torch")
    torch.cuda, torch.version = cuda, SimpleNamespace(cuda="12.9")
    monkeypatch.setitem(sys.modules, "torch", torch)
    tried = []

    def run(packages=None, broken=(), imports=True, **changes):
        versions = {**(ALL if packages is None else packages), **changes}
        monkeypatch.setattr(doctor, "installed", versions.get)

        def import_module(name):
            tried.append(name)
            if name in broken:
                raise broken[name]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(doctor.importlib, "import_module", import_module)
            return {finding.what: finding for finding in examine(imports)}

    run.torch, run.tried, run.entries = torch, tried, entries
    return run


def failing(findings: dict[str, Finding]) -> list[str]:
    """What makes the command exit with 1."""
    return [name for name, finding in findings.items() if finding.mend and not finding.optional]


def optional(findings: dict[str, Finding]) -> list[str]:
    """What is missing and only some commands need."""
    return [name for name, finding in findings.items() if finding.mend and finding.optional]


def test_all_is_well(machine):
    """With everything there, nothing is to mend."""
    findings = machine()
    assert failing(findings) == optional(findings) == []
    assert findings["torch"].found == "2.12.0"
    assert findings["extra [train]"].found == "installed"
    assert findings["lmms-eval"].found == LMMS_EVAL
    assert findings["law_llava"].found == "lmms-eval knows this model"


def test_missing_package(machine):
    """Told with the command that installs it."""
    findings = machine(torch=None)
    assert failing(findings) == ["torch"]
    assert findings["torch"].found == "not installed"
    assert findings["torch"].mend == "bash run.sh install"


@pytest.mark.parametrize("version", ["2.9.1", "2.14.0"])
def test_wrong_version(machine, version):
    """Too old or too new: the version found, the versions expected, a pip line with them."""
    findings = machine(torch=version)
    assert failing(findings) == ["torch"]
    assert findings["torch"].found == f"{version}, expected <2.14,>=2.10"
    assert findings["torch"].mend == 'pip install "torch<2.14,>=2.10"'


@pytest.mark.parametrize("version", ["2.12.0+cu129", "2.13.0.dev20260101", "2.12.0rc1"])
def test_local_builds_and_nightlies_fit(machine, version):
    """A build for one CUDA release, or before a release, lies inside of the bounds."""
    assert failing(machine(torch=version)) == []


def test_import_fails(machine):
    """Installed in the right version and still broken: the error is shown."""
    findings = machine(broken={"sklearn": ImportError("libgomp.so.1: cannot open")})
    assert failing(findings) == ["scikit-learn"]
    found = findings["scikit-learn"].found
    assert "1.7.2" in found
    assert "ImportError: libgomp.so.1: cannot open" in found
    assert findings["scikit-learn"].mend.endswith("scikit-learn==1.7.2")


def test_import_fails_with_another_error(machine):
    """A package may raise anything when it is imported."""
    findings = machine(broken={"torch": RuntimeError("no driver")})
    assert "RuntimeError: no driver" in findings["torch"].found


def test_without_imports(machine):
    """`--no-import` compares versions only, of every package, and asks for no device."""
    findings = machine(imports=False, broken={"torch": OSError()}, torchvision="0.25.0")
    assert failing(findings) == []
    assert "device" not in findings
    assert machine.tried == []


def test_modules_are_imported_by_their_own_name(machine):
    """scikit-learn is imported as sklearn."""
    machine()
    assert machine.tried == ["torch", "sklearn", "lmms_eval.evaluator"]


def test_packages_of_an_extra_are_no_need(machine):
    """Nothing of an extra is listed or imported as a package of its own."""
    assert not {"peft", "pytest", "diffusers"} & set(machine())


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("peft", "train"),
        ("deepspeed", "train"),
        ("diffusers", "diffusion"),
        ("xformers", "xformers"),
        ("datasets", "eval"),
        ("pytz", "eval"),
    ],
)
def test_missing_extra_is_optional(machine, package, extra):
    """The extra, its purpose, the package that lacks, and the pip line."""
    findings = machine(**{package: None})
    assert failing(findings) == []
    assert optional(findings) == [f"extra [{extra}]"]
    finding = findings[f"extra [{extra}]"]
    assert finding.found.endswith(f"missing {package}")
    assert doctor.EXTRAS[extra] in finding.found
    assert f"[{extra}]" in finding.mend


def test_extra_too_old(machine):
    """A version below the bound is as good as none."""
    assert optional(machine(diffusers="0.41.0")) == ["extra [diffusion]"]


def test_extra_before_a_release(machine):
    """A release candidate inside of the bounds is there, as it is for a package that is needed."""
    assert optional(machine(diffusers="0.42.1rc1")) == []


def test_lmms_eval_missing(machine):
    """It is installed apart, without its dependencies."""
    findings = machine(**{"lmms-eval": None})
    assert optional(findings) == ["lmms-eval"]
    assert findings["lmms-eval"].mend == f"pip install --no-deps lmms-eval=={LMMS_EVAL}"
    assert "law_llava" not in findings


def test_lmms_eval_of_another_version(machine):
    """May do; what is tested is said."""
    findings = machine(**{"lmms-eval": "0.8.0"})
    assert (failing(findings), optional(findings)) == ([], ["lmms-eval"])
    assert findings["lmms-eval"].found == f"0.8.0; what is here is tested with {LMMS_EVAL}"
    assert findings["lmms-eval"].mend.endswith(f"lmms-eval=={LMMS_EVAL}")


def test_lmms_eval_import_fails(machine):
    """It is installed without its dependencies, of which some are needed."""
    findings = machine(broken={"lmms_eval.evaluator": ImportError("No module named 'loguru'")})
    assert (failing(findings), optional(findings)) == ([], ["lmms-eval"])
    assert "No module named 'loguru'" in findings["lmms-eval"].found
    assert "[eval]" in findings["lmms-eval"].mend


def test_law_llava_not_registered(machine):
    """An editable installation knows the entry points of the day it was made."""
    machine.entries.clear()
    findings = machine()
    assert (failing(findings), optional(findings)) == ([], ["law_llava"])
    assert findings["law_llava"].mend == "pip install --no-deps -e ."


def test_entry_point_is_the_project_s():
    """The one that is looked for is the one that the project is installed with."""
    found = importlib.metadata.distribution(doctor.DISTRIBUTION).entry_points
    assert doctor.PLUGIN in [entry.value for entry in found.select(group=doctor.MODELS)]


def test_torchvision_absent(machine):
    """Nothing here needs it."""
    assert "absent" in machine()["torchvision"].found


def test_torchvision_fits(machine):
    """Present and importable is no fault."""
    findings = machine(torchvision="0.25.0")
    assert failing(findings) == []
    assert "0.25.0" in findings["torchvision"].found


def test_torchvision_broken(machine):
    """Built for another torch, it breaks transformers from afar."""
    error = RuntimeError("operator torchvision::nms does not exist")
    findings = machine(torchvision="0.25.0", broken={"torchvision": error})
    assert failing(findings) == ["torchvision"]
    assert "torchvision::nms" in findings["torchvision"].found
    assert findings["torchvision"].mend == "pip uninstall torchvision"


def test_shadowing_folder(machine, tmp_path):
    """A package called diffusers where one stands is imported in the library's place."""
    (tmp_path / "diffusers").mkdir()
    assert failing(machine()) == []
    (tmp_path / "diffusers" / "__init__.py").touch()
    findings = machine()
    assert failing(findings) == ["./diffusers"]
    assert str(tmp_path / "diffusers" / "__init__.py") in findings["./diffusers"].mend


def test_library_beside_a_harmless_folder(machine):
    """The version of the library is told there too."""
    assert "0.42.1" in machine()["./diffusers"].found
    assert "not installed" in machine(diffusers=None)["./diffusers"].found


def test_device_cpu(machine):
    """No CUDA device is no fault."""
    assert "no CUDA device is visible" in machine()["device"].found


def test_device_cuda(machine):
    """Name and memory of every device."""
    machine.torch.cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda i: SimpleNamespace(
            name=f"GPU{i}", total_memory=80 * doctor.GIB
        ),
    )
    assert machine()["device"].found == "CUDA 12.9: GPU0 80 GiB, GPU1 80 GiB"


def test_device_without_torch(machine, monkeypatch):
    """Reported as unknown; the missing torch is a finding of its own."""
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = machine()
    assert "torch does not import" in findings["device"].found
    assert not findings["device"].mend


def test_device_that_does_not_answer(machine):
    """A driver that fails is a finding, not a traceback."""

    def fail(*_):
        raise RuntimeError("CUDA driver initialization failed")

    machine.torch.cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, get_device_properties=fail
    )
    assert "CUDA driver initialization failed" in machine()["device"].found


def test_low_disk(machine, monkeypatch):
    """Little room for weights is told, and stops nothing."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=doctor.GIB))
    findings = machine()
    assert failing(findings) == []
    assert optional(findings) == ["weights"]
    assert "HF_HOME" in findings["weights"].mend


def test_cache_that_is_not_there_yet(machine, monkeypatch, tmp_path):
    """The disk of the nearest folder above is asked."""
    asked = []
    monkeypatch.setenv("HF_HOME", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(
        doctor.shutil,
        "disk_usage",
        lambda path: asked.append(path) or SimpleNamespace(free=30 * doctor.GIB),
    )
    assert machine()["weights"].found == f"{tmp_path / 'a' / 'b'}, 30 GiB free"
    assert asked == [tmp_path]


def test_project_not_installed(machine, monkeypatch):
    """From a bare checkout, `python -m llava doctor` says to install; it is what doctor is for."""

    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    findings = machine()
    assert failing(findings)
    assert any("run.sh install" in finding.mend for finding in findings.values())


def test_installed():
    """Version of a distribution under any spelling of its name; None where it is not installed."""
    assert installed("pytest") == pytest.__version__
    version = importlib.metadata.version("pytest-timeout")
    assert installed("pytest_timeout") == installed("Pytest.Timeout") == version
    assert installed("no-such-distribution-here") is None


def test_a_folder_is_not_installed(tmp_path, monkeypatch):
    """Something importable in the current directory is not the library."""
    (tmp_path / "no_such_distribution_here").mkdir()
    (tmp_path / "no_such_distribution_here" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("no_such_distribution_here")
    assert installed("no_such_distribution_here") is None


def test_extras_are_those_of_the_project():
    """Every extra but that of the developers is examined, and no other."""
    provided = importlib.metadata.metadata(doctor.DISTRIBUTION).get_all("Provides-Extra")
    assert set(provided) - {"dev"} == set(doctor.EXTRAS)


GOOD = Finding("good", "1.0")
BAD = Finding("bad", "not installed", "pip install bad")
EXTRA = Finding("extra", "not installed", "pip install extra", optional=True)


@pytest.mark.parametrize(
    ("findings", "code"),
    [([GOOD], 0), ([GOOD, EXTRA], 0), ([BAD], 1), ([GOOD, BAD, EXTRA, BAD], 1)],
)
def test_exit_code(monkeypatch, capsys, findings, code):
    """1 where something needed is missing; every finding stands on stdout with what to type."""
    monkeypatch.setattr(doctor, "examine", lambda _: iter(findings))
    try:
        main([])
        found = 0
    except SystemExit as exit_:
        found = exit_.code
    assert found == code
    out, err = capsys.readouterr()
    assert err == ""
    count = findings.count(BAD)
    assert out.count("FAIL bad") == count
    assert out.count("-> pip install bad") == count
    assert out.count("--   extra") == findings.count(EXTRA)
    assert out.count("ok   good") == findings.count(GOOD)
    assert (f"{count} check(s) failed" in out) == bool(count)
    assert ("Everything needed is here" in out) == (not count)


@pytest.mark.parametrize(("argv", "imports"), [([], True), (["--no-import"], False)])
def test_flags(monkeypatch, capsys, argv, imports):
    """Imports are tried unless they are refused."""
    asked = []
    monkeypatch.setattr(doctor, "examine", lambda imports: asked.append(imports) or [])
    main(argv)
    assert asked == [imports]


def test_unknown_flag(capsys):
    """Bad usage is 2."""
    with pytest.raises(SystemExit) as caught:
        main(["--fix"])
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""
