"""DiffusionTower: an image's latent, some noise, one pass through the network up to a block.

Letters in shapes: B images, N tokens, C channels, h x w latents, k draws of the ensemble.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.cost import Cost
from llava.model.multimodal_encoder.diffusion.noise import Mixing, draws, pixel_digests
from llava.model.multimodal_encoder.diffusion.weights import (
    choose_attention,
    configs_only,
    quiet,
    read_model,
    read_scheduler,
    without_weights,
)
from llava.model.multimodal_encoder.known import check_packages
from llava.model.multimodal_encoder.spec import COMPATS, TowerSpec
from llava.model.multimodal_encoder.tap import tap

AT_ONCE = 16
"""Images in one pass of the network, which bounds the memory that it takes."""


class DiffusionTower(VisionTower):
    """The network of a diffusion model with its VAE's encoder; text encoders run once and go.

    A subclass says which network it is, how it is called and what its conditions are. `compat`
    chooses between the computation of the paper's published code and the models' own
    (docs/diffusion.md lists where they differ).
    """

    network_class: ClassVar[str]
    """Of diffusers."""
    part: ClassVar[str] = "transformer"
    """Folder of the network."""
    blocks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """Lists of blocks in the network, in the order in which they run."""
    after: ClassVar[tuple[str, ...]] = ()
    """Modules of the network that only what follows the tap needs."""
    compats: ClassVar[tuple[str, ...]] = COMPATS
    """Behaviours that there are: `reference` of what the published code knows only."""
    item: ClassVar[int] = 0
    """Which one is the image's, where a block gives a tuple."""

    loads_in_dtype = True

    def load(self) -> None:
        """Reads network, text encoders and VAE in turn; keeps what a forward pass runs."""
        check_packages(self.spec)
        if self.spec.compat not in self.compats:
            raise UsageError(
                f"compat: the published code has no {self.spec.family} tower to be like; take "
                f"compat {' or '.join(self.compats)} for {self.spec.id}"
            )
        import diffusers

        self.clean = self.spec.compat == "clean"
        self.network = read_model(
            self.spec, self.part, getattr(diffusers, self.network_class), self.dtype
        )
        self.mixing = self._mixing()
        self.check_network()
        self._keep_blocks()
        self.adapt_network()
        for name, value in self._conditions().items():
            self.register_buffer(name, value.to(self.dtype), persistent=False)
        self.load_others()
        self.vae = read_model(self.spec, "vae", diffusers.AutoencoderKL, torch.float32)
        self._settle_vae()
        self.vae.decoder = self.vae.post_quant_conv = None
        self.vae.enable_slicing()  # the memory of one image, and its latent in any batch
        choose_attention(self.network, self.vae)

    @abstractmethod
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, without the batch, of what `embed_prompt` gives."""

    def embed_prompt(self) -> dict[str, torch.Tensor]:
        """The prompt's embeddings [1, ...] by the names of `condition_shapes`."""
        return {}

    @abstractmethod
    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> Any:
        """One pass of the network over noisy latents; the tap ends it."""

    def check_network(self) -> None:
        """Raises UsageError for a size that the network has no positions for."""

    def adapt_network(self) -> None:
        """Takes conditions out of the network that `compat` leaves out."""

    def load_others(self) -> None:
        """Reads what else a forward pass needs."""

    def conditions_of(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Conditions [1 or B, ...] by name: the prompt's, unless they come from the image."""
        return {name: getattr(self, name) for name in self.condition_shapes()}

    def tokens_of(self, tapped: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C] of the block's output [B, n, c], `fold` x `fold` of them joined."""
        return fold(tapped, self.spec.fold or 1)

    def encode(self, pixels_BCSS: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C], the mean over the ensemble's draws.

        What is `given` replaces what the spec says: `vae_eps`, `noise` (latents' shape) and the
        names of `condition_shapes`, each with 1, B or B * k rows, an image's k rows together.
        """
        known = ("vae_eps", "noise", *self.condition_shapes())
        if unknown := sorted(set(given) - set(known)):
            raise TypeError(f"{unknown[0]}: {self.spec.id} takes {', '.join(known)}")
        mean, std = self.latent_moments(pixels_BCSS)
        digests = pixel_digests(pixels_BCSS) if {"vae_eps", "noise"} - set(given) else None
        conditions = self.conditions_of(pixels_BCSS) if set(known[2:]) - set(given) else {}
        k = self.spec.ensemble_size
        total = torch.zeros((), dtype=torch.float32, device=mean.device)
        for draw in range(k):
            rows = {name: _rows(name, value, len(mean), k, draw) for name, value in given.items()}
            drawn = self._draw(digests, draw, mean, rows)
            latents = self.mixing(self.scaled(mean + std * drawn["vae_eps"]), drawn["noise"])
            named = {**conditions, **{name: rows[name] for name in rows if name in known[2:]}}
            total = total + self.features(latents, named).float()
        return (total / k).to(self.dtype)

    def latent_moments(self, pixels_BCSS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [B, C, h, w] of the VAE's posterior."""
        self._settle_vae()
        posterior = self.vae.encode(pixels_BCSS.to(self.vae.dtype)).latent_dist
        mean, std = posterior.mean.to(self.dtype), posterior.std.to(self.dtype)
        return mean, torch.zeros_like(std) if self.spec.vae_sample == "mode" else std

    def scaled(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents of about unit variance; the shift is left out by compat reference."""
        config = self.vae.config
        if self.clean and config.get("shift_factor") is not None:
            latents_BCHW = latents_BCHW - config.shift_factor
        return latents_BCHW * config.scaling_factor

    def features(
        self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Tokens [B, N, C] of noisy latents; the prompt's conditions where none are given."""
        if conditions is None:
            conditions = {name: getattr(self, name) for name in self.condition_shapes()}
        count = len(latents_BCHW)
        full = {
            name: value.to(latents_BCHW).expand(count, *value.shape[1:])
            for name, value in conditions.items()
        }
        passes = []
        for start in range(0, count, AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            own = {name: value[rows] for name, value in full.items()}
            passes.append(self._pass(latents_BCHW[rows], own))
        return torch.cat(passes)

    def _pass(
        self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Tokens [B, N, C] of one pass."""
        tapped = tap(self._tapped, lambda: self.run(latents_BCHW, conditions), self.item)
        return self.tokens_of(tapped)

    @property
    def timestep(self) -> torch.Tensor:
        """The time step [1], which also is what the network embeds."""
        return torch.tensor([self.spec.t], device=self.device)

    def _draw(
        self,
        digests: list[bytes] | None,
        draw: int,
        like: torch.Tensor,
        rows: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Noise of one draw, in the latents' dtype and place."""
        found = {name: rows[name] for name in ("vae_eps", "noise") if name in rows}
        if digests is not None:
            eps, noise = draws(digests, self.spec.seed + draw, like.shape[1:])
            found = {"vae_eps": eps, "noise": noise, **found}
        for name, value in found.items():
            if value.shape[1:] != like.shape[1:]:
                raise ValueError(
                    f"{name}: {tuple(value.shape)}, expected {tuple(like.shape)} or {len(like)} "
                    "times the ensemble"
                )
        return {name: value.to(like) for name, value in found.items()}

    def _conditions(self) -> dict[str, torch.Tensor]:
        shapes = self.condition_shapes()
        if without_weights():
            return {name: torch.zeros(1, *shape) for name, shape in shapes.items()}
        with quiet():
            found = self.embed_prompt()
        for name, value in found.items():
            if tuple(value.shape[1:]) != shapes[name]:
                raise LawError(
                    f"{self.source}: {name} is {tuple(value.shape[1:])}, the {self.part} takes "
                    f"{shapes[name]}; its text encoders are of another model"
                )
        return found

    def _mixing(self) -> Mixing:
        scheduler = None
        if self.spec.process == "ddpm":
            from diffusers import DDIMScheduler

            scheduler = read_scheduler(self.spec, DDIMScheduler)
        try:
            return Mixing(self.spec, scheduler)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _keep_blocks(self) -> None:
        """Drops the blocks after the one that is read.

        Their places stay, since a network counts its blocks to know the sizes in between.
        """
        places = [(blocks, i) for blocks in self._block_lists() for i in range(len(blocks))]
        if len(places) != self.spec.depth:
            raise LawError(f"{self.source} has {len(places)} blocks, expected {self.spec.depth}")
        for blocks, i in places[self.spec.block :]:
            blocks[i] = nn.Identity()
        for name in self.after:
            if getattr(self.network, name, None) is not None:
                setattr(self.network, name, nn.Identity())

    @property
    def _tapped(self) -> nn.Module:
        """The block that is read."""
        return [block for blocks in self._block_lists() for block in blocks][self.spec.block - 1]

    def _block_lists(self) -> list[nn.ModuleList]:
        return [self.network.get_submodule(name) for name in self.blocks]

    def _settle_vae(self) -> None:
        """Casts the VAE to the tower's dtype; in float16 those that `force_upcast` overflow."""
        wide = self.dtype == torch.float16 and self.vae.config.get("force_upcast")
        dtype = torch.float32 if wide else self.dtype
        if self.vae.dtype != dtype:
            with quiet():
                self.vae.to(dtype)

    @classmethod
    def cost(cls, spec: TowerSpec) -> Cost:
        """Parameters that are kept and FLOPs of an image, counted on the meta device."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"), configs_only():
            tower = cls(spec)
            pixels = torch.empty(1, 3, spec.size, spec.size)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                tower(pixels, **tower.meta_noise(pixels))
        return Cost(sum(p.numel() for p in tower.parameters()), counter.get_total_flops())

    def meta_noise(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Zeros in place of the noise of pixels that have no values."""
        halved = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = pixels_BCSS.shape[-1] // halved
        zeros = torch.zeros(
            len(pixels_BCSS) * self.spec.ensemble_size,
            self.vae.config.latent_channels,
            side,
            side,
            device=pixels_BCSS.device,
        )
        return {"vae_eps": zeros, "noise": zeros}


def _rows(name: str, value: torch.Tensor, images: int, k: int, draw: int) -> torch.Tensor:
    """The rows of one draw out of 1, B or B * k given ones."""
    if len(value) == images * k:
        return value[draw::k]
    if len(value) in (1, images):
        return value
    raise ValueError(
        f"{name}: {len(value)} rows for {images} images; expected 1, {images} or {images * k}"
    )


def fold(tokens_BNC: torch.Tensor, side: int) -> torch.Tensor:
    """`side` x `side` neighbours of a square grid as one token [B, N / side^2, C * side^2].

    Channels go by column within the square first, then by row, then as before: the published
    code's order, which released projectors were trained with.
    """
    batch, count, dim = tokens_BNC.shape
    grid = int(count**0.5) // side
    squares = tokens_BNC.reshape(batch, grid, side, grid, side, dim)
    return squares.permute(0, 1, 3, 4, 2, 5).reshape(batch, grid * grid, side * side * dim)
