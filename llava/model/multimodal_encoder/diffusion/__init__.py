"""Diffusion models as vision towers: one noisy latent, one pass, read after a block."""
