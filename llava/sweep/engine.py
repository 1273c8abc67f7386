"""Goes through a run's graph: what is done is kept, what can be run is run, the rest is said.

Where steps are run is for a subclass to say: on this machine (here.py), by a cluster (slurm.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from llava.log import get_logger
from llava.sweep.config import Launch, SweepConfig
from llava.sweep.digests import compare
from llava.sweep.fingerprint import fingerprint
from llava.sweep.graph import TABLE, Sweep
from llava.sweep.ledger import Entry, Ledger
from llava.sweep.plan import RunConfig
from llava.sweep.planned import planned
from llava.sweep.standing import Standing
from llava.sweep.step import Step, file_name, listed_steps
from llava.sweep.table import compose
from llava.sweep.work import seconds_seen, set_aside

logger = get_logger("run")

WITHOUT_GPU = ("c-score", "cosine", "propose", "report")
"""Kinds of steps that take none."""


class Engine(ABC):
    """A run in its folder; `standing` says how far it is."""

    def __init__(self, config: RunConfig | SweepConfig, source: Path | None, thorough: bool):
        self.run_dir = config.run_dir
        self.thorough = thorough
        self.launch = config.launch if isinstance(config, SweepConfig) else Launch()
        self.ledger = Ledger(self.run_dir)
        self.standing = Standing(config.name, self.run_dir, source, self.ledger)
        self._fingerprints: dict[str, str] = {}
        self._sweep: Sweep | None = None
        self._plan: dict | None = None
        if isinstance(config, SweepConfig):
            self._sweep = Sweep(config, self.standing.is_done)
            self._stages: Iterable[list[Step]] = self._sweep.stages()
        else:
            self._stages = [listed_steps(config.steps)]

    def run(self) -> None:
        """Until nothing more can be run, or all that can be is on its way."""
        self._settle_the_past()
        finished = False
        try:
            for stage in self._stages:
                for step in stage:
                    self._add(step)
                if not self._take(stage):
                    return
                self._write()
            finished = not self.standing.failures()
        finally:
            self._write(finished)

    def failures(self) -> str:
        """What failed, and what could not be run because of it; nothing while steps may yet run."""
        return self.standing.failures()

    def told(self) -> Iterator[str]:
        """What stands on stdout at the end."""
        return self.standing.told()

    @abstractmethod
    def _take(self, stage: list[Step]) -> bool:
        """Sees to a stage; whether all its steps have come to an end."""

    def _add(self, step: Step) -> None:
        self.standing.add(step)
        if step.left_out:
            logger.warning("step %s is left out: %s", step.name, step.left_out)

    # what is to be done ------------------------------------------------------------------------

    def _settled(self, step: Step, stage: list[Step]) -> bool:
        """Whether a waiting step has come to an end without being run; its state is then set."""
        return self._blocked(step) or self._kept(step, stage)

    def _blocked(self, step: Step) -> bool:
        for name in step.after:
            state, why = self.standing.states[name], self.standing.why[name]
            if state == "left out":
                self.standing.put(step.name, "left out", f"{name} is left out")
                return True
            if state in ("failed", "blocked"):
                cause = why if state == "blocked" else f"{name} has failed"
                self.standing.put(step.name, "blocked", cause)
                return True
        return False

    def _kept(self, step: Step, stage: list[Step]) -> bool:
        if not self._ready(step) or not self._up_to_date(step, stage):
            return False
        self.standing.put(step.name, "done")
        return True

    def _ready(self, step: Step) -> bool:
        return all(map(self.standing.is_done, step.after)) and all(
            map(self.standing.ended, step.settled)
        )

    def _fingerprint(self, step: Step) -> str:
        """Of a step whose predecessors' are known."""
        if step.name not in self._fingerprints:
            done = [name for name in step.settled if self.standing.is_done(name)]
            before = [self._fingerprints[name] for name in (*step.after, *done)]
            self._fingerprints[step.name] = fingerprint(step, self.run_dir, before)
        return self._fingerprints[step.name]

    def _up_to_date(self, step: Step, stage: list[Step]) -> bool:
        """Whether the step was done before, and what it left is as it was."""
        if not self._was_done(step):
            return False
        damage = compare(self.run_dir, self.ledger.entry(step.name).outputs, self.thorough)
        if not damage:
            return True
        if step.disposable and set(damage.values()) == {"missing"}:
            return all(self._was_done(other) for other in stage if step.name in other.after)
        shown = ", ".join(f"{name} is {how}" for name, how in list(damage.items())[:3])
        logger.warning("%s is done again: %s", step.name, shown)
        if step.folder and "changed" in damage.values():
            set_aside(self.run_dir, step.folder, "it was damaged")
        return False

    def _was_done(self, step: Step) -> bool:
        entry = self.ledger.entry(step.name)
        return entry.state == "done" and entry.fingerprint == self._fingerprint(step)

    def _prepare(self, step: Step) -> None:
        """Writes what a step reads that no other step has left."""
        if step.table:
            self._compose(self.run_dir / step.table, step.settled)

    # the past ----------------------------------------------------------------------------------

    def _settle_the_past(self) -> None:
        """Ends in the ledger what has come to an end that nobody saw."""
        for name, entry in list(self.ledger.entries.items()):
            if entry.state == "running":
                self._lose(name, entry)

    def _lose(self, name: str, entry: Entry) -> None:
        seconds = seconds_seen(self.run_dir / "steps" / file_name(name), entry.began)
        self.ledger.append(name, "lost", error=self._cause(entry), seconds=seconds)

    def _cause(self, entry: Entry) -> str:
        """Why an attempt has ended without saying so."""
        return "killed"

    # what is written ---------------------------------------------------------------------------

    def _compose(self, path: Path, names: Iterable[str]) -> None:
        rows = [self.standing.steps[name].rows for name in names if self.standing.is_done(name)]
        if any(rows):
            compose(path, [self.run_dir / name for name in rows if name])

    def _write(self, finished: bool = False) -> None:
        """The table and the summary, as they are now."""
        self._compose(self.run_dir / TABLE, self.standing.steps)
        rounds, planned = (self._sweep.rounds, self._planned()) if self._sweep else ([], None)
        self.standing.write_summary(rounds, planned, finished)

    def _planned(self) -> dict | None:
        """What `law run --plan` says; None until `prepare` has made what it looks at."""
        if self._plan is None and self._sweep.found:
            self._plan = planned(self._sweep.config)
        return self._plan
