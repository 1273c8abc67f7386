"""One rank of a model whose layers are sharded by torch's FSDP2 on the CPU; started by torchrun.

fsdp_ranks.py MODEL BATCH OUT: writes the loss over all rows and every gathered gradient
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llava.model.builder import load_llava
from llava.model.trainable import trainable
from llava.train.gather import gathered


def main(model_path: str, batch_path: str, out: str) -> None:
    """Each rank takes every second row; one of the rows has no image."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = load_llava(model_path)
    trainable(model, 2)
    for layer in model.get_model().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.train()
    batch = torch.load(batch_path, weights_only=True)
    rows = range(dist.get_rank(), len(batch["input_ids"]), dist.get_world_size())
    mine = {name: batch[name][list(rows)] for name in ("input_ids", "labels", "attention_mask")}
    features = [batch["image_features"][i] for i in rows if batch["has_image"][i]]
    if features:
        mine["image_features"] = torch.stack(features)
    items = batch["labels"][:, 1:].ne(-100).sum()
    loss = model(**mine, num_items_in_batch=items).loss
    loss.backward()
    for parameter in model.parameters():
        parameter.grad *= dist.get_world_size()  # FSDP takes the mean over ranks, the loss is a sum
    found = gathered(((n, p.grad) for n, p in model.named_parameters()), dist.get_rank() == 0)
    dist.all_reduce(loss.detach())
    if dist.get_rank() == 0:
        torch.save({"loss": loss.detach(), **found}, Path(out))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
