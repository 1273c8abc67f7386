"""What a number rests on: versions, machine, commit."""

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

from llava import __version__


def environment() -> dict:
    """Versions, machine and commit, as a run folder keeps them."""
    packages = {found.name: found.version for found in distributions()}
    return {
        "law": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "commit": commit(),
        "packages": dict(sorted(packages.items())),
    }


def commit() -> str | None:
    """Commit of the source tree, with `+` where it holds changes; None outside of a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
