"""How a run stands: every step with its state, and what is said of it at the end."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava.files import write_json
from llava.sweep.graph import REPORT, SUMMARY, TABLE, Round
from llava.sweep.ledger import Ledger
from llava.sweep.step import Step

ENDED = ("done", "failed", "blocked", "left out")


@dataclass
class Standing:
    """The steps of a run as far as they are known.

    Attributes:
        steps: by name, in the order of the graph.
        states: step -> waiting, submitted, running, done, failed, blocked or left out.
        why: what is to be said of a state: an error, or what a step waits for in vain.
    """

    name: str
    run_dir: Path
    source: Path | None
    ledger: Ledger
    steps: dict[str, Step] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """A new step, which waits unless it is left out."""
        self.steps[step.name] = step
        self.put(step.name, "left out" if step.left_out else "waiting", step.left_out)

    def put(self, name: str, state: str, why: str = "") -> None:
        """A step's new state."""
        self.states[name], self.why[name] = state, why

    def is_done(self, name: str) -> bool:
        """Whether the step has come to a good end."""
        return self.states.get(name) == "done"

    def ended(self, name: str) -> bool:
        """Whether the step has come to an end, whichever."""
        return self.states[name] in ENDED

    def of(self, state: str) -> list[str]:
        """Names of the steps in a state."""
        return [name for name, now in self.states.items() if now == state]

    def failures(self) -> str:
        """What failed and what could not be run because of it; nothing where all is well."""
        failed, blocked = self.of("failed"), self.of("blocked")
        if not failed:
            return ""
        lines = [f"{counted(len(failed), 'step')} failed; what does not depend on it is done"]
        lines += [f"  {name}: {self.why[name]}" for name in failed]
        if blocked:
            shown = ", ".join(blocked[:8]) + (", ..." if len(blocked) > 8 else "")
            lines.append(f"  not run because of it: {shown}")
        lines.append(f"  once it is mended, `law run {self.source or 'FILE'}` goes on from here")
        return "\n".join(lines)

    def told(self) -> Iterator[str]:
        """What stands on stdout at the end."""
        done = len(self.of("done"))
        yield f"\n{self.name}: {done} of {len(self.steps)} steps done, in {self.run_dir}/"
        shown = [TABLE, SUMMARY, REPORT] if self.is_sweep else []
        shown += [name for step in self._listed() for name in step.outputs]
        for name in dict.fromkeys(shown):
            if (self.run_dir / name).is_file():
                yield f"  {self.run_dir / name}"
        for name in self.of("left out"):
            yield f"  left out: {name}, {self.why[name]}"

    @property
    def is_sweep(self) -> bool:
        """Whether this is an experiment on representations, and not a list of steps."""
        return any(step.rows for step in self.steps.values())

    def _listed(self) -> list[Step]:
        """The steps that are done, of a list of steps."""
        return [] if self.is_sweep else [self.steps[name] for name in self.of("done")]

    def write_summary(
        self, rounds: list[Round], planned: dict[str, Any] | None, finished: bool
    ) -> None:
        """summary.json: steps with their costs (of all attempts), totals, rounds, the plan."""
        steps = [self._summary(step) for step in self.steps.values()]
        spent = self.ledger.entries.values()  # also of steps that the YAML no longer asks for
        told = {
            "name": self.name,
            "config": str(self.source) if self.source else None,
            "finished": finished,
            "steps": steps,
            "totals": {
                "seconds": round(sum(one.costs["seconds"] for one in spent), 3),
                "gpu_hours": round(sum(one.costs["gpu_hours"] for one in spent), 6),
                "steps": dict(Counter(self.states.values())),
            },
            "rounds": [_plain(one) for one in rounds],
        }
        write_json(self.run_dir / SUMMARY, told | ({"plan": planned} if planned else {}))

    def _summary(self, step: Step) -> dict[str, Any]:
        entry = self.ledger.entry(step.name)
        return {
            "name": step.name,
            "kind": step.kind,
            "representation": step.representation,
            "state": self.states[step.name],
            "error": self.why[step.name],
            "started": entry.began,
            "gpus": entry.gpus,
            "seconds": round(entry.costs["seconds"], 3),
            "gpu_hours": round(entry.costs["gpu_hours"], 6),
            **entry.peaks,
        }


def _plain(one: Round) -> dict[str, Any]:
    facts = asdict(one)
    return {"round": facts.pop("number"), **facts}


def counted(number: int, word: str, words: str = "") -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {word if number == 1 else words or word + 's'}"
