"""The flags of training: LLaVA's own, transformers', and ours.

Published LLaVA scripts run unchanged: flags that transformers 5 no longer has are taken here and
mapped to what replaced them. `--config FILE` reads flags from a YAML mapping first.
"""

import dataclasses
import json
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser

from llava.config import read_yaml
from llava.conversation import template
from llava.data.images import CHECKS
from llava.errors import MissingPackageError, UsageError, unknown_name
from llava.log import get_logger
from llava.model.multimodal_encoder.registry import JOINS
from llava.model.multimodal_encoder.spec import SELECTS

logger = get_logger("train")

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str = field(
        default="", metadata={"help": "language model: a folder or hub id, or a LLaVA checkpoint"}
    )
    version: str = field(
        default="v1",
        metadata={"help": "conversation template; `chat` is the tokenizer's own; stage 1: plain"},
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "tower, or several joined by '.' or '+'; see `law towers`"}
    )
    tower_alias: list[str] = field(
        default_factory=list, metadata={"help": "ID=FOLDER: where a tower's weights are read from"}
    )
    mm_vision_select_layer: int | None = field(
        default=None, metadata={"help": "hidden state that is read; unset: the tower's own, -2"}
    )
    mm_vision_select_feature: str | None = field(
        default=None, metadata={"help": "patch, cls_patch or cls; unset: patch"}
    )
    mm_vision_geometry: str | None = field(
        default=None,
        metadata={"help": "own: each tower its own crop; shared: all see the same; unset: shared"},
    )
    mm_vision_join: str = field(
        default="channel", metadata={"help": "channel, append or interleave, for several towers"}
    )
    mm_vision_grid_align: str = field(
        default="", metadata={"help": "interpolate: resample unequal token grids to the largest"}
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None, metadata={"help": "projector of stage 1: mm_projector.bin or .safetensors"}
    )
    mm_projector_type: str | None = field(
        default=None,
        metadata={"help": "linear, mlpNx_gelu, identity, perceiverNx; unset: mlp2x_gelu"},
    )
    mm_patch_merge_type: str = field(
        default="flat", metadata={"help": "anyres: flat, spatial or spatial_unpad"}
    )
    mm_use_im_start_end: bool = field(default=False, metadata={"help": "tokens around an image"})
    mm_use_im_patch_token: bool = field(default=False, metadata={"help": "adds <im_patch>"})
    tune_mm_mlp_adapter: bool = field(
        default=False, metadata={"help": "stage 1: train and save the projector only"}
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "language model without head frozen"}
    )
    up_ft_index: int | None = field(default=None, metadata={"help": "diffusion: block read"})
    t: int | None = field(default=None, metadata={"help": "diffusion: time step of the noise"})
    prompt: str | None = field(default=None, metadata={"help": "diffusion: text condition"})
    ensemble_size: int | None = field(default=None, metadata={"help": "diffusion: noise draws"})
    img_size: int | None = field(default=None, metadata={"help": "diffusion: side of the input"})
    noise_seed: int | None = field(default=None, metadata={"help": "diffusion: of the noise"})
    vae_sample: str | None = field(
        default=None, metadata={"help": "diffusion: latents drawn (sample) or their mean (mode)"}
    )
    compat: str | None = field(
        default=None,
        metadata={"help": "diffusion: as published (reference), or as trained (clean)"},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, flash_attention_2, flex_attention or eager"}
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str | None = field(
        default=None, metadata={"help": "conversations: JSON or JSONL, several joined by ','"}
    )
    image_folder: str | None = field(default=None, metadata={"help": "what image paths start at"})
    image_aspect_ratio: str = field(default="square", metadata={"help": "square, pad or anyres"})
    image_grid_pinpoints: str | None = field(
        default=None, metadata={"help": "anyres: [(width, height), ...]"}
    )
    image_policy: str = field(
        default="error", metadata={"help": "a missing or damaged image: error, or skip and count"}
    )
    verify_images: str = field(
        default="exist", metadata={"help": "before training, of all images: none, exist or decode"}
    )
    max_dropped: float = field(
        default=0.1, metadata={"help": "share of the records that may be unusable, at most"}
    )
    vision_features: str = field(
        default="live", metadata={"help": "store: read tower tokens from --feature_store"}
    )
    feature_store: str | None = field(default=None, metadata={"help": "folder of `law features`"})
    packing: bool = field(
        default=False, metadata={"help": "fill sequences of model_max_length with whole samples"}
    )
    lazy_preprocess: bool = field(default=True, metadata={"help": "taken for old scripts: always"})
    is_multimodal: bool = field(default=True, metadata={"help": "taken for old scripts"})


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """How it is trained: transformers' arguments, and LLaVA's."""

    cache_dir: str | None = None
    remove_unused_columns: bool = False
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "projector frozen"})
    model_max_length: int = field(
        default=2048, metadata={"help": "tokens of a sequence, those of its images included"}
    )
    mm_projector_lr: float | None = field(default=None, metadata={"help": "of the projector alone"})
    group_by_modality_length: bool = field(
        default=False, metadata={"help": "batches of one modality and similar length"}
    )
    bits: int = field(default=16, metadata={"help": "4 or 8: QLoRA, through bitsandbytes"})
    double_quant: bool = True
    quant_type: str = "nf4"
    lora_enable: bool = False
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_bias: str = field(default="none", metadata={"help": "none, all or lora_only"})
    lora_weight_path: str = field(default="", metadata={"help": "taken for old scripts: empty"})
    check: bool = field(
        default=False, metadata={"help": "check data, model and machine; train nothing"}
    )
    check_images: int = field(
        default=200, metadata={"help": "images that --check decodes; -1: all of them"}
    )
    a_score: bool = field(
        default=False, metadata={"help": "score the alignment as likelihood; train nothing"}
    )
    a_score_samples: int = field(default=100, metadata={"help": "records that --a_score takes"})
    results: str | None = field(default=None, metadata={"help": "table that --a_score adds to"})
    evaluation_strategy: str | None = field(default=None, metadata={"help": "eval_strategy"})
    warmup_ratio: float | None = field(default=None, metadata={"help": "warmup_steps below 1"})
    group_by_length: bool = field(
        default=False, metadata={"help": "batches of similar length, in tokens"}
    )
    no_cuda: bool = field(default=False, metadata={"help": "use_cpu"})
    save_safetensors: bool = field(default=True, metadata={"help": "always"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "taken, without effect"})
    logging_dir: str | None = field(default=None, metadata={"help": "taken, without effect"})
    fsdp_transformer_layer_cls_to_wrap: str | None = field(
        default=None, metadata={"help": "of fsdp_config"}
    )
    mpt_attn_impl: str | None = field(default=None, metadata={"help": "taken, without effect"})

    def __post_init__(self):
        self._map_old_flags()
        self._fit_the_machine()
        super().__post_init__()

    @property
    def stage1(self) -> bool:
        """Whether only the projector is trained and saved; set by `parse`."""
        return getattr(self, "_stage1", False)

    def _map_old_flags(self) -> None:
        """Flags that transformers 4 had, as those that replaced them."""
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise UsageError(f"--warmup_ratio {self.warmup_ratio}: expected 0 up to below 1")
            if not self.warmup_steps:
                self.warmup_steps = self.warmup_ratio
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"
        if getattr(self, "activation_checkpointing", False) is None:  # its name from 5.2x on
            self.activation_checkpointing = self.gradient_checkpointing
        if self.no_cuda:
            self.use_cpu = True
        if not self.save_safetensors:
            logger.warning("--save_safetensors False: weights are always written as safetensors")
        if self.fsdp_transformer_layer_cls_to_wrap:
            config = dict(self.fsdp_config or {}) if not isinstance(self.fsdp_config, str) else None
            if config is None:
                raise UsageError(
                    "--fsdp_transformer_layer_cls_to_wrap and --fsdp_config FILE; put "
                    "transformer_layer_cls_to_wrap into the file"
                )
            config["transformer_layer_cls_to_wrap"] = [self.fsdp_transformer_layer_cls_to_wrap]
            self.fsdp_config = config

    def _fit_the_machine(self) -> None:
        """A machine without an accelerator trains on its CPU, and says so once."""
        if not self.use_cpu and not torch.accelerator.is_available():
            logger.info("no accelerator found; training on the CPU")
            self.use_cpu = True
        if self.use_cpu and self.tf32:
            logger.warning("--tf32 True: a CPU has none; going on without")
            self.tf32 = None
        # transformers would log the mean of the losses before in place of one that is NaN
        self.logging_nan_inf_filter = False
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every trainable one is used in every batch
        if self.use_cpu and self.fp16:
            raise UsageError("--fp16 True: a CPU trains in bf16 or float32; take --bf16 True")


Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def parse(argv: list[str]) -> Arguments:
    """The three groups; UsageError for a flag or value that cannot be meant."""
    argv = _from_config(list(argv))
    _prepare_deepspeed(argv)
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments),
        prog="law train",
        description="Train LLaVA with any vision representation: stage 1, stage 2, LoRA.",
        allow_abbrev=False,
    )
    model, data, training, *rest = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True
    )
    unknown = [text for text in rest[0] if text.startswith("-")] or rest[0]
    if unknown:
        known = {option for action in parser._actions for option in action.option_strings}
        wrong = unknown_name("flag", unknown[0].partition("=")[0], sorted(known))
        raise UsageError(f"{wrong} (`law train --help` lists them)")
    training._stage1 = model.tune_mm_mlp_adapter
    if training.a_score and training.deepspeed:
        raise UsageError(
            "--a_score updates nothing and takes no --deepspeed; leave it out, and each process "
            "holds the whole model"
        )
    if training.deepspeed:
        import deepspeed

        # On a CPU nobody has told DeepSpeed yet how many processes there are.
        deepspeed.init_distributed(verbose=False)
    validate(model, data, training)
    return model, data, training


def validate(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Raises UsageError for what cannot go together, before anything is loaded."""
    if not model.model_name_or_path:
        raise UsageError("--model_name_or_path is missing: a folder or hub id of a language model")
    if model.version != "chat":
        template(model.version)
    _one_of("image_policy", data.image_policy, ("error", "skip"))
    _one_of("verify_images", data.verify_images, CHECKS)
    _one_of("vision_features", data.vision_features, ("live", "store"))
    _one_of("image_aspect_ratio", data.image_aspect_ratio, ("square", "pad", "anyres"))
    _one_of("mm_vision_select_feature", model.mm_vision_select_feature, (None, *SELECTS))
    _one_of("mm_vision_join", model.mm_vision_join, JOINS)
    _one_of("mm_vision_geometry", model.mm_vision_geometry, (None, "own", "shared"))
    _one_of("mm_vision_grid_align", model.mm_vision_grid_align, ("", "interpolate"))
    _one_of("bits", training.bits, (4, 8, 16))
    _one_of("lora_bias", training.lora_bias, ("none", "all", "lora_only"))
    if not data.data_path:
        raise UsageError("--data_path is missing: conversations as JSON or JSONL")
    if model.vision_tower and not data.image_folder:
        raise UsageError("--image_folder is missing: the folder that image paths start at")
    if model.tune_mm_mlp_adapter and not model.vision_tower:
        raise UsageError("--tune_mm_mlp_adapter trains a projector; --vision_tower is missing")
    if training.a_score and not model.vision_tower:
        raise UsageError("--a_score scores a projector; --vision_tower is missing")
    if model.tune_mm_mlp_adapter and training.lora_enable:
        raise UsageError("--tune_mm_mlp_adapter (stage 1) and --lora_enable (stage 2): take one")
    if model.tune_mm_mlp_adapter and training.freeze_mm_mlp_adapter:
        raise UsageError("--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter leave nothing to train")
    if training.lora_weight_path:
        raise UsageError(
            "--lora_weight_path: a run goes on from its own checkpoints; to train on from an "
            "adapter, merge it first"
        )
    if training.lora_enable and model.mm_use_im_start_end:
        raise UsageError(
            "--mm_use_im_start_end with --lora_enable: adapters do not hold embeddings of new "
            "tokens; take one of them"
        )
    if training.bits != 16 and not training.lora_enable:
        raise UsageError(f"--bits {training.bits} trains adapters only; add --lora_enable True")
    if data.image_aspect_ratio == "anyres" and not data.image_grid_pinpoints:
        raise UsageError("--image_aspect_ratio anyres needs --image_grid_pinpoints")
    if data.vision_features == "store" and not data.feature_store:
        raise UsageError("--vision_features store needs --feature_store DIR, as `law features` has")
    if data.vision_features == "store" and data.image_aspect_ratio == "anyres":
        raise UsageError("--vision_features store holds whole images; for anyres take live")
    if not 0 <= data.max_dropped <= 1:
        raise UsageError(f"--max_dropped {data.max_dropped}: expected a share from 0 to 1")
    if training.eval_strategy != "no":
        raise UsageError(
            f"--eval_strategy {training.eval_strategy}: training does not evaluate; --a_score with "
            "held-out data scores a projector, lmms-eval a finetuned model"
        )
    if training.label_smoothing_factor:
        raise UsageError("--label_smoothing_factor needs logits at all positions; leave it at 0")
    by_length = training.train_sampling_strategy == "group_by_length"
    if data.packing and (by_length or training.group_by_modality_length):
        logger.info("--packing fills every sequence; grouping by length has no effect")


def _one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        known = [str(entry) for entry in allowed if entry not in (None, "")]
        raise UsageError(f"--{name}: {unknown_name('value', str(value), known)}")


def _from_config(argv: list[str]) -> list[str]:
    """`argv` with the flags of `--config FILE` in front, so that the command line wins."""
    for place, text in enumerate(argv):
        if text == "--config" or text.startswith("--config="):
            path = text.partition("=")[2] or (argv[place + 1] if place + 1 < len(argv) else "")
            rest = argv[:place] + argv[place + (1 if "=" in text else 2) :]
            break
    else:
        return argv
    if not path:
        raise UsageError("--config needs a YAML file")
    flags = read_yaml(path)
    if not isinstance(flags, dict):
        raise UsageError(f"{path}: expected flags with their values, e.g. `learning_rate: 2e-5`")
    given: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        given.append(f"--{name}")
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(one, list) for one in value)
        )
        values = value if isinstance(value, list) and not nested else [value]
        given += [json.dumps(one) if isinstance(one, dict | list) else str(one) for one in values]
    return given + rest


def _prepare_deepspeed(argv: list[str]) -> None:
    """DeepSpeed wants its package and, without a launcher, the variables of a launch of one."""
    asked = [i for i, text in enumerate(argv) if text.partition("=")[0] == "--deepspeed"]
    if not asked:
        return
    try:
        import deepspeed  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'--deepspeed: {error}; `pip install -e ".[train]"` installs it'
        ) from error
    _, _, value = argv[asked[-1]].partition("=")
    path = value or (argv[asked[-1] + 1] if asked[-1] + 1 < len(argv) else "")
    if not Path(path).is_file():
        raise UsageError(f"--deepspeed {path}: no such file; scripts/zero2.json is one")
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})


def as_flags(arguments: Arguments) -> dict[str, Any]:
    """Every flag with its value, plain, for the run folder."""
    found: dict[str, Any] = {}
    for group in arguments:
        plain = group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
        found |= plain
    return found


def program() -> str:
    """The command that was typed."""
    return " ".join(sys.argv)
