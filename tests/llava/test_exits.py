"""How commands end when stdout, or another pipe, breaks."""

import os
import subprocess
import sys

import pytest

WORK = """
import sys
from llava.errors import LawError
from llava.exits import run_command

def main(argv):
    print("told " * 30000 if argv[0] != "quiet" else "told")
    if argv[0] in ("fails", "quiet"):
        raise LawError("it failed")
    if argv[0] == "inner":
        raise BrokenPipeError(32, "Broken pipe")

run_command(main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("what", "reader", "code", "told"),
    [
        ("works", "closed", 0, ""),
        ("quiet", "closed", 1, "law: error: it failed\n"),
        ("fails", "open", 1, "law: error: it failed\n"),
        ("inner", "open", 1, "BrokenPipeError: [Errno 32] Broken pipe\n"),
    ],
)
def test_a_closed_stdout_hides_no_failure(what, reader, code, told):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, what],
        stdout=subprocess.PIPE if reader == "closed" else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={key: text for key, text in os.environ.items() if key != "PYTHONUNBUFFERED"},
        text=True,
    )
    if reader == "closed":
        process.stdout.close()
    error = process.stderr.read()
    assert process.wait(60) == code
    assert error.endswith(told) if reader == "open" else error == told
