"""Where the repository is, and which of its files git keeps."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("llava", "A_score", "C_score", "AC_policy")
IGNORED = {"build", "dist", "runs", "__pycache__"}


def tracked(root: Path) -> list[str]:
    """The files that git keeps, as far as they are still there; without git, all that look it."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    try:
        names = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.split("\0")
    except FileNotFoundError:
        names = []
    if not any(names):
        parts = [path.relative_to(root).parts for path in root.rglob("*")]
        names = ["/".join(p) for p in parts if not any(_ignored(name) for name in p)]
    return [name for name in names if name and (root / name).is_file()]


def _ignored(name: str) -> bool:
    return name in IGNORED or name.startswith(".") or name.endswith(".egg-info")
