"""Command lines of steps of several processes, on one node or on several."""

from dataclasses import dataclass

from llava.sweep.step import Step

ITSELF = ("evaluate",)
"""Kinds of steps whose command starts its processes itself, on one node."""
ONE_NODE = {
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node={n}"),
    "accelerate": ("-m", "accelerate.commands.launch", "--num_processes={n}"),
    "deepspeed": ("-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus={n}"),
}
NODES = {
    "torchrun": (
        *("-m", "torch.distributed.run", "--nnodes={count}", "--node_rank={rank}"),
        *("--nproc_per_node={n}", "--master_addr={host}", "--master_port={port}"),
    )
}
"""DeepSpeed's launcher reaches other nodes through ssh, and accelerate's starts one process alone
where it sees one GPU; what they are for, `law train` has as flags."""
MODULE = {"torchrun": ("-m", "--"), "accelerate": ("-m",), "deepspeed": ("--module",)}
"""How each is told that a module follows; torchrun would take our `--run` for a flag of its own."""


@dataclass(frozen=True)
class Nodes:
    """The nodes that share a step, seen from one of them."""

    count: int = 1
    rank: int = 0
    """Of this node."""
    host: str = ""
    """Of the first."""
    port: int = 0
    """On the first, where they meet."""


def words(step: Step, launcher: str, nodes: Nodes) -> tuple[str, ...]:
    """What follows the interpreter, on one of the nodes that share the step."""
    if step.processes == 1 or step.command[0] != "-m" or step.kind in ITSELF:
        return step.command
    template = ONE_NODE[launcher] if nodes.count == 1 else NODES[launcher]
    each = step.processes // nodes.count
    made = tuple(word.format(n=each, **vars(nodes)) for word in template)
    return (*made, *MODULE[launcher], *step.command[1:])
