"""A step: one command line in its own process, with what it waits for and what it leaves."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from llava.errors import unknown_name
from llava.sweep.kinds import RUNNERS

LONGEST_NAME = 100
"""Characters of a file name that is made of a step's or a representation's."""


@dataclass(frozen=True)
class StepConfig:
    """A step as a YAML file has it: a `law` command line, or a script of the repository.

    `{run_dir}` stands for the run folder everywhere in the file.
    """

    name: str
    command: str = ""
    """Arguments of `law`."""
    script: str = ""
    """A Python file and its arguments, in the place of `command`."""
    outputs: list[str] = field(default_factory=list)
    """Files in the run folder that it must leave; may hold `*`."""
    needs: list[str] = field(default_factory=list)
    """Packages without which the step is left out, aloud."""
    folder: str = ""
    """A folder in the run folder that it alone writes to, emptied before it is tried again."""
    after: list[str] | None = None
    """Steps that must be done before; unset: every step above."""
    inputs: list[str] = field(default_factory=list)
    """Files, or folders, besides the steps' outputs: a change of theirs makes it run again."""

    def __post_init__(self):
        if bool(self.command.strip()) == bool(self.script.strip()):
            raise ValueError(f"{self.name}: expected one of `command` and `script`")
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"step '{self.name}': expected a name of letters, digits, - and _")
        try:
            self.words()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}: {self.command or self.script}") from None
        for need in self.needs:
            try:
                Requirement(need)
            except InvalidRequirement:
                raise ValueError(
                    f"{self.name}: needs '{need}'; expected a package such as scikit-image"
                ) from None
        for output in self.outputs:
            self._check_place("output", output)
            if any("**" in part and part != "**" for part in Path(output).parts):
                raise ValueError(
                    f"{self.name}: output '{output}': expected ** alone between slashes"
                )
        if self.folder:
            self._check_place("folder", self.folder)

    def _check_place(self, what: str, path: str) -> None:
        parts = Path(path).parts
        if not parts or Path(path).is_absolute() or ".." in parts:
            raise ValueError(
                f"{self.name}: {what} '{path}': expected a path in the run folder, seen from there"
            )
        if parts[0] in RUNNERS:
            raise ValueError(
                f"{self.name}: {what} '{path}': {parts[0]} is where logs go; expected another place"
            )

    def words(self) -> list[str]:
        """The command line, split as a shell would."""
        return shlex.split(self.command or self.script)


def check_steps(steps: Sequence[StepConfig]) -> None:
    """Raises ValueError for names and folders that two steps share, and for an unknown `after`."""
    above: list[str] = []
    folders: dict[Path, str] = {}
    for step in steps:
        if step.name in above:
            raise ValueError(f"steps: two are called '{step.name}'; names must differ")
        for name in step.after or []:
            if name not in above:
                raise ValueError(f"{step.name}: after: {unknown_name('step above', name, above)}")
        above.append(step.name)
        if step.folder:
            for folder, other in folders.items():
                if folder.is_relative_to(step.folder) or Path(step.folder).is_relative_to(folder):
                    raise ValueError(
                        f"{step.name}: folder '{step.folder}' and '{folder}' of {other}: expected "
                        "folders apart, since each step empties its own"
                    )
            folders[Path(step.folder)] = step.name


@dataclass(frozen=True)
class Step:
    """A node of the graph; paths are relative to the run folder unless said otherwise."""

    name: str
    kind: str
    """What several steps have in common: features, stage1, evaluate, ..."""
    command: tuple[str, ...]
    """Words after the Python interpreter."""
    after: tuple[str, ...] = ()
    """Steps that must be done."""
    settled: tuple[str, ...] = ()
    """Steps that must have come to an end, whichever; what those left that are done counts."""
    outputs: tuple[str, ...] = ()
    """Files that must be there afterwards; may hold `*`, which must then match one or more."""
    listing: str = ""
    """JSON output whose `folders` hold further files that count as outputs."""
    rows: str = ""
    """Results table that it writes."""
    measures: tuple[str, ...] = ()
    """Representations that its rows must be of, neither more nor fewer."""
    folder: str = ""
    """What it alone writes to; set aside where it can no longer be used."""
    resumes: bool = True
    """Whether it goes on with what a killed attempt has left in its folder."""
    table: str = ""
    """Results table that is composed for it of what the steps in `settled` have measured."""
    disposable: bool = False
    """Whether its outputs may be removed when all that wait for it are done."""
    inputs: tuple[str, ...] = ()
    """Files and folders of outside; a change of theirs makes the step run again."""
    sources: tuple[str, ...] = ()
    """The same of what may also be on a hub: models and towers."""
    representation: str = ""
    left_out: str = ""
    """Why it is not run at all, if so."""
    processes: int = 1
    """GPUs that it takes or, without GPUs, processes."""

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return file_name(self.name)


def file_name(name: str) -> str:
    """A name as a file name that no other has: `/` becomes `--` and a space `+`.

    One that is too long, or could not be told from another, ends in its digest.
    """
    plain = name.replace("/", "--").replace(" ", "+")
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.@+") else "-" for c in plain)
    same = plain.replace("--", "/").replace("+", " ") == name
    if same and len(plain) <= LONGEST_NAME and plain.strip("."):
        return plain
    return f"{plain[: LONGEST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def law(*words: str) -> tuple[str, ...]:
    """The command line of `law WORDS`, after the interpreter."""
    return ("-m", "llava", *words)


def shown(step: Step) -> str:
    """The command line as a person types it."""
    words = step.command
    if words[:2] == ("-m", "llava"):
        return shlex.join(["law", *words[2:]])
    return shlex.join([Path(sys.executable).name, *words])


def installed(text: str) -> bool:
    """Whether a requirement such as `scikit-image` or `torch>=2` is met."""
    requirement = Requirement(text)
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def listed_steps(configs: Sequence[StepConfig]) -> list[Step]:
    """Steps of a YAML's list. Without `after` one waits for all above that are not left out."""
    made: list[Step] = []
    left_out: dict[str, str] = {}
    for config in configs:
        lacking = [need for need in config.needs if not installed(need)]
        gone = [name for name in config.after or [] if name in left_out]
        if lacking:
            left_out[config.name] = f"{', '.join(lacking)} is not installed"
        elif gone:
            left_out[config.name] = f"{', '.join(gone)} is left out"
        above = [step.name for step in made if not step.left_out]
        words = config.words()
        made.append(
            Step(
                name=config.name,
                kind=config.name,
                command=law(*words) if config.command else tuple(words),
                after=tuple(above if config.after is None else config.after),
                outputs=tuple(config.outputs),
                folder=config.folder,
                resumes=False,
                inputs=tuple(config.inputs),
                left_out=left_out.get(config.name, ""),
            )
        )
    return made
