"""A perceiver resampler: a fixed number of learned latents that read an image's tokens.

Architecture of Flamingo (Alayrac et al. 2022, appendix A.1.1), with the sizes and parameter names
of LLaVA variants that offer `perceiverNx`.
"""

import torch
from torch import nn

LATENTS, HEADS, HEAD_DIM, WIDENING = 64, 8, 64, 4


class PerceiverAttention(nn.Module):
    """Latents attend to the image's tokens and to each other, heads of 64."""

    def __init__(self, dim: int):
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens_BNC: torch.Tensor, latents_BLC: torch.Tensor) -> torch.Tensor:
        """What the latents read, [B, L, C]."""
        tokens, latents = self.norm_media(tokens_BNC), self.norm_latents(latents_BLC)
        query = self._heads(self.to_q(latents))
        key, value = map(self._heads, self.to_kv(torch.cat([tokens, latents], 1)).chunk(2, dim=-1))
        read = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(read.transpose(1, 2).flatten(2))

    @staticmethod
    def _heads(values_BNI: torch.Tensor) -> torch.Tensor:
        return values_BNI.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)


class PerceiverResampler(nn.Module):
    """Tokens [B, N, C] to [B, 64, C]."""

    def __init__(self, dim: int, depth: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(LATENTS, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim), _feed_forward(dim)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens_BNC: torch.Tensor) -> torch.Tensor:
        """The latents after every layer has read the tokens, normalised."""
        latents = self.latents.expand(len(tokens_BNC), -1, -1)
        for attention, feed_forward in self.layers:
            latents = latents + attention(tokens_BNC, latents)
            latents = latents + feed_forward(latents)
        return self.norm(latents)


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, WIDENING * dim, bias=False),
        nn.GELU(),
        nn.Linear(WIDENING * dim, dim, bias=False),
    )
