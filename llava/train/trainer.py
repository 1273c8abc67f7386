"""transformers' Trainer with LLaVA's sampling, parameter groups and checkpoints."""

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from llava.data.sampler import ModalityLengthSampler, ShuffledSampler
from llava.errors import LawError
from llava.files import write_json
from llava.log import get_logger
from llava.model.saving import kept, load_projector, save_lora, save_projector
from llava.tokenization import save_tokenizer
from llava.train.checkpoint import SAVING, clear_unfinished, publish
from llava.train.gather import gathered
from llava.train.optimizer import parameter_groups

logger = get_logger("train")


class LLaVATrainer(transformers.Trainer):
    """Trains what requires gradients, and saves that: projector, adapters or the whole model."""

    def __init__(self, *args: Any, tokenizer: PreTrainedTokenizerBase, **kwargs: Any):
        # Not as `processing_class`: that would write the pad id into the model's config, and its
        # embedding would then learn nothing.
        super().__init__(*args, **kwargs)
        self.tokenizer = tokenizer
        self._sampler: ModalityLengthSampler | ShuffledSampler | None = None
        self._run_dir: Path | None = None
        self.add_callback(_JsonLines(Path(self.args.output_dir) / "log.jsonl"))
        self.add_callback(_Epochs(self))

    @property
    def adapters(self) -> bool:
        """Whether LoRA is trained."""
        return self.args.lora_enable

    @property
    def partial(self) -> bool:
        """Whether checkpoints hold what is trained only: stage 1 and LoRA."""
        return self.args.stage1 or self.adapters

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        strategy = self.args.train_sampling_strategy
        by_modality = self.args.group_by_modality_length
        grouped = by_modality or strategy == "group_by_length"
        if grouped and hasattr(dataset, "modality_lengths"):  # packs are of one length anyway
            self._sampler = ModalityLengthSampler(
                self.args.train_batch_size,
                self.args.world_size * self.args.gradient_accumulation_steps,
                dataset.modality_lengths if by_modality else dataset.lengths_in_tokens,
                group_by_modality=by_modality,
                seed=seed,
            )
        elif grouped or strategy == "random":
            self._sampler = ShuffledSampler(len(dataset), seed)
        else:
            return super()._get_train_sampler(train_dataset)
        return self._sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer over trainable parameters; see `parameter_groups`."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            decaying = set(self.get_decay_parameter_names(trained))
            groups = parameter_groups(
                trained.named_parameters(),
                decaying,
                self.args.weight_decay,
                self.args.mm_projector_lr,
            )
            made, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = made(groups, **options)
        return self.optimizer

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = Path(self.args.output_dir)
        self._run_dir = output / SAVING
        if self.args.should_save:
            clear_unfinished(output)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._run_dir = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            saved = output / SAVING / f"checkpoint-{self.state.global_step}"
            folder = publish(saved, output, self.args.save_total_limit)
            shutil.rmtree(output / SAVING)
            logger.info("saved %s", folder)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what was trained, gathered from all ranks, by the first one."""
        if not self.partial:
            super().save_model(output_dir, _internal_call)
            return
        model = self.accelerator.unwrap_model(self.model)
        state = gathered(kept(model), self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        with _usable_cache(model.config):
            if self.args.stage1:
                save_projector(model, folder, state_dict)
            elif self.adapters:
                save_lora(model, folder, state_dict)
            else:
                model.save_pretrained(folder, state_dict=state_dict)
        if not self.args.stage1:
            save_tokenizer(self.tokenizer, folder)
        write_json(folder / "training_args.json", self.args.to_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled and self.partial:
            with _without_frozen(self.model_wrapped):
                super()._save_optimizer_and_scheduler(output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple:
        """Frozen weights are in no partial checkpoint, so DeepSpeed must not ask for them."""
        partly = self.is_deepspeed_enabled and self.args.stage1 and resume_from_checkpoint
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, None if partly else resume_from_checkpoint
        )
        if partly:
            deepspeed_load_checkpoint(
                self.model_wrapped, resume_from_checkpoint, load_module_strict=False
            )
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.partial and not self.is_fsdp_enabled:
            load_projector(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)
        if not self.args.stage1 or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


@contextlib.contextmanager
def _without_frozen(engine: Any) -> Any:
    """DeepSpeed's engine saves what it trains, and leaves out what is frozen."""
    save = engine.save_checkpoint
    engine.save_checkpoint = lambda folder: save(folder, exclude_frozen_parameters=True)
    try:
        yield
    finally:
        del engine.save_checkpoint


@contextlib.contextmanager
def _usable_cache(config: Any) -> Any:
    """Training runs without a cache; what is saved is for generation."""
    before, config.use_cache = config.use_cache, True
    try:
        yield
    finally:
        config.use_cache = before


class _Epochs(transformers.TrainerCallback):
    """Tells the sampler its epoch, also where a resumed run skips into one."""

    def __init__(self, trainer: LLaVATrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before the epoch's order is drawn."""
        if self.trainer._sampler is not None:
            self.trainer._sampler.set_epoch(int((state.epoch or 0) + 1e-6))


def _finite(logs: dict | None) -> dict:
    """Logged values; None in place of what JSON has no word for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in (logs or {}).items()
    }


class _JsonLines(transformers.TrainerCallback):
    """Appends every logged line to a file."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        """Called with what the Trainer logs."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": state.global_step, **_finite(logs)}) + "\n")
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise LawError(
                f"the loss is {logs['loss']} at step {state.global_step}; the weights are spoiled. "
                "Checkpoints before it are whole; lower --learning_rate, or raise --warmup_ratio"
            )
