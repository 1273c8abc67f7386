"""The GPUs of this machine, without torch."""

import os
import subprocess


def visible_gpus(wanted: int | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that steps may take, `wanted` of them at most."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        found = [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    else:
        found = [str(number) for number in range(_listed())]
    return found if wanted is None else found[:wanted]


def _listed() -> int:
    """GPUs that NVIDIA's driver lists; 0 where it is not there."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())
