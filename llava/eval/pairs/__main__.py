"""`python -m llava.eval.pairs`: the same as `law pairs`."""

import sys

from llava.eval.pairs.cli import main
from llava.exits import run_command

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
