"""Towers on a diffusion transformer: DiT and Stable Diffusion 3, read after a block."""

from typing import Any

import torch
from torch import nn

from llava.errors import UsageError
from llava.model.multimodal_encoder.diffusion.tower import DiffusionTower
from llava.model.multimodal_encoder.diffusion.weights import read_text_encoder

T5_TOKENS = {"reference": 77, "clean": 256}
"""Zeros in place of T5's tokens: the published code's number, and the stock pipeline's."""


class DiTTower(DiffusionTower):
    """DiT, which is conditioned on a time step and a class."""

    network_class = "DiTTransformer2DModel"
    after = ("norm_out", "proj_out_1", "proj_out_2")

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}

    def adapt_network(self) -> None:
        """compat reference: the condition is the time step's embedding alone."""
        if not self.clean:
            for block in self.network.transformer_blocks[: self.spec.block]:
                block.norm1.emb.class_embedder = _Nothing()

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass, of the null class."""
        count = len(latents_BCHW)
        null = self.network.config.num_embeds_ada_norm
        classes = torch.full((count,), null, device=latents_BCHW.device)
        return self.network(latents_BCHW, self.timestep.expand(count), classes)


class _Nothing(nn.Module):
    """Stands where an embedding is left out."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=labels.device, dtype=torch.long)


class StableDiffusion3Tower(DiffusionTower):
    """Stable Diffusion 3 and 3.5 without T5, whose tokens are zeros."""

    network_class = "SD3Transformer2DModel"
    after = ("norm_out", "proj_out")
    item = 1  # a block gives (text, image)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The two CLIPs' tokens, then T5's; the two pooled prompts."""
        config = self.network.config
        return {
            "prompt_embeds": (77 + T5_TOKENS[self.spec.compat], config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }

    def check_network(self) -> None:
        """The position table has a largest grid."""
        config = self.network.config
        largest = config.pos_embed_max_size * self.spec.patch // self.spec.fold
        if self.spec.size > largest:
            raise UsageError(
                f"size: {self.spec.id} takes {largest} px at most, got {self.spec.size}; say "
                f"{self.spec.id}@{largest} or less"
            )

    def embed_prompt(self) -> dict[str, torch.Tensor]:
        """As the stock pipeline embeds a prompt where its T5 was left out."""
        from diffusers import StableDiffusion3Pipeline
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        classes = (CLIPTextModelWithProjection, CLIPTokenizer)
        (first, tokenizer), (second, tokenizer_2) = (
            read_text_encoder(self.spec, classes, self.dtype, number) for number in ("", "_2")
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=self.network,  # for the width of T5's tokens
            scheduler=None,
            vae=None,
            text_encoder=first,
            tokenizer=tokenizer,
            text_encoder_2=second,
            tokenizer_2=tokenizer_2,
            text_encoder_3=None,
            tokenizer_3=None,
        )
        with torch.no_grad():
            embeds, _, pooled, _ = pipeline.encode_prompt(
                self.spec.prompt,
                None,
                None,
                device="cpu",
                do_classifier_free_guidance=False,
                max_sequence_length=T5_TOKENS[self.spec.compat],
            )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass."""
        return self.network(
            latents_BCHW,
            conditions["prompt_embeds"],
            conditions["pooled_prompt_embeds"],
            self.timestep.expand(len(latents_BCHW)),
        )
