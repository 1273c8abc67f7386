"""Why a command failed: its own words, where they are in its log."""

import re
import signal
from pathlib import Path

TAIL = 1 << 18
"""Bytes of a log's end in which they are looked for; what a launcher says after them is long."""
LONGEST = 500
"""Characters of them that are told."""

OF_A_COMMAND = re.compile(r"(?:\[rank\d+\]: *)?[\w./ -]+: error: ")
"""`law: error: ...`, as our commands and argparse end."""
RAISED = re.compile(r"(?:\[rank\d+\]: *)?(?:\w+\.)*\w*(?:Error|Exception|Interrupt)(?:: |$)")
"""The last line of a traceback."""
CONSEQUENCE = re.compile(
    r"ChildFailedError|SignalException|CalledProcessError|ProcessRaisedException|Dist\w*Error"
    r"|NCCL|Connection (closed|reset) by peer|Broken pipe"
)
"""What launchers, and processes whose others have ended, raise in their turn."""
KILLED = re.compile(r"Signal \d+ \(\w+\) received by PID \d+")
"""torchrun's words for a process that could say nothing."""


def why(code: int, log: Path | None, since: int = 0) -> str:
    """Why a command that ended with `code` failed; nothing where it did not.

    Args:
        log: what it wrote, from byte `since` on; None where that went to our own stderr.
    """
    place = f" ({log})" if log else ""
    if code < 0:
        memory = "; the machine may have been out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {_signal(-code)}{memory}{place}"
    if not code:
        return ""
    if log is None:
        return f"exit code {code}; what it printed stands above"
    return f"exit code {code}: {last_words(log, since)}{place}"


def last_words(log: Path, since: int = 0) -> str:
    """The line of a log that tells best why its writer ended."""
    with open(log, "rb") as handle:
        end = handle.seek(0, 2)
        handle.seek(max(since, end - TAIL))
        text = handle.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if RAISED.match(line) and not CONSEQUENCE.search(line)]
    for found in (
        [line for line in lines if OF_A_COMMAND.match(line)],
        raised,
        [match[0] for line in lines if (match := KILLED.search(line))],
        [line for line in lines if "error:" in line.lower()],
        lines,
    ):
        if found:
            return found[-1][:LONGEST]
    return "it said nothing"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time ones have no names
        return f"signal {number}"
