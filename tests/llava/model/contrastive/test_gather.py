"""The rows of two processes give the loss and the gradients that one process gets of them all."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from llava.model.contrastive.gather import average_gradients, gather, world_size

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
