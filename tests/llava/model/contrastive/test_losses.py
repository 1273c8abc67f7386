"""Losses against sums written out, and what negatives may change."""

from math import log

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from llava.model.contrastive.losses import clip_loss, siglip_loss, sparc_fine_loss

N, K, D, SCALE = 6, 3, 8, 10.0


def unit(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, D, generator=generator), dim=1)


def scores(negatives=0):
    return unit(N, 0) @ torch.cat([unit(N, 1), unit(negatives, 2)]).T


def test_two_pairs_by_hand():
    """Logits [[2, 0], [0, 1]] and one negative of logit 1 for both images."""
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    e = torch.e
    images = (log(e**2 + 1 + e) - 2) + (log(1 + e + e) - 1)
    texts = (log(e**2 + 1) - 2) + (log(1 + e) - 1)
    assert clip_loss(logits / SCALE, SCALE).item() == pytest.approx((images + texts) / 4)


def test_without_negatives_it_is_clips_loss():
    logits, own = scores() * SCALE, torch.arange(N)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(clip_loss(scores(), SCALE), expected)


def test_negatives_are_ignored_on_the_text_side():
    """The text side of N + K captions is a cross entropy that ignores the last K labels."""
    logits = scores(K) * SCALE
    labels = torch.cat([torch.arange(N), torch.full((K,), -100)])
    expected = (cross_entropy(logits, torch.arange(N)) + cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(clip_loss(scores(K), SCALE), expected)


def test_a_far_negative_changes_nothing():
    far = torch.cat([scores(), torch.full((N, 1), -10.0)], 1)
    torch.testing.assert_close(clip_loss(far, SCALE), clip_loss(scores(), SCALE), atol=1e-6, rtol=0)


def test_a_copy_of_a_dominant_caption_costs_log_two():
    """In its image's row; half of the mean over images in all."""
    sure = 2 * torch.eye(N) - 1
    twice = torch.cat([sure, sure[:, :1]], 1)
    added = clip_loss(twice, 50.0) - clip_loss(sure, 50.0)
    assert added.item() == pytest.approx(log(2) / (2 * N), abs=1e-6)


def test_negatives_learn_from_the_image_side_only():
    texts = torch.cat([unit(N, 1), unit(K, 2)]).requires_grad_()
    clip_loss(unit(N, 0) @ texts.T, SCALE).backward()
    by_both = texts.grad[N:].clone()
    texts.grad = None
    (cross_entropy(unit(N, 0) @ texts.T * SCALE, torch.arange(N)) / 2).backward()
    torch.testing.assert_close(by_both, texts.grad[N:])
    assert by_both.abs().max() > 1e-4


def test_siglip_is_a_sum_over_all_pairs():
    found = siglip_loss(scores(K), SCALE, -3.0)
    expected = 0.0
    for i in range(N):
        for j in range(N + K):
            logit = scores(K)[i, j] * SCALE - 3
            expected -= logsigmoid(logit if i == j else -logit)
    torch.testing.assert_close(found, expected / N)


def test_sparc_is_a_choice_inside_of_each_sample():
    """Of samples of two and of three tokens, each by itself; padding holds rubbish."""
    generator = torch.Generator().manual_seed(3)
    lengths = (2, 3)
    grouped, texts = (torch.randn(2, 4, D, generator=generator) for _ in range(2))
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    each = []
    for b, length in enumerate(lengths):
        logits = normalize(grouped[b, :length], dim=1) @ normalize(texts[b, :length], dim=1).T
        own = torch.arange(length)
        each.append((cross_entropy(logits * SCALE, own) + cross_entropy(logits.T * SCALE, own)) / 2)
    found = sparc_fine_loss(grouped, texts, mask, SCALE)
    torch.testing.assert_close(found, sum(each) / 2)
    grouped[~mask], texts[~mask] = 1e3, -1e3
    torch.testing.assert_close(sparc_fine_loss(grouped, texts, mask, SCALE), found)


def test_sparc_of_padding_alone_is_nothing():
    rows = torch.randn(1, 3, D).requires_grad_()
    loss = sparc_fine_loss(rows, rows, torch.zeros(1, 3, dtype=torch.bool), SCALE)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(rows.grad).all()
