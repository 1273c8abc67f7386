"""The same entry under the name that LLaVA's scripts with flash attention call."""

import sys

from llava.exits import run_command
from llava.train.train import main

if __name__ == "__main__":
    run_command(main, sys.argv[1:], "law train")
