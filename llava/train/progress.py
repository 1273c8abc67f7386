"""What a training run says while it runs: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

import transformers
from tqdm import tqdm

from llava.log import get_logger

logger = get_logger("train")

LINE_SECONDS = 10.0
"""Between lines where stderr is no terminal; what is logged in between is in log.jsonl."""


class Progress(transformers.TrainerCallback):
    """Steps done, loss, speed and time left, on stderr, from rank zero."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar where there is a terminal."""
        self.bar = None
        self.first, self.start, self.last = state.global_step, time.monotonic(), float("-inf")
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, file=sys.stderr, unit="step"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        """Shows loss and learning rate."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}")
            return
        now, done = time.monotonic(), state.global_step - self.first
        if now - self.last < LINE_SECONDS and state.global_step < state.max_steps:
            return
        self.last = now
        pace = (now - self.start) / max(1, done)
        logger.info(
            "step %d of %d: loss %.4f, learning rate %.3g, %.2f s a step, about %.0f s left",
            state.global_step,
            state.max_steps,
            logs["loss"],
            logs.get("learning_rate") or 0.0,
            pace,
            pace * (state.max_steps - state.global_step),
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
