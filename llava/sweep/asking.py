"""What a step asks of Slurm, in submitit's words."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from llava.errors import UsageError, unknown_name
from llava.sweep.config import Launch, SweepConfig
from llava.sweep.kinds import GO_ON, KINDS, WITHOUT_GPU
from llava.sweep.launchers import ITSELF, NODES

MINUTES = 24 * 60
"""Of a step, where the YAML says nothing; submitit's own 5 would end any training."""
GO_ON_MINUTES = 60
CPUS = 8
"""For each process of a step: a reader of data or two, and its own."""
GPUS = ("gpus_per_node", "gpus_per_task", "gres")
"""Parameters that ask for GPUs; one that the YAML has stands in the place of ours."""
MOST = "most_jobs"
"""Of launch.slurm, beside submitit's parameters: steps that are in the queue at once, at most."""
OF_WORK = (
    *(*GPUS, "nodes", "exclusive", "time", "timeout_min", "cpus_per_task", "cpus_per_gpu"),
    *("mem", "mem_gb", "mem_per_cpu", "mem_per_gpu", MOST),
)
"""What the YAML asks for all steps and the job that goes on does not need."""
OURS = ("dependency", "tasks_per_node", "ntasks_per_node")
DEPENDENT = {"kill-on-invalid-dep": "yes", "requeue": True}
"""A job whose dependency failed ends; one that is preempted or timed out may be queued again."""


def checked(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """What every kind of step will ask for, before anything runs.

    Raises UsageError for a kind that there is not, and for what a kind cannot have.
    """
    launch = config.launch
    kinds = [*KINDS, GO_ON, *(step.name for step in (*config.prepare, *config.finish))]
    _refuse_ours("launch.slurm", launch.slurm)
    most = most_jobs(launch)
    if most is not None and (type(most) is not int or most < 1):
        raise UsageError(f"launch.slurm: {MOST}: expected 1 or more, got {most}")
    for kind, flags in launch.slurm_per_step.items():
        if kind not in kinds:
            raise UsageError(f"launch.slurm_per_step: {unknown_name('kind of step', kind, kinds)}")
        _refuse_ours(f"launch.slurm_per_step.{kind}", flags)
    for kind in kinds:
        if kind == GO_ON:
            yield of_going_on(launch)
        else:
            in_sweep = kind in KINDS  # steps of a YAML's lists are one process
            yield of_kind(launch, kind, launch.gpus_per_step.get(kind, 1) if in_sweep else 1)


def most_jobs(launch: Launch) -> int | None:
    """Steps that may be in the queue at once; None for any number."""
    return launch.slurm.get(MOST)


def _refuse_ours(where: str, flags: Iterable[str]) -> None:
    for name in OURS:
        if name in flags:
            raise UsageError(f"{where}: {name} is for the sweep to say; leave it out")


def of_kind(launch: Launch, kind: str, processes: int) -> dict[str, Any]:
    """Parameters of the job of a step of so many processes, the YAML's over ours."""
    own = _submitits(launch.slurm | launch.slurm_per_step.get(kind, {}))
    nodes = own.get("nodes") or 1
    if nodes != 1:
        _check_nodes(launch, kind, processes, nodes)
    each = processes // nodes
    made: dict[str, Any] = {"timeout_min": MINUTES, "cpus_per_task": CPUS * each}
    if kind not in WITHOUT_GPU and not any(name in own for name in GPUS):
        made["gpus_per_node"] = each
    asked = made | own
    if asked.get("gpus_per_node") == 0:  # Slurm is not asked for none
        asked.pop("gpus_per_node")
    return _whole(asked, nodes)


def of_going_on(launch: Launch) -> dict[str, Any]:
    """Parameters of the job that goes on: small, and without GPUs."""
    own = {name: value for name, value in launch.slurm.items() if name not in OF_WORK}
    own |= _submitits(launch.slurm_per_step.get(GO_ON, {}))
    return _whole({"cpus_per_task": 1, "timeout_min": GO_ON_MINUTES} | own, 1)


def gpus_of(asked: dict[str, Any], processes: int) -> int:
    """GPUs of a job on each of its nodes, 0 where it asks for none."""
    if not any(asked.get(name) for name in GPUS):
        return 0
    return asked.get("gpus_per_node") or processes // (asked.get("nodes") or 1)


def _whole(asked: dict[str, Any], nodes: int) -> dict[str, Any]:
    srun = [*asked.get("srun_args", ()), f"--cpus-per-task={asked['cpus_per_task']}"]
    if nodes > 1:
        srun.append("--kill-on-bad-exit=1")  # or the others wait for the one that has ended
    more = DEPENDENT | asked.get("additional_parameters", {})
    return asked | {"tasks_per_node": 1, "srun_args": srun, "additional_parameters": more}


def _check_nodes(launch: Launch, kind: str, processes: int, nodes: int) -> None:
    where = f"launch.slurm: nodes: {nodes} for {kind}"
    if kind in ITSELF or kind in WITHOUT_GPU:
        raise UsageError(f"{where}, which runs on one; set it in launch.slurm_per_step")
    if processes % nodes:
        raise UsageError(
            f"{where}, whose launch.gpus_per_step is {processes}, all nodes together; expected a "
            f"multiple of {nodes}"
        )
    if launch.launcher not in NODES:
        raise UsageError(
            f"{where}; launch.launcher: {launch.launcher} serves one node, take "
            f"{' or '.join(NODES)}; flags of training such as `deepspeed` go with it"
        )


def _submitits(flags: dict[str, Any]) -> dict[str, Any]:
    """The YAML's as submitit has them: `time`, in any of Slurm's forms, in minutes."""
    made = {name: value for name, value in flags.items() if name != MOST}
    if "time" in made:
        made["timeout_min"] = minutes(made.pop("time"))
    return made


_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def minutes(time: int | str) -> int:
    """Of 90, 90:00, 1:30:00, 1-6, 1-6:30 or 1-6:30:00, seconds rounded up."""
    found = _TIME.fullmatch(str(time))
    if not found:
        raise UsageError(
            f"launch.slurm: time: {time}; expected minutes, hours:minutes:seconds or "
            "days-hours:minutes:seconds"
        )
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found["days"] or found["third"]:
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    return -(-seconds // 60)
