"""What a head is trained with: each image's own caption among the captions of the whole batch.

Letters in shapes: N images, of which image i belongs to caption i; M >= N captions, those from N on
are negatives that belong to no image; B samples, L text tokens, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

FAR = -1e8
"""A logit that no softmax sees (SPARC's own value)."""


def clip_loss(scores_NM: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of both directions' cross entropy, in nats.

    An image chooses among all captions, a caption that belongs to an image among the images. What
    would be a negative's choice of an image is ignored, since it has none (NegCLIP, Yuksekgonul et
    al. 2023). Without negatives it is CLIP's loss.
    """
    count = len(scores_NM)
    logits_NM = scores_NM * scale
    own_N = torch.arange(count, device=scores_NM.device)
    by_image = functional.cross_entropy(logits_NM, own_N)
    by_caption = functional.cross_entropy(logits_NM[:, :count].T, own_N)
    return (by_image + by_caption) / 2


def siglip_loss(scores_NM: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Sum over captions of -log sigmoid(±logit), mean over images (Zhai et al. 2023, section 3.1).

    + for an image's own caption, - for every other one, negatives included.
    """
    signs_NM = 2 * torch.eye(*scores_NM.shape, device=scores_NM.device) - 1
    logits_NM = scores_NM * scale + bias
    return -functional.logsigmoid(signs_NM * logits_NM).sum() / len(scores_NM)


def sparc_fine_loss(
    grouped_BLD: Tensor, tokens_BLD: Tensor, mask_BL: Tensor, scale: Tensor | float
) -> Tensor:
    """Mean over samples and their valid tokens of both directions' cross entropy, in nats.

    A text token is to find the patches grouped for it among those of the other tokens of its own
    sample, and the other way round (SPARC, Bica et al. 2024, equation 5). `mask_BL` is true for
    valid tokens; the others are no choice and have no say.
    """
    groups_BLD = functional.normalize(grouped_BLD, dim=2)
    texts_BLD = functional.normalize(tokens_BLD, dim=2)
    logits_BLL = (groups_BLD @ texts_BLD.transpose(1, 2)) * scale
    mask_BL = mask_BL.bool()
    own_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    own_BL = own_L.expand(mask_BL.shape)
    losses_BL = sum(
        functional.cross_entropy(
            one.masked_fill(~mask_BL[:, None, :], FAR).transpose(1, 2), own_BL, reduction="none"
        )
        for one in (logits_BLL, logits_BLL.transpose(1, 2))
    )
    valid_B = mask_BL.sum(1).clamp_min(1)
    return ((losses_BL * mask_BL).sum(1) / valid_B).mean() / 2
