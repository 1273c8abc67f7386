"""`law doctor`: what this installation lacks, and what to type to mend it.

Every check says what it found; a check that fails says what to do, and the command then exits 1.
Packages are looked up by their installed version, never by importability: a folder called
`diffusers` in the current directory imports too, and is not the library.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from llava import LMMS_EVAL

DISTRIBUTION = "law-of-vision"
EXTRAS = {
    "train": "stage 2 with LoRA, DeepSpeed ZeRO",
    "diffusion": "diffusion towers",
    "eval": "what lmms-eval needs",
    "xformers": "memory-efficient attention on CUDA",
    "timm": "towers of timm",
    "photos": "the photographs of warps-mini",
    "slurm": "sweeps as jobs of a cluster",
}
MODULES = {
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "protobuf": "google.protobuf",
}
MODELS = "lmms_eval.models"
PLUGIN = "llava.eval.lmms_plugin:manifests"
"""Group and value of the entry point by which lmms-eval finds `law_llava`."""
GIB = 1 << 30
LOW_DISK_GIB = 20  # one 7B checkpoint in bf16 and its optimiser shards pass this at once


@dataclass(frozen=True)
class Finding:
    """One line of the report; `mend` is what to type, set only where something is wrong."""

    what: str
    found: str
    mend: str = ""
    optional: bool = False


def main(argv: list[str]) -> None:
    """Prints all findings; exits 1 where something needed is missing or broken."""
    parser = argparse.ArgumentParser(
        prog="law doctor", description="Check this installation and say what to mend."
    )
    parser.add_argument(
        "--no-import", action="store_true", help="compare versions only, without importing"
    )
    arguments = parser.parse_args(argv)
    broken = 0
    for finding in examine(not arguments.no_import):
        mark = "ok  " if not finding.mend else "--  " if finding.optional else "FAIL"
        print(f"{mark} {finding.what:<18} {finding.found}", flush=True)
        if finding.mend:
            print(f"     {'':<18} -> {finding.mend}")
        broken += bool(finding.mend) and not finding.optional
    if broken:
        print(f"\n{broken} check(s) failed; the lines marked -> say what to type")
        sys.exit(1)
    print("\nEverything needed is here; lines marked -- are optional.")


def examine(imports: bool) -> Iterator[Finding]:
    """All findings, cheap ones first."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    try:
        needed = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, "not installed", "bash run.sh install")
        needed = []
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is None:
            yield _package(requirement, imports)
    for extra, purpose in EXTRAS.items() if needed else ():
        yield _extra(extra, purpose, needed)
    yield from _lmms_eval(imports)
    yield _torchvision(imports)
    yield _shadow("diffusers")
    if imports:
        yield _device()
    yield _cache()


def _package(requirement: Requirement, imports: bool) -> Finding:
    version = installed(requirement.name)
    if version is None:
        return Finding(requirement.name, "not installed", "bash run.sh install")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            requirement.name,
            f"{version}, expected {requirement.specifier}",
            f'pip install "{requirement.name}{requirement.specifier}"',
        )
    if imports:
        try:
            importlib.import_module(MODULES.get(requirement.name, requirement.name))
        except Exception as error:  # the point is to show whatever a broken package raises
            return Finding(
                requirement.name,
                f"{version}, but its import fails: {type(error).__name__}: {error}",
                f"pip install --force-reinstall --no-deps {requirement.name}=={version}",
            )
    return Finding(requirement.name, version)


def _extra(extra: str, purpose: str, needed: list[str]) -> Finding:
    missing = [
        requirement.name
        for requirement in map(Requirement, needed)
        if requirement.marker is not None
        and requirement.marker.evaluate({"extra": extra})
        and not _fits(requirement)
    ]
    if not missing:
        return Finding(f"extra [{extra}]", "installed")
    return Finding(
        f"extra [{extra}]",
        f"not installed ({purpose}); missing {', '.join(missing)}",
        f'pip install -e ".[{extra}]"',
        optional=True,
    )


def _fits(requirement: Requirement) -> bool:
    version = installed(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _lmms_eval(imports: bool) -> Iterator[Finding]:
    """It is installed apart, for its own dependencies bring torchvision, and knows us by name."""
    version = installed("lmms-eval")
    mend = f"pip install --no-deps lmms-eval=={LMMS_EVAL}"
    if version is None:
        yield Finding("lmms-eval", "not installed (benchmarks)", mend, optional=True)
        return
    found = f"{version}; what is here is tested with {LMMS_EVAL}"
    if version == LMMS_EVAL:
        found, mend = version, ""
    try:
        if imports:
            importlib.import_module("lmms_eval.evaluator")
    except Exception as error:  # whatever a package raises that it lacks or finds broken
        found = f"{version}, but its import fails: {type(error).__name__}: {error}"
        mend = 'pip install -e ".[eval]"'
    yield Finding("lmms-eval", found, mend, optional=True)
    if any(entry.value == PLUGIN for entry in importlib.metadata.entry_points(group=MODELS)):
        yield Finding("law_llava", "lmms-eval knows this model")
    else:
        found = "lmms-eval does not know this model; the project was installed before it had it"
        yield Finding("law_llava", found, "pip install --no-deps -e .", optional=True)


def _torchvision(imports: bool) -> Finding:
    """torchvision built for another torch breaks transformers and diffusers from afar."""
    version = installed("torchvision")
    if version is None:
        return Finding("torchvision", "absent, as it should be: nothing here needs it")
    try:
        if imports:
            importlib.import_module("torchvision")
    except Exception as error:
        return Finding(
            "torchvision",
            f"{version} does not fit this torch ({error}); transformers fails through it",
            "pip uninstall torchvision",
        )
    return Finding("torchvision", f"{version} (not used)")


def _shadow(name: str) -> Finding:
    """Whether a folder of the current directory is imported in a library's place."""
    version = installed(name)
    folder = Path.cwd() / name
    if (folder / "__init__.py").exists():
        return Finding(
            f"./{name}", "is a package and shadows the library", f"rm {folder / '__init__.py'}"
        )
    return Finding(f"./{name}", f"shadows nothing; the library is {version or 'not installed'}")


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # reported above with what to type
        return Finding("device", f"unknown, torch does not import: {type(error).__name__}")
    if not torch.cuda.is_available():
        return Finding("device", f"CPU with {os.cpu_count()} cores; no CUDA device is visible")
    try:
        names = _devices(torch)
    except RuntimeError as error:
        return Finding(
            "device", f"CUDA {torch.version.cuda} does not answer: {error}", "nvidia-smi"
        )
    return Finding("device", f"CUDA {torch.version.cuda}: {names}")


def _devices(torch) -> str:
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} {p.total_memory / GIB:.0f} GiB" for p in names)


def _cache() -> Finding:
    """Where weights are kept, and whether there is room for a checkpoint."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIB
    found = f"{home}, {free:.0f} GiB free"
    if free < LOW_DISK_GIB:
        mend = "set HF_HOME to a folder on a larger disk, or free some space"
        return Finding("weights", found, mend, optional=True)
    return Finding("weights", found)


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(re.sub(r"[-_.]+", "-", name))
    except importlib.metadata.PackageNotFoundError:
        return None
