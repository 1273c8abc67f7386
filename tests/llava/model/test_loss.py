"""The loss at supervised positions alone, and batches that have none, no images, or parts."""

import pytest
import torch
from llavas import VOCABULARY, batch, family_llava, gradients
from torch.nn.functional import cross_entropy

from llava.model import loss as loss_module
from llava.model.loss import token_losses
from llava.model.trainable import trainable

ROWS = [[1, -200, 5, 6, 7, 2], [1, 8, 9, 10], [1, -200, 4, -200, 11, 12, 13, 2]]


@pytest.fixture
def model():
    """A random LLaVA over LLaMA."""
    return family_llava()


def whole_loss(model, given, reduction="mean"):
    """The loss as everyone computes it: from all logits, shifted."""
    model.eval()
    bare = {key: value for key, value in given.items() if key != "labels"}
    logits = model(**bare).logits.float()
    labels = model.prepare_inputs_labels_for_multimodal(
        given["input_ids"], None, given["attention_mask"], None, given["labels"], given["images"]
    )[5]
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


def test_equals_full_logits(model):
    """Loss to 1e-6, gradients likewise."""
    given = batch(ROWS)
    expected = whole_loss(model, given)
    expected.backward()
    wanted = gradients(model)
    model.train()
    found = model(**given)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-5)
    model.eval()
    assert model(**given).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_logits_of_other_positions_never_exist(model):
    """The head sees as many rows as there are supervised tokens."""
    given = batch(ROWS)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    model.train()
    model(**given)
    assert seen == [int((given["labels"][:, 1:] != -100).sum())]


def test_all_masked(model):
    """Finite, zero, and with gradients of zero."""
    given = batch(ROWS)
    given["labels"] = torch.full_like(given["labels"], -100)
    model.train()
    loss = model(**given).loss
    assert loss.item() == 0
    loss.backward()
    assert all((g == 0).all() for g in gradients(model).values())
    model.eval()
    assert model(**given).loss.item() == 0


def test_text_alone_in_training(model):
    """The projector has gradients, of zero: ranks wait for them."""
    given = batch([[1, 8, 9, 10, 11], [1, 4, 5, 6]])
    trainable(model, 2)
    model.train()
    calls = []
    model.mm_projector.register_forward_hook(lambda *_: calls.append(1))
    model(**given).loss.backward()
    assert calls == [1]
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    projector = [g for n, g in found.items() if "mm_projector" in n]
    assert len(projector) == 4
    assert all((g == 0).all() for g in projector)
    assert found["lm_head.weight"].abs().sum() > 0


def test_projector_runs_once(model):
    """For all images of the batch, and the tower as well."""
    calls = []
    model.mm_projector.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    tower = model.get_vision_tower().load_model()
    tower.register_forward_hook(lambda _, given, out: calls.append(out.requires_grad))
    model.train()
    model(**batch(ROWS))
    assert calls == [False, 3]


def test_text_alone_in_evaluation(model):
    """As the language model alone: no projector, no tower."""
    ids = torch.tensor([[1, 8, 9, 10]])
    model.mm_projector.register_forward_hook(lambda *_: pytest.fail("the projector ran"))
    logits = model(input_ids=ids).logits
    assert logits.shape == (1, 4, VOCABULARY)


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_accumulation(model, kind):
    """Four micro-batches over all their items equal one batch of four."""
    rows = [*ROWS, [1, -200, 60, 61]]
    given = batch(rows)
    items = int((given["labels"][:, 1:] != -100).sum())
    model.train()
    model(**given).loss.backward()
    whole = gradients(model)
    images = iter(given["images"])
    total = 0.0
    for row in rows:
        one = batch([row])
        if "images" in one:
            one["images"] = torch.stack([next(images) for _ in one["images"]])
        loss = model(**one, num_items_in_batch=kind(items)).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole_loss(model, given).item(), abs=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_token_losses(monkeypatch, rows):
    """As torch's own, value and gradient, however many rows are in float32 at a time."""
    monkeypatch.setattr(loss_module, "ROWS", rows)
    torch.manual_seed(0)
    logits = (torch.randn(5, 7) * 5).requires_grad_()
    targets = torch.tensor([0, 6, 3, 3, 1])
    weights = torch.randn(5)
    expected = cross_entropy(logits, targets, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), logits)
    found = token_losses(logits, targets)
    (given,) = torch.autograd.grad((found * weights).sum(), logits)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(given, wanted, atol=1e-7, rtol=1e-5)


def test_token_losses_in_bfloat16():
    """The softmax is in float32: as that of the logits cast as a whole."""
    torch.manual_seed(0)
    logits = (torch.randn(6, 50) * 4).bfloat16().requires_grad_()
    targets = torch.randint(50, (6,))
    found = token_losses(logits, targets)
    assert found.dtype == torch.float32
    wanted = cross_entropy(logits.float(), targets, reduction="none")
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    (given,) = torch.autograd.grad(found.sum(), logits)
    (expected,) = torch.autograd.grad(wanted.sum(), logits)
    assert torch.equal(given, expected)


@pytest.mark.parametrize("pixel_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(model, pixel_dtype):
    """A bfloat16 model takes pixels of any dtype; tower and projector may differ from it."""
    given = batch(ROWS)
    given["images"] = given["images"].to(pixel_dtype)
    expected = model(**batch(ROWS)).loss.item()
    model.to(torch.bfloat16)
    assert model.get_vision_tower().dtype == torch.float32
    assert model(**given).loss.item() == pytest.approx(expected, rel=0.05)
    model.get_vision_tower().to(dtype=torch.bfloat16)
    model.mm_projector.float()
    model.train()
    model(**given).loss.backward()
    assert model.mm_projector[0].weight.grad.dtype == torch.float32


def test_autocast(model):
    """float32 weights, bfloat16 products: what a Trainer does with --bf16."""
    model.train()
    expected = model(**batch(ROWS)).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch(ROWS)).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.05)
    assert model.mm_projector[0].weight.grad.abs().sum() > 0
