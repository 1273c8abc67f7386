"""How a command ends: 2 for bad usage, 1 for failed work, and one line that says why."""

import contextlib
import os
import select
import sys
from collections.abc import Callable

from llava.errors import LawError

PEAK_VARIABLE = "LAW_PEAK_FILE"
"""Environment variable: where each process writes the most GPU memory that it has taken, bytes."""
OURS = ("llava", "A_score", "C_score", "AC_policy")


def run_command(main: Callable[[list[str]], None], argv: list[str], name: str = "law") -> None:
    """Runs `main(argv)`; what a user can mend is one line on stderr, not a traceback."""
    try:
        main(argv)
    except LawError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in OURS:
            raise
        print(f"{name}: error: {error}; `law doctor` says what to install", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `law ... | head` closes the pipe; what was asked for is out
        if not _nobody_reads():
            raise
    finally:
        _flush()
        _write_peak()


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose other end is closed; other pipes may break, too."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file
        return False


def _flush() -> None:
    """Empties stdout; where nobody reads it any more it is let go, and the exit code stands."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_peak() -> None:
    """Tells who started this process how much GPU memory it took, where it asked and there is any.

    A measurement beside the work: the work's own end must not depend on it.
    """
    path, torch = os.environ.get(PEAK_VARIABLE), sys.modules.get("torch")
    if not path or torch is None or not torch.cuda.is_initialized():
        return
    peak = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    with contextlib.suppress(OSError), open(f"{path}.{os.getpid()}", "w") as handle:
        handle.write(str(peak))
