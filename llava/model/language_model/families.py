"""LLaVA over any causal language model of transformers: one class per `model_type`.

`llava_<model_type>` is the model type of what results; transformers' own `llava` stays as it is.
"""

import functools
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llava.errors import UsageError, unknown_name
from llava.model.llava_arch import LlavaCausalLM

PREFIX = "llava_"
COMMON = ("llama", "qwen2", "qwen3", "mistral")
"""Registered when this is imported; others when asked for."""
NOT_SAVED = ("_flash_attn_2_enabled",)
"""What published configs hold and no config should."""

CLASS_NAMES = {"llama": ("LlavaConfig", "LlavaLlamaForCausalLM")}
"""Names that LLaVA's users import; others are made of the language model's own."""


class LlavaConfigMixin:
    """A language model's config with whatever LLaVA's fields are set."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what is only of the process that wrote an old one."""
        return {key: value for key, value in super().to_dict().items() if key not in NOT_SAVED}


def llava_class(model_type: str) -> type:
    """The LLaVA class over language models of `model_type` (`llama`, `qwen2`, ...).

    Its config class is its `config_class`; both are registered with transformers' Auto classes.
    Raises UsageError for a model type without a causal language model.
    """
    return _made(model_type.removeprefix(PREFIX))


@functools.cache
def _made(model_type: str) -> type:
    if model_type not in CONFIG_MAPPING:
        raise UsageError(unknown_name("model_type of a language model", model_type, COMMON))
    base_config = CONFIG_MAPPING[model_type]
    if base_config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"model_type {model_type} is no causal language model")
    base = MODEL_FOR_CAUSAL_LM_MAPPING[base_config]
    stem = base.__name__.removesuffix("ForCausalLM")
    config_name, name = CLASS_NAMES.get(
        model_type, (f"Llava{stem}Config", f"Llava{stem}ForCausalLM")
    )
    config: type[PretrainedConfig] = type(
        config_name,
        (LlavaConfigMixin, base_config),
        {"model_type": PREFIX + model_type, "__module__": __name__, "__doc__": base_config.__doc__},
    )
    made = type(
        name,
        (LlavaCausalLM, base),
        {"config_class": config, "__module__": __name__, "__doc__": LlavaCausalLM.__doc__},
    )
    AutoConfig.register(PREFIX + model_type, config)
    AutoModelForCausalLM.register(config, made)
    globals()[config_name], globals()[name] = config, made  # where pickle looks for them
    return made


for _model_type in COMMON:
    llava_class(_model_type)
