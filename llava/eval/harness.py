"""lmms-eval, imported when needed; its tasks by name; what to type where it is missing."""

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llava import LMMS_EVAL
from llava.errors import LawError, MissingPackageError, UsageError, unknown_name
from llava.log import get_logger

logger = get_logger("eval")

INSTALL = f'pip install -e ".[eval]" && pip install --no-deps lmms-eval=={LMMS_EVAL}'
LISTING = "lmms-eval tasks list"
OWN_TASKS = Path(__file__).with_name("tasks")
"""Tasks of this package, for `--include_path`."""


def harness(module: str = "") -> ModuleType:
    """lmms_eval, or one of its modules; MissingPackageError with the line that installs it."""
    name = f"lmms_eval.{module}" if module else "lmms_eval"
    _quieten()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{name} cannot be imported ({error}); type `{INSTALL}`, or name an interpreter that "
            "has it with --python"
        ) from error


def task_manager(
    names: Sequence[str], include: Iterable[str | os.PathLike] = (), model: str | None = None
) -> Any:
    """lmms-eval's index of tasks, in which all of `names` are.

    Tasks are asked as they say for `model`, lmms-eval's name of a class, and else for any.
    Ours and those under `include` are looked at first: to index the 1,900 that lmms-eval ships
    takes some seconds. Raises UsageError for a folder that is not there, or for a name that is
    none, with the nearest one.
    """
    folders = [OWN_TASKS, *map(Path, include)]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--include_path {folder}: no such folder")
    make = harness("tasks").TaskManager
    given = {
        "verbosity": "WARNING",
        "include_path": [str(folder) for folder in folders],
        "model_name": model,
    }
    manager = make(include_defaults=False, **given)
    if not set(names) <= set(manager.all_tasks):
        manager = make(include_defaults=True, **given)
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(unknown_name("task", name, manager.all_tasks, LISTING))
    return manager


def load_tasks(names: Sequence[str], manager: Any) -> dict[str, Any]:
    """Task name -> lmms-eval's task with its data set read; groups are taken apart.

    Raises LawError where a data set cannot be had.
    """
    # as lmms-eval does before it reads data: processes of a launch would else see a deadlock
    harness("evaluator")._enable_reentrant_filelocks()
    try:
        found = harness("tasks").get_task_dict(list(names), manager, "simple")
    except Exception as error:  # data sets raise many kinds, wrapped in RetryError
        raise LawError(
            f"{', '.join(names)}: the data cannot be had: {_cause(error)}; download it once with a "
            "network, or set HF_HOME to a cache that holds it"
        ) from error
    outputs = harness("evaluator_utils").get_task_list(found)
    return {output.task_name: output.task for output in outputs}


def _cause(error: BaseException) -> str:
    """What went wrong, out of tenacity's RetryError where it is one."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    told = inner or error
    return f"{type(told).__name__}: {told}".splitlines()[0][:300]


@functools.cache
def _quieten() -> None:
    """Its log below warnings goes away, once, unless LAW_LOG asks for DEBUG."""
    if (os.environ.get("LAW_LOG") or "").upper() == "DEBUG":
        return
    with contextlib.suppress(ImportError):
        from loguru import logger as theirs

        theirs.remove()
        theirs.add(sys.stderr, level="WARNING")
