"""The training of an embedder: updates of adapters, alone or shared by the processes of a launch.

What is drawn (turns, order, dropout) follows from the seed and the update alone, so a run that was
killed goes on with the same numbers, and several processes give those of one, but for rounding.
"""

import argparse
import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedTokenizerBase

from llava.errors import LawError, UsageError
from llava.eval.embedding import FACTS, Embedder, Entry
from llava.eval.evaluation.fingerprint import fingerprint
from llava.extraction import usable_device
from llava.files import write_json
from llava.launch import launch
from llava.log import get_logger, progress
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_layout import CONVERTED, LLAVA, Checkpoint
from llava.model.contrastive.gather import average_gradients
from llava.model.lora import add_lora
from llava.model.multimodal_encoder.registry import parse_replacements
from llava.model.saving import ADAPTER_CONFIG
from llava.provenance import environment
from llava.train.args import program
from llava.train.checkpoint import (
    choose,
    clear_unfinished,
    locked,
    refuse_other_runs,
    set_aside,
)
from llava.train.embedding.loss import Chunk, cached_backward
from llava.train.embedding.pairs import Pairs
from llava.train.embedding.state import cut_log, finish, log, restore, save

logger = get_logger("embedding")

WITHOUT_EFFECT = (
    "output_dir",
    "device",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "resume_from_checkpoint",
    "data_path",
    "image_folder",
    "tower_alias",
)
"""Flags that may change when a run goes on; of the last three only where files are is meant."""


@dataclass
class Run:
    """What is trained, and with what."""

    flags: argparse.Namespace
    model: nn.Module
    """The LLaVA with its adapters, as peft wraps it."""
    embedder: Embedder
    tokenizer: PreTrainedTokenizerBase
    pairs: Pairs
    optimizer: torch.optim.Optimizer
    facts: dict[str, Any]

    @property
    def trained(self) -> list[nn.Parameter]:
        """The adapters' parameters, in one order everywhere."""
        return [one for one in self.model.parameters() if one.requires_grad]


def train(flags: argparse.Namespace) -> None:
    """Trains until `max_steps` and leaves the adapters in the run's folder."""
    place, output = launch(), flags.output_dir
    _check(flags, place.world)
    device = usable_device(flags.device)
    if place.world > 1:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    with locked(output) if place.rank == 0 else nullcontext():
        start = _agreed_start(flags)
        run = _prepared(flags, device)
        step = restore(run.model, run.optimizer, start, run.facts) if start else 0
        if place.rank == 0:
            write_json(output / "run.json", {"command": program(), "flags": _plain(flags)})
            write_json(output / "environment.json", environment())
            cut_log(output, step)
        _update(run, step)
        if place.rank == 0:
            finish(run.model, run.tokenizer, output, run.facts | {"step": flags.max_steps})
            logger.info("finished: %s", output)
        if place.world > 1:
            distributed.barrier()
            distributed.destroy_process_group()


def _check(flags: argparse.Namespace, world: int) -> None:
    """Raises UsageError for what cannot be trained, before any weights are read."""
    checkpoint = Checkpoint(flags.model_name_or_path)
    if checkpoint.kind not in (LLAVA, CONVERTED):
        raise UsageError(
            f"--model_name_or_path {flags.model_name_or_path} holds a {checkpoint.kind}; expected "
            "a whole LLaVA, as stage 2 leaves it; docs/pairs_embedding.md has the lines that merge "
            "adapters into one"
        )
    share, rest = divmod(flags.batch_size, world)
    if rest or share % flags.chunk_size:
        raise UsageError(
            f"--batch_size {flags.batch_size}: expected a multiple of {world} processes times "
            f"--chunk_size {flags.chunk_size}"
        )


def _agreed_start(flags: argparse.Namespace) -> Path | None:
    """The checkpoint to go on from: rank zero looks, all hear what it found."""
    said: list = [None, None]
    if launch().rank == 0:
        try:
            refuse_other_runs(flags.output_dir, "LoRA")
            _refuse_adapters(flags.output_dir)
            clear_unfinished(flags.output_dir)
            said[0] = choose(flags.output_dir, flags.resume_from_checkpoint)
            set_aside(flags.output_dir, said[0])
        except LawError as error:
            said[1] = error
    if launch().world > 1:
        distributed.broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    if said[0] is not None:
        logger.info("going on from %s", said[0])
    return said[0]


def _refuse_adapters(output: Path) -> None:
    """Raises UsageError where a folder holds adapters of another kind of training."""
    if (output / ADAPTER_CONFIG).is_file() and not (output / FACTS).is_file():
        raise UsageError(
            f"--output_dir {output} holds adapters that are no embedder's (it has no {FACTS}); "
            "choose another folder"
        )


def _prepared(flags: argparse.Namespace, device: str) -> Run:
    """The data first, since that is what most often is wrong, and then the weights."""
    pairs = Pairs(
        flags.data_path, flags.image_folder, flags.batch_size, flags.seed, not flags.no_question
    )
    tokenizer, model, processor, _ = load_pretrained_model(
        flags.model_name_or_path,
        device=device,
        dtype=flags.dtype,
        tower_replacements=parse_replacements(flags.tower_alias),
    )
    torch.manual_seed(flags.seed)
    wrapped = add_lora(
        model,
        flags.lora_r,
        flags.lora_alpha,
        flags.lora_dropout,
        train_projector=False,
        init="gaussian",
        dora=flags.dora,
    )
    if flags.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped.train()
    embedder = Embedder.of(tokenizer, model, processor, flags.chunk_size, flags.max_length)
    trained = [one for one in wrapped.parameters() if one.requires_grad]
    logger.info(
        "%s parameters are trained, of %s; %d pairs, %d batches an epoch",
        f"{sum(one.numel() for one in trained):,}",
        f"{sum(one.numel() for one in wrapped.parameters()):,}",
        len(pairs.usable),
        pairs.per_epoch,
    )
    optimizer = torch.optim.AdamW(
        trained, flags.learning_rate, weight_decay=flags.weight_decay, fused=False
    )
    return Run(flags, wrapped, embedder, tokenizer, pairs, optimizer, _facts(flags, pairs))


def _facts(flags: argparse.Namespace, pairs: Pairs) -> dict[str, Any]:
    """What the adapters depend on; `step` is added when they are written."""
    plain = {name: value for name, value in _plain(flags).items() if name not in WITHOUT_EFFECT}
    base = plain.pop("model_name_or_path")
    records = pairs.records.digest
    return {"base": base, "base_fingerprint": fingerprint(base), "records": records, **plain}


def _plain(flags: argparse.Namespace) -> dict[str, Any]:
    """Every flag with its value, as JSON has it."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(flags).items()
    }


def _update(run: Run, start: int) -> None:
    """The updates from `start` on, with checkpoints among them and one at the end."""
    flags, first = run.flags, launch().rank == 0
    for step in progress(range(start, flags.max_steps), "updates"):
        rate = learning_rate(step, flags.learning_rate, flags.warmup_steps, flags.max_steps)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        loss = cached_backward(*_chunks(run, step), flags.temperature)
        if not math.isfinite(loss):
            raise LawError(
                f"the loss is {loss} at step {step + 1}; checkpoints before it are whole. Lower "
                "--learning_rate, or take --dtype float32"
            )
        average_gradients(run.trained)
        if flags.max_grad_norm:
            nn.utils.clip_grad_norm_(run.trained, flags.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        done = step + 1
        last = done == flags.max_steps
        if first and (done % flags.logging_steps == 0 or last):
            log(flags.output_dir, {"step": done, "loss": loss, "learning_rate": rate})
        if first and (last or (flags.save_steps and done % flags.save_steps == 0)):
            facts, keep = run.facts | {"step": done}, flags.save_total_limit
            folder = save(run.model, run.tokenizer, run.optimizer, flags.output_dir, facts, keep)
            logger.info("step %d: loss %.4f; saved %s", done, loss, folder)
    if run.embedder.cut:
        logger.warning("%d texts were cut to %d tokens", run.embedder.cut, flags.max_length)


def learning_rate(step: int, highest: float, warmup: int, steps: int) -> float:
    """Of update `step` (from 0): straight up over `warmup` updates, then straight down to 0."""
    if step < warmup:
        return highest * step / warmup
    return highest * (steps - step) / max(1, steps - warmup)


def _chunks(run: Run, step: int) -> tuple[list[Chunk], list[Chunk]]:
    """This process's share of the update's batch: chunks of queries, chunks of targets."""
    place, size = launch(), run.flags.chunk_size
    share = run.flags.batch_size // place.world
    first = place.rank * share
    pairs = run.pairs.batch(step, first, share)
    run.embedder.forget()
    queries: list[Chunk] = []
    targets: list[Chunk] = []
    for start in range(0, share, size):
        some = pairs[start : start + size]
        where = f"{run.flags.seed} {step} {first + start}"
        queries.append(_chunk(run.embedder, [pair.query for pair in some], f"{where} query"))
        targets.append(_chunk(run.embedder, [pair.target for pair in some], f"{where} target"))
    return queries, targets


def _chunk(embedder: Embedder, entries: Sequence[Entry], seed: str) -> Chunk:
    """Computes rows of entries, with the same dropout each time."""
    ready = embedder.ready(entries)
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")

    def computed() -> torch.Tensor:
        torch.manual_seed(number)
        return embedder(ready)

    return computed
