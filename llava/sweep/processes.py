"""The processes of steps: how they are known, and how they are ended with all they have started."""

import contextlib
import os
from pathlib import Path

MARK = "LAW_STEP"
"""Environment variable of a step's processes: the run folder that they work in."""


def kill_tree(pid: int) -> None:
    """Kills a process and all that it has started."""
    import psutil

    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_orphans(run_dir: Path) -> list[int]:
    """Kills steps of this folder whose run was killed; they would write beside the new ones.

    Returns their process ids. Only processes of this machine and user are seen.
    """
    import psutil

    here = str(run_dir.resolve())
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in own and process.environ().get(MARK) == here:
                orphans.append(process)
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(orphans, timeout=30)
    return [process.pid for process in orphans]
