"""Towers on Flux.1: text and image in two streams of blocks, then in one."""

from typing import Any

import torch

from llava.model.multimodal_encoder.diffusion.tower import DiffusionTower
from llava.model.multimodal_encoder.diffusion.weights import read_text_encoder
from llava.model.multimodal_encoder.spec import LAST_STEP

TEXT_TOKENS = 512
"""What the stock pipeline pads a prompt to."""


class FluxTower(DiffusionTower):
    """Flux.1; `guidance` in the spec's options is what a distilled model is told."""

    network_class = "FluxTransformer2DModel"
    blocks = ("transformer_blocks", "single_transformer_blocks")
    after = ("norm_out", "proj_out")
    item = 1  # a block gives (text, image)
    compats = ("clean",)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """T5's tokens and CLIP's pooled prompt."""
        config = self.network.config
        return {
            "prompt_embeds": (TEXT_TOKENS, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }

    def embed_prompt(self) -> dict[str, torch.Tensor]:
        """As the stock pipeline embeds a prompt."""
        from diffusers import FluxPipeline
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

        clip, tokenizer = read_text_encoder(
            self.spec, (CLIPTextModel, CLIPTokenizer), self.dtype, limit=TEXT_TOKENS
        )
        t5, tokenizer_2 = read_text_encoder(
            self.spec, (T5EncoderModel, T5TokenizerFast), self.dtype, "_2", limit=TEXT_TOKENS
        )
        pipeline = FluxPipeline(
            scheduler=None,
            vae=None,
            text_encoder=clip,
            tokenizer=tokenizer,
            text_encoder_2=t5,
            tokenizer_2=tokenizer_2,
            transformer=None,
        )
        with torch.no_grad():
            embeds, pooled, _ = pipeline.encode_prompt(
                self.spec.prompt, device="cpu", max_sequence_length=TEXT_TOKENS
            )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass; a token is 2 x 2 latents, placed by its row and column."""
        from diffusers import FluxPipeline

        batch, channels, height, width = latents_BCHW.shape
        place = latents_BCHW.device, latents_BCHW.dtype
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = latents_BCHW.new_full((batch,), float(self.spec.options["guidance"]))
        return self.network(
            FluxPipeline._pack_latents(latents_BCHW, batch, channels, height, width),
            conditions["prompt_embeds"],
            conditions["pooled_prompt_embeds"],
            self.timestep.to(latents_BCHW.dtype).expand(batch) / LAST_STEP["flow"],
            FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, *place),
            torch.zeros(TEXT_TOKENS, 3, device=place[0], dtype=place[1]),
            guidance,
        )
