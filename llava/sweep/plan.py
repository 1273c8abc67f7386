"""The YAML of a run, as dataclasses."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from llava.config import load


@dataclass(frozen=True)
class StepConfig:
    """One step: a `law` command line and the files that it must leave in the run folder."""

    name: str
    command: str
    """Arguments of `law`; `{run_dir}` stands for the run folder."""
    outputs: list[str] = field(default_factory=list)
    """Files in the run folder."""
    needs: list[str] = field(default_factory=list)
    """Packages without which the step is left out, aloud."""

    def arguments(self, run_dir: Path) -> list[str]:
        """The command line, split as a shell would, the run folder filled in."""
        return [word.replace("{run_dir}", str(run_dir)) for word in shlex.split(self.command)]


@dataclass(frozen=True)
class RunConfig:
    """A run: its folder and its steps, in order."""

    name: str
    run_dir: Path
    steps: list[StepConfig]

    def __post_init__(self):
        if not self.steps:
            raise ValueError("steps: expected at least one step")
        names = [step.name for step in self.steps]
        for step in self.steps:
            if names.count(step.name) > 1:
                raise ValueError(f"steps: two are called '{step.name}'; names must differ")
            if not step.name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"steps: '{step.name}': expected letters, digits, - and _")
            for need in step.needs:
                try:
                    Requirement(need)
                except InvalidRequirement:
                    raise ValueError(
                        f"{step.name}: needs '{need}'; expected a package such as scikit-image"
                    ) from None
            for output in step.outputs:
                if Path(output).is_absolute() or ".." in Path(output).parts:
                    raise ValueError(f"{step.name}: output '{output}' is not in the run folder")


def load_run(path: Path) -> RunConfig:
    """The run that a YAML file describes."""
    return load(RunConfig, path)
