"""What pools and groups patches: identities, and one case by hand."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from llava.errors import UsageError
from llava.model.contrastive import heads
from llava.model.contrastive.heads import (
    masked_mean,
    pool,
    pool_weights,
    pooled_scores,
    rope_rotate,
    sparc_group,
)

B, N, T, L, D = 3, 5, 4, 2, 6


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rope_keeps_lengths_and_the_first_place():
    tokens = rows(B, N, D)
    turned = rope_rotate(tokens)
    torch.testing.assert_close(turned.norm(dim=2), tokens.norm(dim=2))
    first = torch.cat([tokens[:, 0, 0::2], tokens[:, 0, 1::2]], 1)
    torch.testing.assert_close(turned[:, 0], first, rtol=0, atol=0)
    assert (turned[:, 1:] - torch.cat([tokens[..., 0::2], tokens[..., 1::2]], 2)[:, 1:]).any()


def test_rope_by_hand():
    """Channels (1, 0) of patch 2, and the second pair's angle 2 / 100."""
    tokens = torch.zeros(1, 3, 4)
    tokens[0, 2] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    two, slow = torch.tensor(2.0), torch.tensor(2 / 100)
    expected = torch.stack([two.cos(), -slow.sin(), two.sin(), slow.cos()])
    torch.testing.assert_close(rope_rotate(tokens)[0, 2], expected)


def test_rope_of_an_odd_width_is_refused():
    with pytest.raises(UsageError, match=r"pairs.*5"):
        rope_rotate(rows(1, N, 5))


@pytest.mark.parametrize("pooling", ["softmax", "sigmoid", "sum"])
def test_scores_pool_anew_for_every_caption(pooling, monkeypatch):
    """Written out caption by caption, whatever part of the images is taken at once."""
    patches, texts = rows(B, N, D), rows(T, D, seed=1)
    expected = torch.empty(B, T)
    for b in range(B):
        for t in range(T):
            cosines = cosine_similarity(patches[b], texts[t][None])
            weights = {
                "softmax": (3 * cosines).exp() / (3 * cosines).exp().sum(),
                "sigmoid": 1 / (1 + (-3 * cosines).exp()),
                "sum": torch.ones(N),
            }[pooling]
            expected[b, t] = cosine_similarity((weights[:, None] * patches[b]).sum(0), texts[t], 0)
    torch.testing.assert_close(pooled_scores(patches, texts, pooling, 3.0), expected)
    monkeypatch.setattr(heads, "POOLED_AT_ONCE", 2 * T * D)  # two images, then one
    torch.testing.assert_close(pooled_scores(patches, texts, pooling, 3.0), expected)


def test_own_caption_is_the_diagonal():
    patches, texts = rows(B, N, D), rows(B, D, seed=1)
    own = normalize(pool(patches, texts, "sigmoid", 10.0), dim=1)
    found = pooled_scores(patches, texts, "sigmoid", 10.0)
    torch.testing.assert_close((own * normalize(texts, dim=1)).sum(1), found.diagonal())


def test_weights():
    cosines = torch.tensor([0.0, 1.0])
    assert pool_weights(cosines, "softmax", 1.0).sum() == 1
    assert pool_weights(cosines, "sigmoid", 10.0)[0] == 0.5
    assert pool_weights(cosines, "sum", 1.0).tolist() == [1, 1]


def test_sparc_by_hand():
    """Dots 0, 1, 4 with the first token: shares 0, 1/4, 1; a sigma of .5 keeps the last alone."""
    patches = torch.tensor([[[0.0, 7.0], [1.0, 2.0], [4.0, 0.0]]])
    token = torch.tensor([[[1.0, 0.0]]])
    grouped = sparc_group(patches, token, 0.0)
    torch.testing.assert_close(grouped[0, 0], (patches[0, 1] + 4 * patches[0, 2]) / 5)
    torch.testing.assert_close(sparc_group(patches, token, 0.5)[0, 0], patches[0, 2])
    # 1 / 3 by default: more than the quarter
    torch.testing.assert_close(sparc_group(patches, token)[0, 0], patches[0, 2])


def test_sparc_does_not_see_the_order_of_patches():
    patches, tokens = rows(B, N, D), rows(B, L, D, seed=1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sparc_group(patches[:, order], tokens), sparc_group(patches, tokens))


def test_sparc_without_sigma_keeps_all_patches():
    """Each has a share of the gradient, and none above a large one."""
    patches = rows(1, N, D).requires_grad_()
    sparc_group(patches, rows(1, 1, D, seed=1), 0.0).sum().backward()
    dots = (patches @ rows(1, 1, D, seed=1)[0, 0]).squeeze()
    kept = patches.grad[0].abs().sum(1) > 0
    assert kept.sum() >= N - 1  # the least like one weighs 0
    assert kept[dots.argmax()]


def test_sparc_of_equal_patches_is_finite():
    patches = torch.ones(1, N, D).requires_grad_()
    grouped = sparc_group(patches, rows(1, 1, D))
    grouped.sum().backward()
    assert grouped.abs().max() == 0
    assert torch.isfinite(patches.grad).all()


def test_masked_mean():
    mask = torch.tensor([[True, False], [False, False]])
    found = masked_mean(rows(2, 2, D), mask)
    torch.testing.assert_close(found[0], rows(2, 2, D)[0, 0])
    assert found[1].abs().max() == 0


def test_a_bag_of_patches_has_no_order():
    """The same patches at other places: equal without positions, unequal with them."""
    head = heads.PatchProjection(D, D, 0.0)
    patches = rows(1, N, D)
    moved = patches[:, [3, 1, 2, 0, 4]]
    texts = rows(T, D, seed=1)

    def difference(change):
        one, other = (pooled_scores(head(change(p)), texts, "sum", 1.0) for p in (patches, moved))
        return (one - other).abs().max().item()

    assert difference(lambda tokens: tokens) < 1e-6
    assert difference(rope_rotate) > 1e-2
