"""Goes through a run's graph: what is done is kept, what can be run is run, the rest is said.

Where steps are run is for a subclass to say: on this machine (here.py), by a cluster (slurm.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llava.errors import LawError
from llava.log import get_logger
from llava.sweep.config import Launch, SweepConfig
from llava.sweep.digests import compare
from llava.sweep.fingerprint import fingerprint
from llava.sweep.graph import TABLE, Sweep
from llava.sweep.inputs import Inputs
from llava.sweep.ledger import Entry, Ledger
from llava.sweep.plan import RunConfig
from llava.sweep.planned import planned
from llava.sweep.standing import Standing
from llava.sweep.step import Step, file_name, listed_steps
from llava.sweep.table import compose, count_rows
from llava.sweep.work import bring_back, seconds_seen, set_aside

logger = get_logger("run")


class Engine(ABC):
    """A run in its folder; `standing` says how far it is."""

    def __init__(self, config: RunConfig | SweepConfig, source: Path | None, thorough: bool):
        self.run_dir = config.run_dir
        self.thorough = thorough
        self.launch = config.launch if isinstance(config, SweepConfig) else Launch()
        self.ledger = Ledger(self.run_dir)
        self.standing = Standing(config.name, self.run_dir, source, self.ledger)
        self._inputs = Inputs(self.run_dir)
        self._fingerprints: dict[str, str] = {}
        self._sweep: Sweep | None = None
        self._plan: dict | None = None
        if isinstance(config, SweepConfig):
            self._sweep = Sweep(config, self.standing.is_done, self._were_done)
            self._stages: Iterable[list[Step]] = self._sweep.stages()
        else:
            self._stages = [listed_steps(config.steps)]

    def run(self) -> None:
        """Until nothing more can be run, or all that can be is on its way."""
        self._settle_the_past()
        ended = False
        try:
            for stage in self._stages:
                for step in stage:
                    self._add(step)
                if not self._take(stage):
                    return
                self._write()
            ended = True
        finally:
            self._write(ended)

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
        if self._blocked(step):
            return True
        try:
            return self._kept(step, stage) or (self._ready(step) and self._lacks_inputs(step))
        except LawError as error:  # a file that cannot be read: others may not need it
            self._fail(step, str(error))
            return True

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

    def _lacks_inputs(self, step: Step) -> bool:
        """Whether files that a step must read are not there; it has then failed."""
        lacking = [name for name in step.inputs if not Path(name).exists()]
        if lacking:
            why = f"{', '.join(lacking)}: no such file or folder (seen from {Path.cwd()})"
            self._fail(step, why)
        return bool(lacking)

    def _fail(self, step: Step, why: str) -> None:
        """Of a step that is not even begun."""
        self.standing.put(step.name, "failed", why)
        logger.error("%s failed: %s", step.name, why)

    def _ready(self, step: Step) -> bool:
        return all(map(self.standing.is_done, step.after)) and all(
            map(self.standing.ended, step.settled)
        )

    def _fingerprint(self, step: Step) -> str:
        """Of a step whose predecessors' are known."""
        if step.name not in self._fingerprints:
            self._fingerprints[step.name] = self._fingerprint_after(step, self._fingerprints)
        return self._fingerprints[step.name]

    def _fingerprint_after(self, step: Step, known: Mapping[str, str]) -> str:
        done = [name for name in step.settled if self.standing.is_done(name)]
        before = [known[name] for name in (*step.after, *done)]
        return fingerprint(step, self.run_dir, before, self._inputs.digest)

    def _up_to_date(self, step: Step, stage: list[Step]) -> bool:
        """Whether the step was done before, and what it left is as it was."""
        entry, wanted = self.ledger.entry(step.name), self._fingerprint(step)
        if wanted not in entry.done:
            return False
        now = entry.state == "done" and entry.fingerprint == wanted
        if not now and not bring_back(self.run_dir, step, entry, wanted):
            return False
        damage = compare(self.run_dir, entry.done[wanted], self.thorough)
        if not damage:
            if not now:
                outputs = {name: state.plain() for name, state in entry.done[wanted].items()}
                self.ledger.append(step.name, "done", fingerprint=wanted, outputs=outputs)
            return True
        if step.disposable and set(damage.values()) == {"missing"}:
            return all(self._up_to_date(s, stage) for s in stage if step.name in s.after)
        shown = ", ".join(f"{name} is {how}" for name, how in list(damage.items())[:3])
        logger.warning("%s is done again: %s", step.name, shown)
        if step.folder and "changed" in damage.values():
            set_aside(self.run_dir, step.folder, "", "it was damaged")
        return False

    def _were_done(self, steps: Iterable[Step]) -> bool:
        """Whether these, were they in the graph, would be found to be done."""
        known = dict(self._fingerprints)
        for step in steps:
            if not {*step.after, *filter(self.standing.is_done, step.settled)} <= known.keys():
                return False
            try:
                known[step.name] = self._fingerprint_after(step, known)
            except LawError:  # said where the step itself is looked at
                return False
            if known[step.name] not in self.ledger.entry(step.name).done:
                return False
        return True

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
        compose(path, [self.run_dir / name for name in rows if name])

    def _write(self, ended: bool = False) -> None:
        """The table and the summary, as they are now.

        Until the run has `ended` a table that has more rows stays: they are those of steps that
        are yet to be looked at.
        """
        if self._sweep:
            path = self.run_dir / TABLE
            held = [self.standing.steps[name].rows for name in self.standing.of("done")]
            tables = [self.run_dir / name for name in held if name]
            if ended or count_rows([path]) <= count_rows(tables):
                compose(path, tables)
        rounds, planned = (self._sweep.rounds, self._planned()) if self._sweep else ([], None)
        finished = ended and not self.standing.failures()
        self.standing.write_summary(rounds, planned, finished)

    def _planned(self) -> dict | None:
        """What `law run --plan` says; None until `prepare` has made what it looks at."""
        if self._plan is None and self._sweep.found:
            try:
                self._plan = planned(self._sweep.config)
            except LawError as error:  # a plan is no reason to end what it is a plan of
                logger.warning("without a plan: %s", error)
                self._plan = {}
        return self._plan or None
