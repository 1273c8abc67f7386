"""What a process prints, passed on as it comes."""

import codecs
import os
import select
import subprocess
import sys
from typing import BinaryIO

from llava.errors import LawError

SECONDS = 0.2
"""Between two looks at whether the process has ended."""
AT_ONCE = 1 << 20
"""Bytes of a read; no pipe holds more unless it is told to."""


def relay(process: subprocess.Popen, copy: BinaryIO) -> None:
    """Writes what a process prints to our stdout and to `copy`, until it closes it or ends.

    Only the process counts: what it leaves running may hold the pipe open for ever. Raises LawError
    where our stdout takes no more.
    """
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        # asked before the read: all that it has printed is then in the pipe
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        try:
            read = os.read(pipe, AT_ONCE)
        except BlockingIOError:
            read = None
        if read:
            copy.write(read)
            _print(decoder.decode(read))
        if ended or read == b"":
            return
        if read is None:
            select.select([pipe], [], [], SECONDS)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise LawError(
            f"stdout takes no more ({error.strerror or error}), so the run ends; what its steps "
            "print is kept in the run folder's steps/"
        ) from error
