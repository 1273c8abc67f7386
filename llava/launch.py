"""Which process of a launch this is, as torchrun, accelerate and srun say it."""

import os
from dataclasses import dataclass

from llava.errors import UsageError


@dataclass(frozen=True)
class Launch:
    """This process among those that share a piece of work."""

    rank: int
    world: int
    """Processes in all."""
    local: int
    """Rank on this node: which GPU is ours."""


def launch() -> Launch:
    """This process's place; (0, 1, 0) outside of a launcher.

    Slurm counts only inside of `srun`: the shell of an allocation has SLURM_NTASKS too, and is one
    process. Raises UsageError for variables that contradict each other, since every process must
    take its own share and all shares must be taken.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Launch(0, 1, 0)
    rank, world, local = (_whole(name) for name in names)
    if rank is None or world is None or not 0 <= rank < world:
        raise UsageError(
            f"{names[0]} is {os.environ.get(names[0])} and {names[1]} "
            f"{os.environ.get(names[1])}; expected a rank from 0 and more processes than that, as "
            "torchrun and srun set them; unset both to run alone"
        )
    return Launch(rank, world, local or 0)


def _whole(name: str) -> int | None:
    text = os.environ.get(name)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise UsageError(f"{name} is '{text}'; expected a whole number") from None
