"""Where a diffusion tower's randomness comes from, and how much of it reaches a latent.

Features have to be a function of image and spec: the noise of an image is drawn from a generator
seeded by the spec's seed and the image's own pixels, in float32 on the CPU, whatever the batch, the
device or the dtype.
"""

import hashlib
from collections.abc import Sequence

import torch

from llava.model.multimodal_encoder.spec import LAST_STEP, TowerSpec


def pixel_digests(pixels_BCSS: torch.Tensor) -> list[bytes]:
    """A hash of each image's pixels in [-1, 1], as the 256 levels that they come from.

    A rounding to bfloat16 moves no level by half a step, so the hash outlives a cast.
    """
    levels = ((pixels_BCSS.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return [hashlib.sha256(image.numpy().tobytes()).digest() for image in levels]


def draws(
    digests: Sequence[bytes], seed: int, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(for the VAE's posterior, for the time step), each float32 [B, *shape] on the CPU."""
    pairs = []
    for digest in digests:
        mixed = hashlib.sha256(seed.to_bytes(8, "big") + digest).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
        pairs.append(
            [
                torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
                for _ in range(2)
            ]
        )
    eps_vae, noise = zip(*pairs, strict=True)
    return torch.stack(eps_vae), torch.stack(noise)


class Mixing:
    """Noise into latents, at the spec's time step."""

    def __init__(self, spec: TowerSpec, scheduler: object | None = None):
        """`scheduler` is diffusers' DDIM with the model's betas; flow matching needs none."""
        self.t, self.process, self.compat = spec.t, spec.process, spec.compat
        self.scheduler = scheduler
        steps = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
        if steps is not None and spec.t >= steps:
            raise ValueError(f"t: {spec.id} was trained with {steps} time steps, got {spec.t}")
        self.coefficients = self._coefficients()
        """What latents and noise are multiplied with, as the model was trained."""

    def __call__(self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        """Noisy latents in the latents' dtype."""
        if self.compat == "clean":
            return self._clean(latents_BCHW, noise_BCHW)
        if self.process == "flow":  # the published code's formula; t is 0 or 1 (TowerSpec)
            return self.t * latents_BCHW + (1 - self.t) * noise_BCHW
        # rounds the signal's share to the latents' dtype first: none of t 1's noise in bfloat16
        step = torch.tensor([self.t], device=latents_BCHW.device)
        return self.scheduler.add_noise(latents_BCHW, noise_BCHW, step)

    def _clean(self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        signal, share = self.coefficients
        mixed = signal * latents_BCHW.float() + share * noise_BCHW.float()
        return mixed.to(latents_BCHW.dtype)

    def _coefficients(self) -> tuple[float, float]:
        if self.process == "flow":
            sigma = self.t / LAST_STEP["flow"]
            return 1 - sigma, sigma
        kept = float(self.scheduler.alphas_cumprod[self.t].double())
        return kept**0.5, (1 - kept) ** 0.5
