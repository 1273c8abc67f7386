"""A head as a whole: frozen patches and captions in, scores and losses out.

Letters in shapes: B images of this process, T captions, N patches, L text tokens, C channels, D
width of the common space.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava.errors import UsageError
from llava.model.contrastive.config import LEAST_TEMPERATURE, HeadConfig
from llava.model.contrastive.gather import gather
from llava.model.contrastive.heads import (
    SCALES,
    PatchProjection,
    TextProjection,
    masked_mean,
    pool,
    pooled_scores,
    rope_rotate,
    sparc_group,
)
from llava.model.contrastive.losses import clip_loss, siglip_loss, sparc_fine_loss
from llava.model.contrastive.texts import TextSource


class Texts(NamedTuple):
    """Captions in the common space; `mask` is true for tokens, and for a pooled vector's one."""

    rows: Tensor
    """[T, L, D], not normalised; L is 1 for a pooled vector."""
    mask: Tensor
    """bool [T, L]."""


class Head(nn.Module):
    """Projections of a tower's tokens and a source's texts; `channels` are those of the tower."""

    def __init__(self, config: HeadConfig, channels: int, texts: TextSource):
        super().__init__()
        self.config = config
        self.channels = channels
        self.texts = texts  # its weights are the head's own where it learns any
        width = texts.token_dim if config.kind == "sparc" else texts.dim
        if not width:
            raise UsageError(f"{type(texts).__name__} has no tokens, which kind 'sparc' needs")
        if config.rope and channels % 2:
            raise UsageError(
                f"rope turns channels in pairs, and the tower's tokens have {channels}"
            )
        self.patch_head = PatchProjection(channels, config.width, config.dropout)
        self.text_head = TextProjection(width, config.width, config.dropout)
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), config.learned_temperature
        )
        self.bias = nn.Parameter(
            torch.tensor(config.bias), config.learned_temperature and config.loss == "siglip"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_scale.device

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.log_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Takes a learned temperature that fell too low back to the least one.

        To be called behind every step. The parameter itself is set back, as CLIP's is: a bound in
        the forward pass would have no gradient beyond it, and hold it there for good.
        """
        self.log_scale.clamp_(max=-math.log(LEAST_TEMPERATURE))

    def patches(self, tokens_BNC: Tensor) -> Tensor:
        """[B, N, D] of a tower's tokens, in order of rows."""
        tokens_BNC = tokens_BNC.to(self.device, torch.float32)
        if self.config.kind == "sparc" and tokens_BNC.shape[1] < 2:
            raise UsageError("kind 'sparc' groups patches, and an image has one token here")
        return self.patch_head(rope_rotate(tokens_BNC) if self.config.rope else tokens_BNC)

    def embed(self, captions: Sequence[str]) -> Texts:
        """The captions in the common space."""
        if self.config.kind == "sparc":
            tokens_TLC, mask_TL = self.texts.tokens(captions)
            return Texts(self.text_head(tokens_TLC), mask_TL)
        vectors_TC = self.texts.vectors(captions)
        ones = torch.ones(len(captions), 1, dtype=torch.bool, device=vectors_TC.device)
        return Texts(self.text_head(vectors_TC)[:, None], ones)

    def scores(self, patches_BND: Tensor, texts: Texts) -> Tensor:
        """Cosines [B, T] of every image with every caption, as they are tested."""
        config = self.config
        if config.kind == "sparc":
            if config.test_score == "global":
                return _cosines(patches_BND.mean(1), self._mean_tokens(texts))
            return self._local_scores(patches_BND, texts)
        pooling = config.pooling if config.test_pooling == "same" else config.test_pooling
        return pooled_scores(patches_BND, texts.rows[:, 0], pooling, self._pooling_scale(pooling))

    def loss(
        self, tokens_BNC: Tensor, captions: Sequence[str], negatives: Sequence[str] = ()
    ) -> Tensor:
        """The loss of the batch that all processes hold parts of, the same in each of them.

        Caption i belongs to image i; `negatives` (any number, another in each process) belong to
        none. Every process must call it.
        """
        patches_BND = self.patches(tokens_BNC)
        texts = self.embed([*captions, *negatives])
        own = Texts(*(part[: len(captions)] for part in texts))
        if self.config.kind == "pacl":
            return self._over_batch(self._training_rows(patches_BND, own, texts))
        means_TD = self._gathered(self._mean_tokens(texts), len(captions))
        over_batch = self._over_batch(_cosines(patches_BND.mean(1), means_TD))
        grouped_BLD = sparc_group(patches_BND, own.rows, self.config.sigma)
        fine = sparc_fine_loss(grouped_BLD, own.rows, own.mask, self.scale)
        # weighted by samples: processes may hold unequal parts
        everywhere = gather(fine.expand(len(captions))).mean()
        return self.config.global_weight * over_batch + self.config.fine_weight * everywhere

    def _training_rows(self, patches_BND: Tensor, own: Texts, texts: Texts) -> Tensor:
        """Cosines [B, T] of this process's images with all captions, as training pools."""
        config, scale = self.config, self._pooling_scale(self.config.pooling)
        texts_TD = self._gathered(texts.rows[:, 0], len(own.rows))
        if config.weights_from == "own":
            return _cosines(pool(patches_BND, own.rows[:, 0], config.pooling, scale), texts_TD)
        return pooled_scores(patches_BND, texts_TD, config.pooling, scale)

    def _gathered(self, texts_TD: Tensor, own: int) -> Tensor:
        """All processes' captions that belong to images, then all their negatives."""
        return torch.cat([gather(texts_TD[:own]), gather(texts_TD[own:])])

    def _over_batch(self, scores_BM: Tensor) -> Tensor:
        scores_NM = gather(scores_BM)
        if self.config.loss == "siglip":
            return siglip_loss(scores_NM, self.scale, self.bias)
        return clip_loss(scores_NM, self.scale)

    def _mean_tokens(self, texts: Texts) -> Tensor:
        every = self.config.mean_over == "all"
        return masked_mean(texts.rows, torch.ones_like(texts.mask) if every else texts.mask)

    def _local_scores(self, patches_BND: Tensor, texts: Texts) -> Tensor:
        """Patches grouped for a caption's tokens, and the tokens: the cosine of their means."""
        columns = []
        means_TD = masked_mean(texts.rows, texts.mask)
        for rows_LD, mask_L, mean_D in zip(texts.rows, texts.mask, means_TD, strict=True):
            rows_BLD = rows_LD[mask_L].expand(len(patches_BND), -1, -1)
            grouped_BLD = sparc_group(patches_BND, rows_BLD, self.config.sigma)
            columns.append(functional.cosine_similarity(grouped_BLD.mean(1), mean_D[None]))
        return torch.stack(columns, 1)

    def _pooling_scale(self, pooling: str) -> float:
        own = self.config.pooling_scale
        return SCALES[pooling] if own is None or pooling != self.config.pooling else own


def _cosines(images_BD: Tensor, texts_TD: Tensor) -> Tensor:
    return functional.normalize(images_BD, dim=1) @ functional.normalize(texts_TD, dim=1).T
