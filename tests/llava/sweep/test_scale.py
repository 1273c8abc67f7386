"""1,023 representations and 8 benchmarks, all of it done: how long `law run` looks at a run folder.

Every output and every line of the ledger is there, as a run would have left them; no step is run.
"""

import json
import subprocess
import sys

from llava.config import read_yaml
from llava.sweep.digests import input_digest, states_of
from llava.sweep.fingerprint import fingerprint
from llava.sweep.graph import Sweep
from llava.sweep.plan import load_run

REPRESENTATIONS, BENCHMARKS = 1023, 8
LOOK = """
import sys, time
start = time.monotonic()
from llava.sweep.run import main
main([sys.argv[1]])
assert "torch" not in sys.modules
# not ru_maxrss, in which the memory of the process that started this one stays
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.monotonic() - start, peak.split()[1])
"""
LINE = "{},{},{},.5,fraction,true,,,stub,,,,,2026-01-01"


def test_a_search_space_that_is_done_is_looked_at_in_seconds(tmp_path):
    from llava.results import COLUMNS

    tasks = [f"task{number}" for number in range(BENCHMARKS)]
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"""
name: scale
run_dir: {tmp_path / "run"}
llm: somewhere/llm
search: {{encoders: {read_yaml("configs/search_10.yaml")["search"]["encoders"]}, up_to: 10}}
stage1: {{mm_vision_grid_align: interpolate}}
stage2: {{}}
correspondence: {{data: pairs}}
alignment: {{law: nll, nll: {{}}}}
evaluation: {{tasks: {tasks}}}
policy: {{stage2: all}}
"""
    )
    config = load_run(path)
    events, prints = [], {}
    sweep = Sweep(config, lambda name: True, lambda steps: True)
    for step in (step for stage in sweep.stages() for step in stage):
        for name in step.outputs:
            file = config.run_dir / name.replace("*", "model")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"folders": []}' if step.listing else "made")
        if step.rows:
            measured = list(sweep.found) if step.kind == "c-score" else [step.representation]
            quantity = {"c-score": "C_pck", "nll": "A_nll"}.get(step.kind, "performance")
            shown = tasks if step.kind == "evaluate" else ["set"]
            rows = [LINE.format(name, quantity, task) for name in measured for task in shown]
            table = "\n".join([",".join(COLUMNS), *rows, ""])
            (config.run_dir / step.rows).write_text(table)
        known = [prints[name] for name in (*step.after, *step.settled)]
        prints[step.name] = fingerprint(step, config.run_dir, known, input_digest)
        told = {"step": step.name, "when": "2026-01-01T00:00:00+00:00", "processes": 1}
        names = [name.replace("*", "model") for name in step.outputs]
        states = {name: one.plain() for name, one in states_of(config.run_dir, names).items()}
        events += [
            told | {"state": "running", "fingerprint": prints[step.name]},
            told | {"state": "done", "seconds": 60.0, "outputs": states},
        ]
    (config.run_dir / "ledger.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")
    assert len(sweep.found) == REPRESENTATIONS
    done = subprocess.run(
        [sys.executable, "-c", LOOK, path], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    seconds, kilobytes = map(float, done.stdout.splitlines()[-1].split())
    assert f"{len(prints)} of {len(prints)} steps done" in done.stdout
    lines = (config.run_dir / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + REPRESENTATIONS * (1 + 1 + BENCHMARKS)
    assert kilobytes < 500_000
    assert seconds < 30  # 5 on a quiet machine; others may share this one
