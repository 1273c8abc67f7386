"""Stands in for `law` in tests of sweeps: every command leaves at once what the real one would.

    python stub_law.py run YAML      `law run`, whose steps are run by this file
    python stub_law.py WORDS         one command

`STUB_SLEEP` seconds pass in each command. `STUB_FAIL` holds words, all of which stand in the
command lines that fail; with `STUB_KILL` these kill themselves. `STUB_LOG` gets every command line.
`STUB_RENAMES` is a representation whose C score comes under another name.
"""

import csv
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

COLUMNS = (
    *("representation", "quantity", "benchmark", "value", "unit", "higher_is_better", "stderr"),
    *("n", "protocol", "seed", "spec_hash", "run_dir", "commit", "date"),
)
"""Those of llava.results, which is slow to import."""


def main(words: list[str]) -> None:
    """Runs a sweep, or one command."""
    if words[0] == "run":
        from llava.exits import run_command
        from llava.sweep import graph, run, step

        for module in (graph, step):
            module.law = lambda *words: (__file__, *words)
        run_command(run.main, words[1:])
        return
    _log(" ".join(words))
    time.sleep(float(os.environ.get("STUB_SLEEP", "0")))
    failing = os.environ.get("STUB_FAIL", "").split()
    if failing and all(any(one in word for word in words) for one in failing):
        if "STUB_KILL" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        print("law: error: the stub was told to fail", file=sys.stderr)
        sys.exit(1)
    COMMANDS[words[0]](words, _flags(words))


def _log(text: str) -> None:
    if "STUB_LOG" in os.environ:
        with open(os.environ["STUB_LOG"], "a") as log:
            log.write(text + "\n")


def _flags(words: list[str]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("_", "-")
            flags.setdefault(name, [])
        elif name:
            flags[name].append(word)
    return flags


def _score(*told: str) -> float:
    """A number between 0 and 1 that depends on nothing but these words."""
    return int(hashlib.sha256(" ".join(told).encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def _write(path: str | Path, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _row(path: str, name: str, quantity: str, benchmark: str, unit: str = "fraction") -> None:
    higher = "false" if quantity == "A_nll" else "true"
    told = {"representation": name, "quantity": quantity, "benchmark": benchmark, "unit": unit}
    told |= {"value": _score(name, quantity, benchmark), "higher_is_better": higher}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", lineterminator="\n")
        if not handle.tell():
            writer.writeheader()
        writer.writerow(told | {"protocol": "stub", "date": time.strftime("%Y-%m-%d")})


def _prepare(words, flags):
    _write(words[1], "made")


def _features(words, flags):
    folder = Path(flags["out"][0]) / f"{flags['model'][0]}-{flags['frame'][0]}".replace("/", "--")
    _write(folder / "0.safetensors", f"tokens of {flags['model'][0]}")
    _write(flags["json"][0], json.dumps({"folders": [str(folder)], "images": 1}))


def _c_score(words, flags):
    for model in flags["model"]:
        model += "@1" if model == os.environ.get("STUB_RENAMES") else ""
        _row(flags["results"][0], model, "C_pck", "pairs")
    _write(flags["json"][0], "{}")


def _train(words, flags):
    folder = Path(flags["output-dir"][0])
    _write(folder / "config.json", json.dumps(flags))
    name = "mm_projector.bin" if "tune-mm-mlp-adapter" in flags else "model.safetensors"
    _write(folder / name, " ".join(flags["vision-tower"]))


def _a_score(words, flags):
    if words[1] == "nll":
        name = flags["vision-tower"][0]
        _write(Path(flags["output-dir"][0]) / "a_score.json", "{}")
        _row(flags["results"][0], name, "A_nll", "captions", "nats")
    elif words[1] == "dump":
        name = flags["as"][0].lstrip("./").replace("/", "--")
        for benchmark in flags["benchmark"]:
            _write(Path(flags["out"][0]) / benchmark / name / "0.safetensors", name)
    else:
        _row(flags["results"][0], flags["targets"][0], "A_cosine", flags["benchmark"][0])


def _evaluate(words, flags):
    """Goes on with the benchmarks that its folder does not hold yet."""
    if not (Path(flags["run"][0]) / "model.safetensors").exists():
        print("law: error: no weights", file=sys.stderr)
        sys.exit(1)
    name = json.loads((Path(flags["run"][0]) / "config.json").read_text())["vision-tower"][0]
    for task in flags["tasks"]:
        answers = Path(flags["out"][0]) / f"{task}.json"
        if not answers.exists():
            _write(answers, "{}")
            _log(f"asks {task} {name}")
        _row(flags["results"][0], name, "performance", task)


def _policy(words, flags):
    """Proposes what stands first and is not finetuned; it says stop after STUB_ROUNDS of them."""
    lines = [line.split(",") for line in Path(flags["table"][0]).read_text().splitlines()[1:]]
    scored = {line[0] for line in lines if line[1].startswith("A_")}
    tuned = {line[0] for line in lines if line[1] == "performance"}
    known = dict.fromkeys(line[0] for line in lines if line[1] == "C_pck")
    left = [name for name in known if name not in tuned | set(flags.get("without", []))]
    stop = len(tuned) >= int(os.environ.get("STUB_ROUNDS", "2")) or not left
    answer = {
        "stage1": [name for name in left if name not in scored][:1],
        "stage2": [] if stop else [name for name in left if name in scored][:1],
        "stop": stop,
        "reason": "the stub's",
    }
    if "STUB_PROPOSES" in os.environ:
        answer |= {"stage2": [os.environ["STUB_PROPOSES"]], "stop": False}
    _write(flags["json"][0], json.dumps(answer))


def _report(words, flags):
    _write(flags["out"][0], Path(flags["table"][0]).read_text())


COMMANDS = {
    "a-score": _a_score,
    "c-score": _c_score,
    "evaluate": _evaluate,
    "features": _features,
    "policy": _policy,
    "prepare": _prepare,
    "report": _report,
    "train": _train,
}

if __name__ == "__main__":
    main(sys.argv[1:])
