"""The command lines of steps of several processes: what the launchers make of them on the CPU."""

import os
import socket
import subprocess
import sys

from llava.sweep.launchers import Nodes, words
from llava.sweep.step import Step, law

# One write a line: the ranks share a pipe, and torchrun starts Python unbuffered.
RANKS = """
import os, sys
rank = [os.environ[n] for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
os.write(1, " ".join([str(sys.argv[1:]), *rank, chr(10)]).encode())
"""


def step(kind: str = "stage1", processes: int = 4) -> Step:
    return Step("s", kind, ("-m", "ranks", "train", "--run", "x"), processes=processes)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_nodes_share_a_step(tmp_path):
    """Both are this machine; every process gets the step's own words, and a rank of its own."""
    (tmp_path / "ranks.py").write_text(RANKS)
    port = free_port()
    outside = [name for name in os.environ if name.startswith("SLURM_")]
    environment = {k: v for k, v in os.environ.items() if k not in outside}
    nodes = [
        subprocess.Popen(
            [sys.executable, *words(step(), "torchrun", Nodes(2, rank, "127.0.0.1", port))],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)},
        )
        for rank in range(2)
    ]
    lines = [line for node in nodes for line in node.communicate(timeout=120)[0].splitlines()]
    assert [node.returncode for node in nodes] == [0, 0]
    assert sorted(line.strip() for line in lines if line.startswith("[")) == [
        f"['train', '--run', 'x'] {rank} {rank % 2} 4" for rank in range(4)
    ]


def test_a_process_alone_needs_no_launcher():
    alone = Step("s", "stage1", law("train"))
    assert words(alone, "torchrun", Nodes()) == ("-m", "llava", "train")


def test_evaluate_starts_its_processes_itself():
    assert words(step("evaluate"), "torchrun", Nodes()) == step().command


def test_deepspeed_starts_the_processes_of_one_node():
    made = words(step(), "deepspeed", Nodes())
    assert made[:2] == ("-m", "deepspeed.launcher.runner")
    assert "--num_gpus=4" in made
    assert made[-5:] == ("--module", "ranks", "train", "--run", "x")
