"""The rows of two processes give the loss and the gradients that one process gets of them all."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from llava.model.contrastive.config import HeadConfig, TextConfig
from llava.model.contrastive.gather import average_gradients, gather, world_size
from llava.model.contrastive.model import Head
from llava.model.contrastive.texts import TextSource

WIDTH, LENGTHS = 5, ((3, 1), (4, 0))


def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, WIDTH, generator=generator)


def layer():
    torch.manual_seed(1)
    return torch.nn.Linear(WIDTH, WIDTH)


def loss_of(embedded):
    """Every row with every other."""
    return (embedded @ embedded.T).logsumexp(1).sum()


def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for lengths in LENGTHS:
        start = sum(lengths[:rank])
        model = layer()
        embedded = gather(model(rows()[start : start + lengths[rank]]))
        loss = loss_of(embedded)
        loss.backward()
        average_gradients(model.parameters())
        torch.save(
            {"rows": embedded.detach(), "loss": loss.detach(), "weight": model.weight.grad},
            Path(folder, f"{rank}_of_{lengths}.pt"),
        )
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    """With unequal shares, and with one that is empty."""
    model = layer()
    embedded = model(rows())
    loss = loss_of(embedded)
    loss.backward()
    mp.spawn(process, (str(tmp_path),), nprocs=2)
    for lengths in LENGTHS:
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}_of_{lengths}.pt", weights_only=True)
            torch.testing.assert_close(found["rows"], embedded.detach())
            torch.testing.assert_close(found["loss"], loss.detach())
            torch.testing.assert_close(found["weight"], model.weight.grad)


def test_alone_nothing_changes():
    given = rows().requires_grad_()
    assert world_size() == 1
    assert gather(given) is given
    model = layer()
    average_gradients(model.parameters())
    assert model.weight.grad is None


class Tokens(TextSource):
    """Texts with tokens, as many of them as their name says."""

    dim = token_dim = WIDTH

    def tokens(self, captions):
        longest = max(map(int, captions), default=1)
        rows = torch.stack([torch.randn(9, WIDTH, generator=seeded(int(one))) for one in captions])
        mask = torch.arange(longest) < torch.tensor([int(one) for one in captions])[:, None]
        return rows[:, :longest], mask

    def vectors(self, captions):
        return self.tokens(captions)[0][:, 0]

    def facts(self):
        return {}


def seeded(number):
    return torch.Generator().manual_seed(number)


LOSSES = [
    {"pooling": "softmax", "learned_temperature": True},
    {"pooling": "sigmoid", "weights_from": "own"},
    {"pooling": "sum", "loss": "siglip", "learned_temperature": True},
    {"kind": "sparc", "learned_temperature": True},
]
SHARES = ((0, 3), (3, 5))
"""Images of either process; the second alone has negatives."""


def gradients(facts, first, last, negatives):
    torch.manual_seed(0)
    text = TextConfig("clip", "any")
    config = HeadConfig(**{"width": 4, "dropout": 0.0, "bias": -1.0, "text": text, **facts})
    head = Head(config, 6, Tokens())
    images = torch.randn(5, 7, 6, generator=seeded(9))
    captions = ["3", "1", "4", "2", "5"]
    loss = head.loss(images[first:last], captions[first:last], negatives)
    loss.backward()
    trained = {name: p for name, p in head.named_parameters() if p.requires_grad}
    average_gradients(trained.values())
    return {"loss": loss.detach()} | {name: p.grad for name, p in trained.items()}


def head_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for number, facts in enumerate(LOSSES):
        found = gradients(facts, *SHARES[rank], ["6", "7"][: 2 * rank])
        torch.save(found, Path(folder, f"{rank}_of_{number}.pt"))
    dist.destroy_process_group()


def test_a_heads_gradients_are_those_of_one_process(tmp_path):
    """Of every loss and every parameter, in size too, which Adam would not show."""
    mp.spawn(head_process, (str(tmp_path),), nprocs=2)
    for number, facts in enumerate(LOSSES):
        expected = gradients(facts, 0, 5, ["6", "7"])
        assert ("log_scale" in expected) == bool(facts.get("learned_temperature"))
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}_of_{number}.pt", weights_only=True)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, msg=f"{facts} {name}: wrong")
            assert max(value.abs().max() for value in expected.values()) > 1e-2
