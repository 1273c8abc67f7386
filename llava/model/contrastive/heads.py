"""The pieces of a head: projections of patches and texts, positions, and patches pooled for a text.

Letters in shapes: B images, N patches, L text tokens, T captions, C channels of a tower, D width of
the common space.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llava.errors import UsageError

Pooling = Literal["softmax", "sigmoid", "sum"]
SCALES = {"softmax": 1.0, "sigmoid": 10.0, "sum": 1.0}
"""What a cosine is multiplied by: PACL's paper has none, its public re-implementation 10."""
ROPE_BASE = 10_000.0
POOLED_AT_ONCE = 1 << 26
"""Numbers in the pooled vectors, or their weights, that are in memory at once: 256 MiB."""
TINY = 1e-8


class PatchProjection(nn.Module):
    """Patches [B, N, C] -> [B, N, D]: a linear map plus an MLP of two layers.

    As in PACL (Mukhoti et al. 2023, section 4), behind a layer norm and dropout.
    """

    def __init__(self, channels: int, width: int, dropout: float = 0.1):
        super().__init__()
        self.before = nn.Sequential(nn.LayerNorm(channels), nn.Dropout(dropout))
        self.linear = nn.Linear(channels, width)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """[B, N, D], not normalised."""
        tokens_BNC = self.before(tokens_BNC)
        return self.linear(tokens_BNC) + self.mlp(tokens_BNC)


class TextProjection(nn.Module):
    """Text vectors [..., C] -> [..., D]: layer norm, dropout, a linear map."""

    def __init__(self, channels: int, width: int, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, width)
        )

    def forward(self, texts: Tensor) -> Tensor:
        """[..., D], not normalised."""
        return self.layers(texts)


def rope_rotate(tokens_BNC: Tensor) -> Tensor:
    """[B, N, C]: channels 2i and 2i + 1 of patch p turned by the angle p * 10000^(-2i / C).

    p counts row by row, from 0. Nothing is learned: it tells apart what would otherwise be a bag of
    patches. The even channels come first in the output, then the odd ones. UsageError for an odd C.
    """
    _, count, channels = tokens_BNC.shape
    if channels % 2:
        raise UsageError(f"rope turns channels in pairs, and the tower's tokens have {channels}")
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    places = torch.arange(count, dtype=torch.float64)
    angles = (places[:, None] * ROPE_BASE**-exponents).to(tokens_BNC.device)
    cosine, sine = (one.to(tokens_BNC.dtype) for one in (angles.cos(), angles.sin()))
    even, odd = tokens_BNC[..., 0::2], tokens_BNC[..., 1::2]
    return torch.cat([even * cosine - odd * sine, even * sine + odd * cosine], -1)


def pool_weights(cosines: Tensor, pooling: Pooling, scale: float) -> Tensor:
    """How much each patch counts [..., N], from its cosine to the text."""
    if pooling == "softmax":
        return (scale * cosines).softmax(-1)
    if pooling == "sigmoid":
        return (scale * cosines).sigmoid()
    return torch.ones_like(cosines)


def pool(patches_BND: Tensor, texts_BD: Tensor, pooling: Pooling, scale: float) -> Tensor:
    """[B, D]: each image's patches, summed with weights by that image's own text."""
    cosines_BN = torch.einsum(
        "bnd,bd->bn",
        functional.normalize(patches_BND, dim=2),
        functional.normalize(texts_BD, dim=1),
    )
    return torch.einsum("bn,bnd->bd", pool_weights(cosines_BN, pooling, scale), patches_BND)


def pooled_scores(patches_BND: Tensor, texts_TD: Tensor, pooling: Pooling, scale: float) -> Tensor:
    """Cosines [B, T]: each image's patches are pooled anew for every caption (PACL, equation 3).

    Images are taken a few at a time, and computed again in the backward pass, so that the [B, T, D]
    pooled vectors and the [B, T, N] weights never stand in memory at once.
    """
    texts_TD = functional.normalize(texts_TD, dim=1)
    if pooling == "sum":  # the same vector for every caption
        return functional.normalize(patches_BND.sum(1), dim=1) @ texts_TD.T
    wide = max(patches_BND.shape[1:])
    each = max(1, POOLED_AT_ONCE // max(1, len(texts_TD) * wide))
    rows = [
        checkpoint(_pooled_scores, part, texts_TD, pooling, scale, use_reentrant=False)
        for part in patches_BND.split(each)
    ]
    return torch.cat(rows)


def _pooled_scores(patches_BND: Tensor, texts_TD: Tensor, pooling: Pooling, scale: float) -> Tensor:
    cosines_BTN = texts_TD @ functional.normalize(patches_BND, dim=2).transpose(1, 2)
    pooled_BTD = pool_weights(cosines_BTN, pooling, scale) @ patches_BND
    return torch.einsum("btd,td->bt", functional.normalize(pooled_BTD, dim=2), texts_TD)


def sparc_group(patches_BND: Tensor, tokens_BLD: Tensor, sigma: float | None = None) -> Tensor:
    """[B, L, D]: the patches that are like each text token, as one vector for each token.

    Dot products are stretched to 0...1 over an image's patches, those below `sigma` (default 1 / N)
    are dropped and the rest shared out to a sum of 1 (SPARC, Bica et al. 2024, equations 1 to 3).
    A token that no patch is more like than another has the zero vector.
    """
    sigma = 1 / patches_BND.shape[1] if sigma is None else sigma
    dots_BLN = tokens_BLD @ patches_BND.transpose(1, 2)
    least, most = dots_BLN.amin(2, keepdim=True), dots_BLN.amax(2, keepdim=True)
    shares_BLN = (dots_BLN - least) / (most - least + TINY)
    shares_BLN = shares_BLN.masked_fill(shares_BLN < sigma, 0)
    weights_BLN = shares_BLN / shares_BLN.sum(2, keepdim=True).clamp_min(TINY)
    return weights_BLN @ patches_BND


def masked_mean(rows_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """[B, D]: mean over the rows whose mask is true; zero where none is."""
    mask_BL1 = mask_BL[:, :, None].to(rows_BLD.dtype)
    return (rows_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)
