"""Random models in the shape of released ones: transformers' LLaVA and the project's."""

import copy

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava.model.language_model import llava_class
from llava.model.lazy_tower import LazyTower
from llava.model.multimodal_encoder.registry import resolve
from llava.model.multimodal_encoder.vit import ClipTower

TOWER = "openai/clip-vit-large-patch14"
VOCABULARY = 49152
IMAGE_TOKENS, TOWER_DIM = 256, 1024
IMAGE_ID = VOCABULARY - 1
"""Stands for an image's tokens in the plain model, which wants an id of the vocabulary."""


def smollm2(layers: int = 30) -> LlamaConfig:
    """SmolLM2-135M, from its config.json; fewer layers for a quick look."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def clip_large() -> CLIPVisionConfig:
    """openai/clip-vit-large-patch14's vision part, from its config.json."""
    return CLIPVisionConfig(
        hidden_size=TOWER_DIM,
        intermediate_size=4096,
        projection_dim=768,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )


def plain_llava(layers: int) -> LlavaForConditionalGeneration:
    """transformers' LLaVA of both, with a two-layer projector, in float32."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=clip_large(),
        text_config=smollm2(layers),
        image_token_index=IMAGE_ID,
        image_seq_length=256,
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    return LlavaForConditionalGeneration(config).train()


class GivenClip(ClipTower):
    """CLIP-L/14 with the weights of a model in memory, cut as the project's tower is."""

    def __init__(self, model: CLIPVisionModel):
        self._given = [model]  # a list, for modules cannot be set before nn.Module is there
        super().__init__(resolve(TOWER).parts[0])

    def _read(self) -> CLIPVisionModel:
        return copy.deepcopy(self._given.pop())


def our_llava(shape: LlamaConfig, attention: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The project's LLaVA of a language model's shape with a two-layer projector, no tower yet."""
    made = llava_class("llama")
    fields = {key: value for key, value in shape.to_dict().items() if key != "model_type"}
    config = made.config_class(**fields, mm_hidden_size=TOWER_DIM, mm_projector_type="mlp2x_gelu")
    return made._from_config(config, attn_implementation=attention, dtype=dtype).train()


def llama_7b() -> LlamaConfig:
    """LLaMA-7B, on which Vicuna and LLaVA rest, from its config.json."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )


def take_weights(ours: nn.Module, plain: LlavaForConditionalGeneration) -> None:
    """Gives our model the plain one's weights, and a tower of its own with them."""
    ours.get_model().load_state_dict(
        plain.model.language_model.state_dict()
        | {
            f"mm_projector.{place}.{kind}": getattr(linear, kind)
            for place, linear in (
                (0, plain.model.multi_modal_projector.linear_1),
                (2, plain.model.multi_modal_projector.linear_2),
            )
            for kind in ("weight", "bias")
        }
    )
    tower = LazyTower(resolve(TOWER))
    tower._tower = GivenClip(plain.model.vision_tower)  # in place of weights from a file
    ours.set_vision_tower(tower)
