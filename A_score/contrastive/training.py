"""The training of a head: batches, steps, and a checkpoint that a killed run goes on from.

Every epoch has an order of its own and whole batches only; what is left over of it is left out, so
no batch holds a record twice. Everything that is drawn follows from the seed and the step, and the
checkpoint holds the rest, so a run that was killed ends with the same numbers.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from A_score.contrastive.captions import Captions
from A_score.contrastive.config import TrainConfig
from A_score.contrastive.negatives import Phrases
from llava.config import save
from llava.data.images import path_inside
from llava.data.tower_tokens import Tokens
from llava.errors import LawError, UsageError
from llava.files import write_bytes, write_text
from llava.launch import launch
from llava.log import get_logger, progress
from llava.model.contrastive.gather import average_gradients
from llava.model.contrastive.model import Head

logger = get_logger("a-score")

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


class Batches:
    """Which records a step has."""

    def __init__(self, samples: int, batch_size: int, seed: int):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, int)

    def of(self, step: int) -> list[tuple[int, int]]:
        """(record, epoch) of a step's images, over all processes."""
        epoch, inside = divmod(step, self.samples // self.batch_size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        start = inside * self.batch_size
        return [(int(i), epoch) for i in self._order[start : start + self.batch_size]]


@dataclass
class Training:
    """A head with what it is trained on; `run` trains it to the end."""

    config: TrainConfig
    head: Head
    captions: Captions
    images: Path
    """Folder that the records' image names begin in."""
    tokens: Tokens
    phrases: Phrases | None
    out: Path
    fingerprint: str
    """Of everything that the numbers depend on; a checkpoint of another run is refused."""

    def __post_init__(self):
        self.here = launch()
        self.steps = self.config.total_steps(len(self.captions))
        self.trained = [one for one in self.head.parameters() if one.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.trained, self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.losses: list[dict[str, Any]] = []

    def run(self) -> None:
        """Trains from the last checkpoint, or from the start; the head is left in evaluation."""
        batches = Batches(len(self.captions), self.config.batch_size, self.config.seed)
        first = self._resume()
        if self.here.rank == 0:  # after a folder of another run is refused
            save(self.config, self.out / "config.yaml")
        self.head.train()
        for step in progress(range(first, self.steps), "head", self.steps - first):
            loss = self._step(step, batches.of(step))
            self._note(step, loss)
            if (step + 1) % self.config.save_steps == 0 or step + 1 == self.steps:
                self._save(step + 1)
        self.head.eval()

    def _step(self, step: int, batch: list[tuple[int, int]]) -> float:
        """One step of the optimizer; the loss of the whole batch."""
        rank, world = self.here.rank, self.here.world
        share = batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
        told = [self.captions.caption(i, epoch) for i, epoch in share]
        negatives = [self.phrases.rewritten(one) for one in told] if self.phrases else []
        tokens = self.tokens([path_inside(self.images, self.captions.image(i)) for i, _ in share])
        torch.manual_seed(hash((self.config.seed, step, rank)) % (1 << 63))  # of dropout
        loss = self.head.loss(tokens, told, [one for one in negatives if one is not None])
        if not torch.isfinite(loss):
            raise LawError(
                f"step {step + 1}: the loss is {loss.item()}; take a lower learning_rate, and "
                "--dtype float32 for the tower"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.trained)
        self.optimizer.step()
        self.head.limit_scale()
        return loss.item()

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        warmup = self.config.warmup_steps
        return self.config.learning_rate * min(1.0, (step + 1) / warmup if warmup else 1.0)

    def _note(self, step: int, loss: float) -> None:
        last = step + 1 == self.steps
        if (step + 1) % self.config.log_steps and not last:
            return
        self.losses.append(
            {"step": step + 1, "loss": loss, "learning_rate": self.learning_rate(step)}
        )
        if self.here.rank == 0:
            write_text(self.out / LOG, "".join(json.dumps(line) + "\n" for line in self.losses))

    def _save(self, step: int) -> None:
        if self.here.rank:
            return
        data = io.BytesIO()
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            "losses": self.losses,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, data)
        write_bytes(self.out / CHECKPOINT, data.getvalue())

    def _resume(self) -> int:
        """Steps that are done; UsageError where the folder holds another run."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return 0
        try:
            state = torch.load(path, map_location=self.head.device, weights_only=True)
            known, step = state["fingerprint"], state["step"]
        except Exception as error:  # of damaged files: RuntimeError, EOFError, UnpicklingError, ...
            raise LawError(f"{path}: cannot be read: {error}; remove it to start anew") from error
        if known != self.fingerprint:
            raise UsageError(
                f"{path} is of another run: its config, data, towers or texts differ; give another "
                "--out, or remove it"
            )
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]
        logger.info("%s: going on after step %d of %d", self.out, step, self.steps)
        return step
