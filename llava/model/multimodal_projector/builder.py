"""Names of projectors and the modules that they stand for; parameter names are LLaVA's."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llava.errors import UsageError, unknown_name
from llava.model.multimodal_projector.perceiver import LATENTS, PerceiverResampler


class IdentityProjector(nn.Module):
    """Tokens as they are: towers whose width is the language model's."""

    def forward(self, tokens_BNC: torch.Tensor) -> torch.Tensor:
        """The tokens themselves."""
        return tokens_BNC


def _linear(width: int, hidden: int, depth: int) -> nn.Module:
    return nn.Linear(width, hidden)


def _mlp(width: int, hidden: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)


def _perceiver(width: int, hidden: int, depth: int) -> nn.Module:
    return nn.Sequential(PerceiverResampler(width, depth), nn.Linear(width, hidden, bias=False))


def _identity(width: int, hidden: int, depth: int) -> nn.Module:
    if width != hidden:
        raise UsageError(
            f"mm_projector_type identity: tokens are {width} wide and the language model takes "
            f"{hidden}; take mlp2x_gelu"
        )
    return IdentityProjector()


PROJECTORS: dict[str, Callable[[int, int, int], nn.Module]] = {
    r"linear": _linear,
    r"mlp([1-9][0-9]*)x_gelu": _mlp,
    r"identity": _identity,
    r"perceiver([1-9][0-9]*)x": _perceiver,
}
"""Pattern of a name -> its builder from (width of a token, width of the model, depth)."""
EXAMPLES = ("linear", "mlp2x_gelu", "identity", "perceiver2x")


def make_projector(kind: str, width: int, hidden: int) -> nn.Module:
    """The projector called `kind` from tokens [B, N, width] to [B, N or 64, hidden].

    Raises UsageError for an unknown name, with the nearest one.
    """
    for pattern, builder in PROJECTORS.items():
        if match := re.fullmatch(pattern, kind):
            return builder(width, hidden, int(match[1]) if match.groups() else 1)
    raise UsageError(unknown_name("mm_projector_type", kind, EXAMPLES))


def build_vision_projector(config: Any) -> nn.Module:
    """The projector that a config names (`mm_projector_type`, `mm_hidden_size`, `hidden_size`)."""
    kind = getattr(config, "mm_projector_type", None) or "linear"
    return make_projector(kind, config.mm_hidden_size, config.hidden_size)


def projector_parameters(width: int, hidden: int, kind: str) -> int:
    """Number of parameters; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_projector(kind, width, hidden).parameters())


def projected_tokens(tokens: int, kind: str) -> int:
    """Tokens that the projector makes of `tokens`."""
    return LATENTS if kind.startswith("perceiver") else tokens
