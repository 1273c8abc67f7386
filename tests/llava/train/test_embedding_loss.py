"""InfoNCE, and its gradients through a cache: those of a plain pass, however it is cut."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.train.embedding.loss import cached_backward, info_nce
from llava.train.embedding.run import learning_rate


def test_by_hand():
    """Two pairs; the cross entropy is over targets alone."""
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = -math.log(math.exp(2) / (math.exp(2) + 1))
    second = -math.log(math.exp(1.6) / (math.exp(1.6) + math.exp(1.2)))
    assert info_nce(queries, targets, 0.5).item() == pytest.approx((first + second) / 2, abs=1e-6)
    other_way = info_nce(targets, queries, 0.5).item()
    assert abs(other_way - (first + second) / 2) > 1e-2


def encoder():
    """A small network with dropout, in training."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 4)).train()


def chunks(model, rows, size, seed):
    """Callables that compute `size` rows each, with dropout of their own."""

    def made(start):
        def run():
            torch.manual_seed(seed + start)
            return functional.normalize(model(rows[start : start + size]), dim=-1)

        return run

    return [made(start) for start in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [1, 3, 12])
def test_gradients_of_a_plain_pass(size):
    """To rounding in float32, with the same dropout in both passes; the loss is the same number."""
    model = encoder()
    queries, targets = torch.randn(2, 12, 5).unbind()
    asked, answered = chunks(model, queries, size, 0), chunks(model, targets, size, 1000)
    plain = info_nce(
        torch.cat([chunk() for chunk in asked]), torch.cat([chunk() for chunk in answered]), 0.1
    )
    plain.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = cached_backward(asked, answered, 0.1)
    assert loss == pytest.approx(plain.item(), abs=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)
        assert gradient.abs().max() > 1e-3


def test_whole_batch_counts():
    """A loss of each chunk alone would have fewer targets to choose among."""
    model = encoder().eval()
    rows = torch.randn(8, 5)
    whole = cached_backward(chunks(model, rows, 2, 0), chunks(model, rows + 0.1, 2, 0), 0.1)
    parts = [
        cached_backward(chunks(model, some, 2, 0), chunks(model, some + 0.1, 2, 0), 0.1)
        for some in rows.split(2)
    ]
    assert whole > sum(parts) / 4 + 0.05


def test_learning_rate():
    """Straight up over the warm-up, straight down to nothing."""
    rates = [learning_rate(step, 1.0, 4, 12) for step in range(12)]
    assert rates == [0, 0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert learning_rate(0, 1.0, 0, 1) == 1.0
