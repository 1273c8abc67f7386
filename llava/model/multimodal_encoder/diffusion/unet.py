"""Towers on a U-Net: Stable Diffusion 1.x, 2.x, XL and image variations, read after an up block."""

from typing import Any, ClassVar

import torch
from torch import nn

from llava.model.multimodal_encoder.diffusion.tower import DiffusionTower
from llava.model.multimodal_encoder.diffusion.weights import read_model, read_text_encoder


class UNetTower(DiffusionTower):
    """A U-Net; tokens are an up block's map after its upsampler, row by row."""

    network_class = "UNet2DConditionModel"
    part = "unet"
    blocks = ("up_blocks",)
    after = ("conv_norm_out", "conv_act", "conv_out")

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The prompt's 77 tokens."""
        return {"prompt_embeds": (77, self.network.config.cross_attention_dim)}

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass of the U-Net."""
        return self.network(latents_BCHW, self.timestep, conditions["prompt_embeds"])

    def tokens_of(self, tapped: torch.Tensor) -> torch.Tensor:
        """Tokens [B, h*w, C] of a map [B, C, h, w]."""
        return tapped.flatten(2).transpose(1, 2)


class StableDiffusionTower(UNetTower):
    """Stable Diffusion 1.x and 2.x."""

    def embed_prompt(self) -> dict[str, torch.Tensor]:
        """CLIP's last hidden state, as the stock pipeline computes it."""
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTextModel, CLIPTokenizer

        encoder, tokenizer = read_text_encoder(
            self.spec, (CLIPTextModel, CLIPTokenizer), self.dtype
        )
        pipeline = StableDiffusionPipeline(
            vae=None,
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=None,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        with torch.no_grad():
            return {"prompt_embeds": pipeline.encode_prompt(self.spec.prompt, "cpu", 1, False)[0]}


class StableDiffusionXLTower(UNetTower):
    """Stable Diffusion XL; sizes and the pooled prompt are conditions of compat clean only."""

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Both text encoders' 77 tokens side by side; the pooled prompt where it is used."""
        shapes = super().condition_shapes()
        if self.clean:
            config = self.network.config
            sizes = 6 * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - sizes
            shapes["pooled_prompt_embeds"] = (pooled,)
        return shapes

    def adapt_network(self) -> None:
        """compat reference: the embedding is that of the time step alone."""
        if not self.clean:
            self.network.register_to_config(addition_embed_type=None)
            self.network.add_embedding = None

    def embed_prompt(self) -> dict[str, torch.Tensor]:
        """The last hidden state but one of both text encoders, as the stock pipeline's."""
        from diffusers import StableDiffusionXLPipeline
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        classes = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
        (first, tokenizer), (second, tokenizer_2) = (
            read_text_encoder(self.spec, (encoder, CLIPTokenizer), self.dtype, number)
            for number, encoder in classes.items()
        )
        pipeline = StableDiffusionXLPipeline(
            vae=None,
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=None,
            scheduler=None,
            add_watermarker=False,
        )
        with torch.no_grad():
            embeds, _, pooled, _ = pipeline.encode_prompt(
                self.spec.prompt, device="cpu", do_classifier_free_guidance=False
            )
        found = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        return {name: found[name] for name in self.condition_shapes()}

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass; compat clean says an uncropped image of the tower's own size."""
        if not self.clean:
            return super().run(latents_BCHW, conditions)
        side = self.spec.size
        # original size, upper left corner of the crop, target size
        sizes = torch.tensor([side, side, 0, 0, side, side]).to(latents_BCHW)
        added = {
            "text_embeds": conditions["pooled_prompt_embeds"],
            "time_ids": sizes.expand(len(latents_BCHW), 6),
        }
        return self.network(
            latents_BCHW, self.timestep, conditions["prompt_embeds"], added_cond_kwargs=added
        )


class ImageVariationsTower(UNetTower):
    """Stable Diffusion image variations: the image's own CLIP embedding is the condition."""

    clip_mean: ClassVar = (0.48145466, 0.4578275, 0.40821073)
    clip_std: ClassVar = (0.26862954, 0.26130258, 0.27577711)
    """What the image encoder was trained with (OpenAI CLIP), used by compat clean."""

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """One token of the image."""
        return {"prompt_embeds": (1, self.network.config.cross_attention_dim)}

    def load_others(self) -> None:
        """The image encoder, which runs with every image."""
        from transformers import CLIPVisionModelWithProjection

        self.image_encoder = read_model(
            self.spec, "image_encoder", CLIPVisionModelWithProjection, self.dtype
        )

    def conditions_of(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """CLIP's projected embedding of each image, [B, 1, C]."""
        seen = self._clip_pixels(pixels_BCSS)
        return {"prompt_embeds": self.image_encoder(seen).image_embeds.unsqueeze(1)}

    def _clip_pixels(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """[B, 3, 224, 224] as `compat` says: shrunk only, or as CLIP's own processor would."""
        size = (self.image_encoder.config.image_size,) * 2
        if not self.clean:
            return nn.functional.interpolate(pixels_BCSS, size, mode="bilinear")
        shrunk = nn.functional.interpolate(
            pixels_BCSS.float(), size, mode="bicubic", antialias=True
        ).clamp(-1, 1)
        mean, std = (
            torch.tensor(v).to(shrunk)[:, None, None] for v in (self.clip_mean, self.clip_std)
        )
        return (((shrunk + 1) / 2 - mean) / std).to(pixels_BCSS.dtype)
