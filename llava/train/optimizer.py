"""Parameter groups: what decays, and the projector's own learning rate."""

from collections.abc import Iterable

from torch import nn

PROJECTOR = "mm_projector"


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    decaying: set[str],
    weight_decay: float,
    projector_lr: float | None = None,
) -> list[dict]:
    """Groups for an optimizer: trainable parameters only, none of them empty.

    `decaying` names what is no bias and no norm weight. With `projector_lr` the projector's
    parameters form groups of their own, with that learning rate.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            own_rate = projector_lr is not None and PROJECTOR in name
            groups.setdefault((own_rate, name in decaying), []).append(parameter)
    return [
        {"params": group, "weight_decay": weight_decay if decays else 0.0}
        | ({"lr": projector_lr} if own_rate else {})
        for (own_rate, decays), group in sorted(groups.items(), reverse=True)
    ]
