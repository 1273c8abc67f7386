"""The kinds of steps that a sweep makes itself: what they take, and the names that they hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What steps of one kind may take."""

    gpu: bool = True
    several: bool = False
    """Whether launch.gpus_per_step may give it more than one process."""


KINDS = {
    "features": Kind(),
    "train-features": Kind(),
    "c-score": Kind(gpu=False),
    "stage1": Kind(several=True),
    "nll": Kind(several=True),
    "dump": Kind(several=True),
    "cosine": Kind(gpu=False),
    "propose": Kind(gpu=False),
    "stage2": Kind(several=True),
    "evaluate": Kind(several=True),
    "report": Kind(gpu=False),
}
"""Name -> what it takes, in the order of the graph."""
WITHOUT_GPU = tuple(name for name, kind in KINDS.items() if not kind.gpu)
SEVERAL = tuple(name for name, kind in KINDS.items() if kind.several)

GO_ON = "continue"
"""Kind of the small job that submits the next stage, where steps are jobs of a cluster."""

RUNNERS = ("steps", "set-aside", "slurm")
"""Folders of a run folder that hold logs, what is set aside, and what jobs print."""
FOLDERS = (
    *("features", "c_score", "stage1", "nll", "dumps", "cosine", "policy", "stage2", "evaluate"),
    *RUNNERS,
)
"""Those, and the ones that the sweep's own steps write to."""
