"""The same evaluation in another interpreter, or in several processes of this one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llava.errors import LawError, UsageError
from llava.eval.harness import INSTALL
from llava.log import get_logger

logger = get_logger("eval")

ROOT = Path(__file__).parents[3]
NEEDED = {
    "llava.model.builder": f"pip install -e {ROOT}",
    "lmms_eval.evaluator": INSTALL,
}
"""What the other interpreter must import, and what to type where it does not."""
PROBE = """
import importlib, json, os, sys
out, sys.stdout = os.dup(1), sys.stderr
os.dup2(2, 1)
said = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
os.write(out, json.dumps(said).encode())
"""


def in_interpreter(python: str, argv: Sequence[str]) -> NoReturn:
    """Becomes `law evaluate ARGV` by the interpreter `python`.

    That environment needs lmms-eval and what `llava` imports, not `llava` itself: a checkout of it
    is put on its path. Raises UsageError for no interpreter, LawError naming what is missing.
    """
    environment = _environment()
    logger.info("looking at %s", python)
    try:
        done = subprocess.run(
            [python, "-c", PROBE, *NEEDED], env=environment, capture_output=True, text=True
        )
        missing = json.loads(done.stdout)
    except OSError as error:
        raise UsageError(f"--python {python}: cannot be run: {error.strerror}") from error
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UsageError(f"--python {python}: no Python interpreter that starts: {last}") from None
    if missing:
        told = "; ".join(f"{name} does not import ({why})" for name, why in missing.items())
        types = "; ".join(f"`{NEEDED[name]}`" for name in missing)
        raise LawError(f"--python {python}: {told}; in that environment type {types}")
    _become([python, "-m", "llava", "evaluate", *argv], environment)


def in_processes(count: int, argv: Sequence[str]) -> NoReturn:
    """Becomes torchrun, with `law evaluate ARGV` in `count` processes that share every task."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without the bare -- it would take our --run for an abbreviation of its own --run-path.
    command = [*launcher, "--nproc_per_node", str(count), "-m", "--", "llava", "evaluate", *argv]
    _become(command, _environment())


def without(argv: Sequence[str], flag: str) -> list[str]:
    """`argv` without a flag and its value."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def _become(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Puts another program in this process's place: signals reach it, its exit code is ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is meant


def _environment() -> dict[str, str]:
    """Ours with this checkout on Python's path; installed ones stand among packages that another
    interpreter must not see. A folder `llava` in the current directory is not taken for it."""
    found = {**os.environ, "PYTHONSAFEPATH": "1"}
    if not (ROOT / "pyproject.toml").is_file():
        return found
    before = os.environ.get("PYTHONPATH")
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), before]))}
