"""Diffusion towers beside the stock pipelines: seconds and memory of text, VAE and network.

    python benchmarks/diffusion.py                  # SD 1.5 and DiT-XL/2 at 512 px: 8 GB, minutes
    python benchmarks/diffusion.py --models all --device cuda --dtype bfloat16 --batch 8

`plain` keeps a whole pipeline in memory. Each time it embeds the prompt by the text encoders (or
the image by the image encoder), encodes the image by a VAE that has its decoder, too, and runs the
whole network while a hook keeps the wanted block's output. T5 is left out, as the published code
does. `tower` is the project's. Both have the same random weights, of the published models' shapes
(`diffusion_configs`), prompt embeddings and noise, so their tokens must agree. Each has a process
of its own; they take turns, and seconds are medians. `store` reads an image's tokens from a feature
store whose files are in the page cache, and moves them to the device.

Memory is that of the weights, and for each part the most that it takes above what was there before
it: on a CUDA device as torch counts it, else the process's resident memory, as Linux counts it.
"""

import argparse
import ctypes
import dataclasses
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from torch import nn

from llava.features import DTYPES, FeatureStore
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.diffusion.weights import configs_only
from llava.model.multimodal_encoder.registry import resolve
from llava.model.multimodal_encoder.spec import TowerSpec

CONFIGS = Path(__file__).parent / "diffusion_configs"
MODELS = ("sd1.5", "sd2.1", "sdim", "sdxl", "dit", "sd3")
PARTS = ("text", "VAE", "network")
EMPTY_PROMPT = [[49406, *[49407] * 76]]
"""CLIP's ids of '': begin, end, and padding by the end as Stable Diffusion 1.5 has it."""


@dataclass
class Settings:
    """Where and how both ways run."""

    device: str
    dtype: str
    batch: int
    threads: int


@dataclass
class Pass:
    """What one pass over the batch took by part, and gave."""

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens_BNC: torch.Tensor | None = None


class Plain:
    """A stock pipeline without anything left out or dropped."""

    network_class: Any = diffusers.UNet2DConditionModel
    part, blocks = "unet", "up_blocks"
    encoders: ClassVar[dict[str, Any]] = {}
    """Folder -> class of transformers."""

    def __init__(self, spec: TowerSpec, dtype: torch.dtype):
        self.spec, self.folder, self.dtype = spec, Path(spec.weights), dtype
        self.vae = self.read("vae", diffusers.AutoencoderKL)
        self.network = self.read(self.part, self.network_class)
        self.encoder = {name: self.read(name, kind) for name, kind in self.encoders.items()}
        self.models = self.held = [self.vae, self.network, *self.encoder.values()]
        self.prepare()

    def read(self, part: str, model_class: Any) -> nn.Module:
        """A part with random weights, from its config."""
        config = json.loads((self.folder / part / "config.json").read_text())
        if hasattr(model_class, "from_config"):
            model = model_class.from_config(config)
        else:
            model = model_class(model_class.config_class.from_dict(config))
        return model.to(self.dtype).requires_grad_(False).eval()

    def prepare(self) -> None:
        """Hooks that leave out what the published code leaves out."""

    def take(self, conditions: dict[str, torch.Tensor]) -> None:
        """Nothing: it has its own."""

    def conditions(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of the empty prompt, or the image."""
        return {}

    def latents(
        self, pixels_BCSS: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents."""
        posterior = self.vae.encode(pixels_BCSS).latent_dist
        latents = (posterior.mean + posterior.std * eps) * self.vae.config.scaling_factor
        return self.scheduler.add_noise(latents, noise, self.step)

    def tokens(
        self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The block's output, after a pass of the whole network."""
        block, kept = getattr(self.network, self.blocks)[self.spec.up_ft_index], []
        hook = block.register_forward_hook(lambda _block, _given, made: kept.append(made))
        repeated = {
            name: value.expand(len(latents_BCHW), *value.shape[1:])
            for name, value in conditions.items()
        }
        self.run(latents_BCHW, repeated)
        hook.remove()
        return self.shaped(*kept)

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> None:
        """A pass of the whole network."""
        self.network(latents_BCHW, self.step, conditions["prompt_embeds"])

    def shaped(self, made: Any) -> torch.Tensor:
        """Tokens [B, N, C]."""
        return made.flatten(2).transpose(1, 2)

    @cached_property
    def scheduler(self) -> diffusers.DDIMScheduler:
        """The model's own schedule."""
        config = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_text())
        return diffusers.DDIMScheduler.from_config(config)

    @property
    def step(self) -> torch.Tensor:
        """The time step."""
        return torch.tensor([self.spec.t], device=self.network.device)


class PlainStableDiffusion(Plain):
    """Stable Diffusion 1.5 and 2.1."""

    encoders: ClassVar = {"text_encoder": transformers.CLIPTextModel}

    def conditions(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """The last hidden state."""
        ids = torch.tensor(EMPTY_PROMPT, device=pixels_BCSS.device)
        return {"prompt_embeds": self.encoder["text_encoder"](ids).last_hidden_state}


class PlainImageVariations(Plain):
    """Stable Diffusion image variations."""

    encoders: ClassVar = {"image_encoder": transformers.CLIPVisionModelWithProjection}

    def conditions(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """The image's embedding."""
        small = nn.functional.interpolate(pixels_BCSS, (224, 224), mode="bilinear")
        return {"prompt_embeds": self.encoder["image_encoder"](small).image_embeds[:, None]}


def two_prompts(encoders: dict[str, nn.Module], device: torch.device) -> list[tuple]:
    """(last hidden state but one, pooled) of each text encoder."""
    ids = torch.tensor(EMPTY_PROMPT, device=device)
    made = [encoder(ids, output_hidden_states=True) for encoder in encoders.values()]
    return [(each.hidden_states[-2], each[0]) for each in made]


class PlainStableDiffusionXL(Plain):
    """Stable Diffusion XL."""

    encoders: ClassVar = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }

    def prepare(self) -> None:
        """The published code adds no sizes and no pooled prompt."""
        self.network.add_embedding.register_forward_hook(lambda _module, _given, made: made * 0)

    def conditions(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both hidden states side by side."""
        (first, _), (second, pooled) = two_prompts(self.encoder, pixels_BCSS.device)
        return {"prompt_embeds": torch.cat([first, second], -1), "pooled": pooled}

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> None:
        """With sizes and a pooled prompt, which the hook takes out."""
        pooled = conditions["pooled"]
        added = {"text_embeds": pooled, "time_ids": pooled.new_zeros(len(latents_BCHW), 6)}
        self.network(latents_BCHW, self.step, conditions["prompt_embeds"], added_cond_kwargs=added)


class PlainDiT(Plain):
    """DiT-XL/2."""

    network_class = diffusers.DiTTransformer2DModel
    part, blocks = "transformer", "transformer_blocks"

    def prepare(self) -> None:
        """The published code embeds no class."""
        for block in self.network.transformer_blocks:
            table = block.norm1.emb.class_embedder
            table.register_forward_hook(lambda _module, _given, made: made * 0)

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> None:
        """With a class, which the hooks take out."""
        classes = torch.zeros(len(latents_BCHW), dtype=torch.long, device=latents_BCHW.device)
        self.network(latents_BCHW, self.step.expand(len(latents_BCHW)), classes)

    def shaped(self, made: Any) -> torch.Tensor:
        """Four neighbours as one token: rows first, then columns."""
        side = round(made.shape[1] ** 0.5)
        grid = made.unflatten(1, (side, side))
        four = [grid[:, y::2, x::2] for x in (0, 1) for y in (0, 1)]
        return torch.cat(four, -1).flatten(1, 2)


class PlainStableDiffusion3(PlainDiT):
    """Stable Diffusion 3 medium."""

    network_class = diffusers.SD3Transformer2DModel
    encoders: ClassVar = {
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }

    def prepare(self) -> None:
        """Nothing is left out but T5."""

    def conditions(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both hidden states side by side, then 77 zeros in T5's place."""
        (first, one), (second, two) = two_prompts(self.encoder, pixels_BCSS.device)
        clips = torch.cat([first, second], -1)
        width = self.network.config.joint_attention_dim
        wide = nn.functional.pad(clips, (0, width - clips.shape[-1], 0, 77))
        return {"prompt_embeds": wide, "pooled_prompt_embeds": torch.cat([one, two], -1)}

    def latents(
        self, pixels_BCSS: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """The published code's step 1: clean latents, not shifted."""
        posterior = self.vae.encode(pixels_BCSS).latent_dist
        return (posterior.mean + posterior.std * eps) * self.vae.config.scaling_factor

    def run(self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]) -> None:
        """A pass of the whole network."""
        self.network(
            latents_BCHW,
            conditions["prompt_embeds"],
            conditions["pooled_prompt_embeds"],
            self.step.expand(len(latents_BCHW)),
        )

    def shaped(self, made: Any) -> torch.Tensor:
        """Of (text, image) the image."""
        return super().shaped(made[1])


PLAIN = {
    "sd1.5": PlainStableDiffusion,
    "sd2.1": PlainStableDiffusion,
    "sdim": PlainImageVariations,
    "sdxl": PlainStableDiffusionXL,
    "dit": PlainDiT,
    "sd3": PlainStableDiffusion3,
}


class Ours:
    """The project's tower, in the same three parts."""

    def __init__(self, spec: TowerSpec, dtype: torch.dtype):
        with configs_only():
            self.tower = build_tower(spec, dtype=dtype, device=torch.get_default_device())
        self.models = [self.tower.vae, self.tower.network]
        self.models += [m for name, m in self.tower.named_children() if name == "image_encoder"]
        self.held = [self.tower]  # and the prompt's embeddings

    def take(self, conditions: dict[str, torch.Tensor]) -> None:
        """The plain way's prompt embeddings, which a tower keeps from when it was made."""
        for name, value in self.tower.named_buffers(recurse=False):
            if name in conditions:
                value.copy_(conditions[name])

    def conditions(self, pixels_BCSS: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is kept, or the image's."""
        return self.tower.conditions_of(pixels_BCSS)

    def latents(
        self, pixels_BCSS: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents."""
        mean, std = self.tower.latent_moments(pixels_BCSS)
        return self.tower.mixing(self.tower.scaled(mean + std * eps), noise)

    def tokens(
        self, latents_BCHW: torch.Tensor, conditions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """A pass up to the block."""
        return self.tower.features(latents_BCHW, conditions)


def fill(model: nn.Module) -> None:
    """Random weights that a parameter's name alone decides, so that two processes have the same."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, float(name.endswith("weight")))
            continue
        generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
        limit = (3 * len(parameter) / parameter.numel()) ** 0.5  # keeps the variance
        parameter.data.uniform_(-limit, limit, generator=generator)


def weight_bytes(models: list[nn.Module]) -> int:
    """Of parameters and buffers."""
    return sum(t.nbytes for m in models for t in (*m.parameters(), *m.buffers()))


@torch.no_grad()
def serve(pipe: Connection, way_class: type, spec: TowerSpec, settings: Settings) -> None:
    """Makes one way in a process of its own, then a pass whenever conditions come in."""
    torch.set_num_threads(settings.threads)
    torch.set_default_device(settings.device)
    diffusers.utils.logging.set_verbosity_error()
    dtype = DTYPES[settings.dtype]
    way = way_class(spec, dtype)
    for model in way.models:
        fill(model)
    drawn = torch.Generator(settings.device).manual_seed(0)
    pixels_BCSS = torch.empty(settings.batch, 3, spec.size, spec.size)
    pixels_BCSS.uniform_(-1, 1, generator=drawn)
    vae = json.loads((Path(spec.weights) / "vae" / "config.json").read_text())
    side = spec.size // 2 ** (len(vae["block_out_channels"]) - 1)
    shape = (2, settings.batch, vae["latent_channels"], side, side)
    eps, noise = torch.randn(shape, generator=drawn).to(dtype)
    pixels_BCSS = pixels_BCSS.to(dtype)
    if settings.device == "cpu":  # or what was freed since hides what a part takes
        ctypes.CDLL(None).malloc_trim(0)
    pipe.send(weight_bytes(way.held))
    while (given := pipe.recv()) is not None:
        way.take(given)
        pipe.send(one_pass(way, pixels_BCSS, eps, noise))


def one_pass(
    way: Plain | Ours, pixels_BCSS: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor
) -> Pass:
    """Text, VAE and network, one after the other."""
    found = Pass()
    conditions = measured(found, "text", lambda: way.conditions(pixels_BCSS))
    latents = measured(found, "VAE", lambda: way.latents(pixels_BCSS, eps, noise))
    tokens = measured(found, "network", lambda: way.tokens(latents, conditions))
    found.tokens_BNC = tokens.float().cpu()
    found.conditions = {name: value.cpu() for name, value in conditions.items()}
    return found


def measured(found: Pass, part: str, run: Callable[[], Any]) -> Any:
    """What `run` gives; notes its seconds and the memory that it took for a time."""
    before = peak_since_reset(reset=True)
    start = time.perf_counter()
    made = run()
    synchronize()
    found.seconds[part] = time.perf_counter() - start
    found.bytes[part] = peak_since_reset() - before
    return made


def peak_since_reset(reset: bool = False) -> int:
    """Most bytes since the last reset; after a reset, those that are there now."""
    if torch.get_default_device().type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # what is counted as VmHWM begins anew
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def synchronize() -> None:
    """Waits for the device."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def store_seconds(spec: TowerSpec, settings: Settings, images: int = 32) -> float:
    """Of reading one image's tokens, the median over images."""
    keys = [f"{i:064x}" for i in range(images)]
    with tempfile.TemporaryDirectory() as folder:
        space = FeatureStore(folder).space(spec, "own", settings.dtype)
        space.write({key: torch.randn(spec.tokens, spec.dim) for key in keys})
        seconds = []
        for key in keys:
            start = time.perf_counter()
            space.read(key).to(settings.device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def compare(name: str, spec: TowerSpec, settings: Settings, times: int) -> None:
    """Measures both ways and the store, and prints what was found."""
    context = multiprocessing.get_context("spawn")  # a fork cannot use CUDA
    pipes, processes = {}, []
    for way, way_class in (("plain", PLAIN[name]), ("tower", Ours)):
        pipes[way], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, way_class, spec, settings)))
        processes[-1].start()
        other.close()  # so that a process that ends is seen here
    weights = {way: pipe.recv() for way, pipe in pipes.items()}
    passes: dict[str, list[Pass]] = {way: [] for way in pipes}
    conditions: dict[str, torch.Tensor] = {}
    for _ in range(1 + times):
        for way, pipe in pipes.items():
            pipe.send(conditions)
            passes[way].append(pipe.recv())
        conditions = passes["plain"][0].conditions
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    report(spec, settings, weights, passes, store_seconds(spec, settings))


def report(
    spec: TowerSpec,
    settings: Settings,
    weights: dict[str, int],
    passes: dict[str, list[Pass]],
    stored: float,
) -> None:
    """The table, ratios and agreement."""
    rows, columns = spec.grid
    size = spec.tokens * spec.dim * DTYPES[settings.dtype].itemsize / 1e6
    print(
        f"\n{spec.id} at {spec.size} px, block {spec.up_ft_index} of {spec.depth}: {rows} x "
        f"{columns} tokens of width {spec.dim}, {size:.1f} MB"
    )
    print(f"{'':6}{'seconds per image':>36}{f'MB, {settings.batch} at once':>45}")
    head = "".join(f"{part:>9}" for part in (*PARTS, "all"))
    print(f"{'':6}{head}{'weights':>9}{head}")
    seconds, memory = {}, {}
    for way, found in passes.items():
        later = found[1:]  # the first one warms up
        parts = [
            statistics.median(each.seconds[part] for each in later) / settings.batch
            for part in PARTS
        ]
        peaks = [max(each.bytes[part] for each in later) for part in PARTS]
        seconds[way], memory[way] = [*parts, sum(parts)], weights[way] + max(peaks)
        print(
            f"{way:6}"
            + "".join(f"{value:9.4f}" for value in seconds[way])
            + "".join(f"{value / 1e6:9.0f}" for value in (weights[way], *peaks, memory[way]))
        )
    print(f"store {'':27}{stored:9.4f}")
    plain, tower = seconds["plain"], seconds["tower"]
    ours, theirs = passes["tower"][-1].tokens_BNC, passes["plain"][-1].tokens_BNC
    away = ((ours - theirs).norm() / theirs.norm()).item()
    print(
        f"plain / tower: seconds {plain[-1] / tower[-1]:.2f} (network {plain[2] / tower[2]:.2f}), "
        f"memory {memory['plain'] / memory['tower']:.2f}; the VAE takes {tower[1] / tower[-1]:.0%} "
        f"of the tower's seconds\ntower / store: seconds {tower[-1] / stored:,.0f}; tokens of both "
        f"ways differ by {away:.0e} of their norm",
        flush=True,
    )


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", default="sd1.5,dit", help=f"of {', '.join(MODELS)}, comma between; or all"
    )
    parser.add_argument("--size", type=int, default=512, help="pixels; 0: each model's own")
    parser.add_argument("--tap", type=int, help="block that is read; each model's own without it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--threads", type=int, default=1, help="of each process on the CPU")
    parser.add_argument("--times", type=int, default=3, help="passes, after one that warms up")
    arguments = parser.parse_args()
    settings = Settings(arguments.device, arguments.dtype, arguments.batch, arguments.threads)
    names = list(MODELS) if arguments.models == "all" else arguments.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(f"--models: {unknown.pop()} is none of {', '.join(MODELS)}, all")
    cuda = settings.device.startswith("cuda")
    print(
        f"{torch.cuda.get_device_name() if cuda else platform.machine()}, {settings.dtype}, "
        f"{settings.threads} CPU thread(s), medians of {arguments.times}"
    )
    for name in names:
        (spec,) = resolve(name).parts
        changes = {"size": arguments.size} if arguments.size else {}
        if arguments.tap is not None:
            changes["up_ft_index"] = arguments.tap
        spec = dataclasses.replace(spec, weights=str(CONFIGS / Path(spec.id).name), **changes)
        compare(name, spec, settings, arguments.times)


if __name__ == "__main__":
    main()
