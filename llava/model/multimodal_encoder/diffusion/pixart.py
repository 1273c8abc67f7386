"""Towers on PixArt-alpha and PixArt-Sigma: DiT with T5's tokens to attend to."""

from typing import Any

import torch

from llava.model.multimodal_encoder.diffusion.tower import DiffusionTower
from llava.model.multimodal_encoder.diffusion.weights import read_text_encoder


class PixArtTower(DiffusionTower):
    """PixArt; `prompt_tokens` in the spec's options is what its pipeline pads a prompt to."""

    network_class = "PixArtTransformer2DModel"
    after = ("norm_out", "proj_out")
    compats = ("clean",)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """T5's tokens, and which of them are the prompt's."""
        count = int(self.spec.options["prompt_tokens"])
        return {
            "prompt_embeds": (count, self.network.config.caption_channels),
            "prompt_attention_mask": (count,),
        }

    def embed_prompt(self) -> dict[str, torch.Tensor]:
        """As the stock pipeline embeds a prompt."""
        from diffusers import PixArtSigmaPipeline
        from transformers import T5EncoderModel, T5Tokenizer

        limit = int(self.spec.options["prompt_tokens"])
        encoder, tokenizer = read_text_encoder(
            self.spec, (T5EncoderModel, T5Tokenizer), self.dtype, limit=limit
        )
        pipeline = PixArtSigmaPipeline(  # PixArtAlphaPipeline's differs in the default length alone
            tokenizer=tokenizer,
            text_encoder=encoder,
            vae=None,
            transformer=None,
            scheduler=None,
        )
        with torch.no_grad():
            embeds, mask, _, _ = pipeline.encode_prompt(
                self.spec.prompt,
                do_classifier_free_guidance=False,
                device="cpu",
                max_sequence_length=limit,
            )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass, of a square image of the tower's own size where a model is told sizes."""
        count = len(latents_BCHW)
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:
            side = latents_BCHW.new_full((count, 2), self.spec.size)
            sizes = {"resolution": side, "aspect_ratio": side[:, :1] / self.spec.size}
        return self.network(
            latents_BCHW,
            conditions["prompt_embeds"],
            self.timestep.expand(count),
            added_cond_kwargs=sizes,
            encoder_attention_mask=conditions["prompt_attention_mask"],
        )
