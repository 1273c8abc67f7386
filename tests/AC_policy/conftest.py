"""What tests of the policy share; `plain`, the second implementation beside it, is importable."""

import sys
from pathlib import Path

import pytest

from llava.__main__ import main

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def law(capsys):
    """Runs a command line: (exit code, stdout, stderr)."""

    def run(*argv):
        code = 0
        try:
            main(list(map(str, argv)))
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
