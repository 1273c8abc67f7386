"""How the learning rate goes in both trainings of the world: up for a tenth, then down."""

import torch

WARM_UP = 0.1
"""Share of the steps."""


def one_cycle(
    optimizer: torch.optim.Optimizer, rate: float, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Torch's schedule, which divides by zero where warming up is one step exactly."""
    share = WARM_UP / 2 if WARM_UP * steps == 1 else WARM_UP
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=share, cycle_momentum=False
    )
