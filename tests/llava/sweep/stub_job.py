"""Python as a cluster's jobs have it in tests: `law` in their steps is stub_law.py.

python stub_job.py -u -m submitit.core._submit FOLDER
"""

import runpy
import sys
from pathlib import Path

from llava.sweep import graph, step

STUB = str(Path(__file__).with_name("stub_law.py"))
for module in (graph, step):
    module.law = lambda *words: (STUB, *words)
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__")
