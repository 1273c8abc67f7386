"""Low-rank adapters on the language model's linear layers."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from llava.errors import MissingPackageError, UsageError
from llava.model.saving import PROJECTOR, of_projector

BIASES = ("none", "all", "lora_only")


def lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The language model's linear layers, which adapters are put on.

    Neither the head, which stays as it is, nor the projector, which is trained whole; the tower is
    no part of the model.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and PROJECTOR not in name:
            yield name, module


def lora_targets(model: nn.Module) -> list[str]:
    """Names of the layers that take adapters, each once (`q_proj`, ...)."""
    return sorted({name.rpartition(".")[2] for name, _ in lora_layers(model)})


def lora_parameters(model: nn.Module, r: int) -> int:
    """How many parameters adapters of rank `r` have."""
    return sum(r * (layer.in_features + layer.out_features) for _, layer in lora_layers(model))


def add_lora(
    model: nn.Module,
    r: int,
    alpha: int,
    dropout: float,
    bias: str = "none",
    train_projector: bool = True,
    init: bool | str = True,
    dora: bool = False,
) -> Any:
    """The model as a peft model with adapters of rank `r` on every target; the rest is frozen.

    The projector is trained whole, besides, unless told otherwise. `init` is peft's
    `init_lora_weights`, such as "gaussian"; `dora` trains the length of weights apart from their
    direction (arXiv 2402.09353).
    """
    if bias not in BIASES:
        raise UsageError(f"lora_bias '{bias}': expected one of {', '.join(BIASES)}")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingPackageError("LoRA needs peft; type `pip install peft`") from error
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,
        target_modules=lora_targets(model),
        task_type="CAUSAL_LM",
        init_lora_weights=init,
        use_dora=dora,
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if of_projector(name):
            parameter.requires_grad_(train_projector)
    return wrapped
