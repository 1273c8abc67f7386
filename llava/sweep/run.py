"""`law run FILE`: the steps of a run, one after another, each logged with its time and outputs.

The run folder gets the resolved config, the environment, one text file per step and `log.jsonl`.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from packaging.requirements import Requirement

from llava import __version__
from llava.config import save
from llava.errors import LawError
from llava.files import write_json
from llava.log import get_logger
from llava.sweep.plan import RunConfig, StepConfig, load_run

logger = get_logger("run")


def main(argv: list[str]) -> None:
    """Runs every step; the first that fails ends the run with exit code 1."""
    parser = argparse.ArgumentParser(prog="law run", description="Run the steps of a YAML file.")
    parser.add_argument("config", type=Path, metavar="YAML")
    parser.add_argument("--run-dir", type=Path, help="instead of the file's run_dir")
    parser.add_argument("--plan", action="store_true", help="print the steps and stop")
    arguments = parser.parse_args(argv)
    config = load_run(arguments.config)
    if arguments.run_dir:
        config = dataclasses.replace(config, run_dir=arguments.run_dir)
    if arguments.plan:
        for step in config.steps:
            lacking = ", ".join(name for name in step.needs if not _installed(name))
            note = f"  (left out: {lacking} is not installed)" if lacking else ""
            print(f"{step.name}: law {' '.join(step.arguments(config.run_dir))}{note}")
        return
    left_out = run(config)
    done = [step for step in config.steps if step.name not in left_out]
    print(f"\n{config.name}: {len(done)} of {len(config.steps)} steps done, in {config.run_dir}/")
    for step in done:
        for output in step.outputs:
            print(f"  {config.run_dir / output}")
    for name, why in left_out.items():
        print(f"  left out: {name}, {why}")


def run(config: RunConfig) -> dict[str, str]:
    """Runs the steps in order; the steps left out for want of a package, and which it is.

    Raises LawError naming the step that failed.
    """
    left_out = {}
    save(config, config.run_dir / "config.yaml")
    write_json(config.run_dir / "environment.json", environment())
    with open(config.run_dir / "log.jsonl", "a", encoding="utf-8") as log:
        for index, step in enumerate(config.steps, 1):
            lacking = [name for name in step.needs if not _installed(name)]
            if lacking:
                left_out[step.name] = f"{', '.join(lacking)} is not installed"
                logger.warning("step %s is left out: %s", step.name, left_out[step.name])
                log.write(json.dumps({"step": step.name, "left_out": left_out[step.name]}) + "\n")
                log.flush()
                continue
            logger.info("step %d of %d: %s", index, len(config.steps), step.name)
            entry = _run_step(step, config.run_dir)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            if entry["error"]:
                raise LawError(f"step '{step.name}' failed: {entry['error']}")
    return left_out


def _installed(text: str) -> bool:
    """Whether a requirement such as `scikit-image` or `torch>=2` is met."""
    requirement = Requirement(text)
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _run_step(step: StepConfig, run_dir: Path) -> dict:
    """Runs one step; its stdout goes to ours and to `<name>.txt`."""
    start = time.monotonic()
    command = [sys.executable, "-m", "llava", *step.arguments(run_dir)]
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with open(run_dir / f"{step.name}.txt", "w", encoding="utf-8") as copy:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        for line in process.stdout:
            sys.stdout.write(line)
            copy.write(line)
        code = process.wait()
    sys.stdout.flush()
    outputs = [run_dir / name for name in step.outputs]
    missing = [str(path) for path in outputs if not path.is_file()]
    error = f"exit code {code}; what it printed stands above" if code else ""
    if not error and missing:
        error = f"it left no {', '.join(missing)}"
    return {
        "step": step.name,
        "command": ["law", *command[3:]],
        "started": started,
        "seconds": round(time.monotonic() - start, 3),
        "exit_code": code,
        "error": error,
        "outputs": {} if error else {path.name: _digest(path) for path in outputs},
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def environment() -> dict:
    """Versions, machine and commit: what a number of this run rests on."""
    packages = {found.name: found.version for found in distributions()}
    return {
        "law": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "commit": commit(),
        "packages": dict(sorted(packages.items())),
    }


def commit() -> str | None:
    """Commit of the source tree, with `+` where it holds changes; None outside of a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
