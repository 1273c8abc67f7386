"""`law run FILE`: the steps of a YAML file, each in its own process, until all that can is done.

A step whose fingerprint is that of its last good end, and whose outputs are as they were, is not
run again. Killed anywhere and started again, a run ends with the same table.
"""

import argparse
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from llava.config import read_yaml
from llava.errors import LawError, UsageError
from llava.files import write_json
from llava.log import get_logger
from llava.provenance import environment
from llava.sweep.chain import Chain
from llava.sweep.config import SweepConfig
from llava.sweep.engine import Engine
from llava.sweep.here import Here
from llava.sweep.plan import RunConfig, load_run, save_run
from llava.sweep.processes import kill_orphans
from llava.sweep.slurm import Slurm
from llava.sweep.space import check_names
from llava.sweep.standing import Standing, counted
from llava.sweep.step import listed_steps, shown

logger = get_logger("run")

CONFIG = "config.yaml"
"""In the run folder: the YAML with its defaults."""
HANDING_OVER = 60.0
"""Seconds that a run may still need to end when the job that goes on with it has begun."""


def main(argv: list[str]) -> None:
    """Runs, or plans; exit code 1 where a step failed."""
    arguments = _parser().parse_args(argv)
    config = load_run(arguments.config, arguments.run_dir)
    if arguments.json and not (arguments.plan and isinstance(config, SweepConfig)):
        raise UsageError(
            "--json writes the plan of a sweep; give it with --plan and a sweep's YAML"
        )
    if arguments.plan:
        _print_plan(config, arguments.json)
        return
    run(config, arguments.config, thorough=arguments.verify)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="law run", description="Run the steps of a YAML file.")
    parser.add_argument("config", type=Path, metavar="YAML")
    parser.add_argument("--run-dir", type=Path, help="instead of the file's run_dir")
    parser.add_argument(
        "--plan", action="store_true", help="print steps, disk, memory and GPU hours, and stop"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --plan: write it here")
    parser.add_argument(
        "--verify", action="store_true", help="read all outputs again, however large"
    )
    return parser


def _print_plan(config: RunConfig | SweepConfig, path: Path | None) -> None:
    if isinstance(config, SweepConfig):
        from llava.sweep.planning import as_text, plan, resolved

        planned = plan(config, *resolved(config))
        print(as_text(planned), end="")
        if path:
            write_json(path, planned.plain())
        return
    for step in listed_steps(config.steps):
        note = f"  (left out: {step.left_out})" if step.left_out else ""
        print(f"{step.name}: {shown(step)}{note}")


def run(
    config: RunConfig | SweepConfig, source: Path | None = None, thorough: bool = False
) -> Standing:
    """Runs what is not done, and prints what there is then.

    Raises LawError where another run works in the folder, or, at the end, where a step failed.
    """
    if isinstance(config, SweepConfig):
        check_names(config)
    _make(config.run_dir)
    with _alone(config.run_dir):
        _refuse_another(config)
        Chain(config.run_dir).refuse_while_active()
        save_run(config, config.run_dir / CONFIG)
        write_json(config.run_dir / "environment.json", environment())
        _end_orphans(config.run_dir)
        engine: Engine
        if isinstance(config, SweepConfig) and config.launch.how == "slurm":
            engine = Slurm(config, source, thorough, go_on)
        else:
            engine = Here(config, source, thorough)
        engine.run()
    return _ended(engine)


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{run_dir}: cannot be made ({error.strerror}); take another --run-dir"
        ) from error


def _refuse_another(config: RunConfig | SweepConfig) -> None:
    """Raises UsageError where the folder is that of a run of another name."""
    path = config.run_dir / CONFIG
    if not path.exists():
        return
    found = read_yaml(path)
    name = found.get("name") if isinstance(found, dict) else None
    if name != config.name:
        raise UsageError(
            f"{config.run_dir}: holds the run '{name}', and this is '{config.name}'; take another "
            "--run-dir, or give the YAML that name if it is the same run"
        )


def go_on(run_dir: Path, source: Path | None, thorough: bool, ended: frozenset[str]) -> None:
    """Goes on with a run whose jobs have `ended`, in a job that was submitted after them.

    Raises LawError at the end of the run where a step failed.
    """
    with _alone(run_dir, HANDING_OVER):
        config = load_run(run_dir / CONFIG)
        engine = Slurm(config, source, thorough, go_on, ended)
        engine.run()
    _ended(engine)


def _ended(engine: Engine) -> Standing:
    failed = engine.failures()
    try:
        print("\n".join(engine.told()))
    except BrokenPipeError:
        if not failed:  # which is said in any case
            raise
    if failed:
        raise LawError(failed)
    return engine.standing


def _end_orphans(run_dir: Path) -> None:
    """Ends what a killed run has left running on this machine."""
    if orphans := kill_orphans(run_dir):
        logger.warning("%s of a killed run ended", counted(len(orphans), "process", "processes"))


@contextlib.contextmanager
def _alone(run_dir: Path, patience: float = 0.0) -> Iterator[None]:
    """The folder is this run's; the lock ends with the process, however that ends."""
    deadline = time.monotonic() + patience
    with open(run_dir / ".lock", "a+", encoding="utf-8") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                handle.seek(0)
                other = handle.read().strip() or "another process"
                raise LawError(
                    f"{run_dir}: {other} runs here; wait for it, or take another --run-dir"
                ) from None
        handle.truncate(0)
        handle.write(f"`law run`, process {os.getpid()} on {os.uname().nodename}")
        handle.flush()
        yield
