"""LLaVA's script of this name: `python llava/eval/run_llava.py --model-path ... --query ...`."""

import sys

from llava.eval.chat import main
from llava.exits import run_command

if __name__ == "__main__":
    run_command(main, sys.argv[1:], "run_llava")
