"""What a step that has run has left, and whether that is what it must leave."""

import glob
import os
from pathlib import Path

from llava.errors import LawError
from llava.files import read_json
from llava.sweep.digests import FileState, states_of
from llava.sweep.step import Step
from llava.sweep.table import check_rows


def judged(step: Step, run_dir: Path, error: str) -> tuple[str, dict[str, FileState]]:
    """(why it failed, or nothing; what it left), of a step that ended with an error or without."""
    if error:
        return error, {}
    try:
        names = outputs(step, run_dir)
        if step.rows:
            check_rows(run_dir / step.rows, step.measures)
        return "", states_of(run_dir, names)
    except (LawError, OSError) as lacking:
        return str(lacking), {}


def outputs(step: Step, run_dir: Path) -> list[str]:
    """Every output of a step that has run; LawError naming those that are not there."""
    found: list[str] = []
    missing = []
    for pattern in step.outputs:
        there = sorted(run_dir.glob(_only_stars(pattern)))
        paths = [path for path in there if path.is_file()]
        found += [str(path.relative_to(run_dir)) for path in paths]
        if not paths:
            folder = " (a folder; expected files, as in FOLDER/*)" if there else ""
            missing.append(f"{run_dir / pattern}{folder}")
    if missing:
        raise LawError(f"it left no {', '.join(missing)}")
    if step.listing:
        for named in read_json(run_dir / step.listing).get("folders", []):
            inside = Path(os.path.relpath(named, run_dir))
            found += [str(inside / path.name) for path in Path(named).iterdir() if path.is_file()]
    return found


def _only_stars(pattern: str) -> str:
    """For glob: of its signs only `*` is one here, since a folder's name may hold the others."""
    return glob.escape(pattern).replace("[*]", "*")
