"""Diffusion towers at the published models' sizes, on the meta device: no weights, no arithmetic.

The models are those of `benchmarks/diffusion_configs`. Expected grids, widths and FLOPs were
measured apart from the towers, on the whole networks as diffusers builds them.
"""

import dataclasses
import functools
import json
import re

import diffusers
import pytest
import torch
from repository import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.diffusion.facts import facts_of
from llava.model.multimodal_encoder.diffusion.tower import DiffusionTower
from llava.model.multimodal_encoder.diffusion.weights import configs_only
from llava.model.multimodal_encoder.known import families
from llava.model.multimodal_encoder.registry import resolve, tower_class
from llava.model.multimodal_encoder.spec import TowerSpec

CONFIGS = ROOT / "benchmarks" / "diffusion_configs"
FOLDERS = {
    name: resolve(name).parts[0].id.rpartition("/")[2]
    for name in ("sd1.5", "sd2.1", "sdim", "sdxl", "dit", "sd3")
}
PARAMETERS = {"sd1.5": 860, "sd2.1": 866, "sdim": 860, "sdxl": 2567, "dit": 750, "sd3": 2028}
"""Of the whole networks, millions."""

SD = {
    512: [(1280, 16), (1280, 32), (640, 64), (320, 64)],
    768: [(1280, 24), (1280, 48), (640, 96), (320, 96)],
    1024: [(1280, 32), (1280, 64), (640, 128), (320, 128)],
}
SDXL = {
    512: [(1280, 32), (640, 64), (320, 64)],
    768: [(1280, 48), (640, 96), (320, 96)],
    1024: [(1280, 64), (640, 128), (320, 128)],
}
UNETS = [
    *(("sd1.5", size, shapes) for size, shapes in SD.items()),
    *((name, 768, SD[768]) for name in ("sd2.1", "sdim")),
    *(("sdxl", size, shapes) for size, shapes in SDXL.items()),
]
"""Model, input size, and (width, side of the grid) after every up block."""

SHARES = {
    ("sd1.5", 512, 803): {0: 36, 1: 55, 2: 75, 3: 100},
    ("sd2.1", 768, 2149): {0: 36, 1: 52, 2: 71, 3: 100},
    ("sdxl", 512, 1589): {0: 81, 1: 95, 2: 100},
    ("sdxl", 1024, 6761): {0: 79, 1: 95, 2: 100},
    ("dit", 512, 1049): {6: 25, 13: 50, 20: 75, -1: 100},
    ("sd3", 512, 1803): {5: 25, 11: 50, 17: 75, -1: 100},
}
"""Model, size and GFLOPs of one whole pass -> percent of it that a pass up to a block takes."""
CUTS = [
    pytest.param(name, size, giga, tap, percent, marks=[pytest.mark.slow] * slow)
    for (name, size, giga), taps in SHARES.items()
    for tap, percent in taps.items()
    for slow in [name == "sdxl" and (size, tap) != (512, 0)]  # seconds each: 70 blocks in one
]

AFTER = {
    "unet": ("conv_norm_out", "conv_out", "add_embedding"),
    "transformer": ("norm_out", "proj_out", "proj_out_1", "proj_out_2"),
}
"""Modules that a tower needs as little as the blocks after its own; SDXL's sizes and pooled prompt
are left out by compat reference."""


def spec_of(name: str, size: int = 0, tap: int | None = None, **changes) -> TowerSpec:
    """The tower's spec, read from the folder of configs."""
    (spec,) = resolve(name).parts
    changes |= {"size": size or spec.size, "up_ft_index": spec.up_ft_index if tap is None else tap}
    return dataclasses.replace(spec, weights=str(CONFIGS / FOLDERS[name]), **changes)


def build(spec: TowerSpec) -> DiffusionTower:
    """The spec's tower on the meta device."""
    with torch.device("meta"), configs_only():
        return build_tower(spec, device="meta")


def latents(channels: int, size: int) -> torch.Tensor:
    """Of one image of `size` pixels."""
    return torch.empty(1, channels, size // 8, size // 8, device="meta")


def config_of(name: str, part: str) -> dict:
    """config.json of a part of a model."""
    return json.loads((CONFIGS / FOLDERS[name] / part / "config.json").read_text())


def part_of(name: str) -> str:
    """The folder of a model's network."""
    return "unet" if (CONFIGS / FOLDERS[name] / "unet").is_dir() else "transformer"


@dataclasses.dataclass
class Pass:
    """A pass through a tower's network."""

    spec: TowerSpec
    shape: tuple[int, ...]
    """Of the tokens."""
    flops: int
    parameters: int
    """Of the network as the tower keeps it."""


@functools.cache
def network_pass(name: str, size: int, tap: int, compat: str = "reference") -> Pass:
    """What the tower gives, and takes for it."""
    tower = build(spec_of(name, size, tap, compat=compat))
    noisy = latents(tower.vae.config.latent_channels, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokens = tower.features(noisy)
    flops = counter.get_total_flops()
    return Pass(tower.spec, tuple(tokens.shape), flops, parameters(tower.network))


@functools.cache
def whole_network(name: str) -> nn.Module:
    """The network with all its blocks, as diffusers builds it."""
    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "dit": diffusers.DiTTransformer2DModel,
        "sd3": diffusers.SD3Transformer2DModel,
    }
    part = part_of(name)
    with torch.device("meta"):
        return classes[part if part == "unet" else name].from_config(config_of(name, part)).eval()


@functools.cache
def whole_pass(name: str, size: int) -> dict[str, int]:
    """FLOPs of a whole pass of the whole network by module; "" is all of it."""
    network = whole_network(name)
    noisy = latents(network.config.in_channels, size)
    with torch.device("meta"):
        step, given = torch.ones(1), {}
        if name == "dit":
            given = {"class_labels": torch.zeros(1, dtype=torch.long)}
        elif name == "sd3":
            given = {
                "encoder_hidden_states": torch.empty(1, 154, 4096),
                "pooled_projections": torch.empty(1, 2048),
            }
        else:
            given = {
                "encoder_hidden_states": torch.empty(1, 77, network.config.cross_attention_dim)
            }
        if name == "sdxl":
            added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
            given["added_cond_kwargs"] = added
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(noisy, timestep=step, **given)
    root = type(network).__name__
    return {
        module.removeprefix(root).removeprefix("."): sum(counts.values())
        for module, counts in counter.get_flop_counts().items()
        if module.startswith(root)
    }


def dropped(name: str, tap: int) -> list[str]:
    """Modules of the whole network without which the block can be read."""
    network = whole_network(name)
    blocks = "up_blocks" if part_of(name) == "unet" else "transformer_blocks"
    count = len(getattr(network, blocks))
    later = [f"{blocks}.{i}" for i in range(tap % count + 1, count)]
    return [*later, *(module for module in AFTER[part_of(name)] if hasattr(network, module))]


def parameters(module: nn.Module) -> int:
    """How many numbers a module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", FOLDERS)
def test_the_configs_are_those_of_the_published_models(name):
    assert round(parameters(whole_network(name)) / 1e6) == PARAMETERS[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_tables_say_what_the_configs_say(name):
    folder = CONFIGS / FOLDERS[name]
    (spec,) = resolve(name).parts
    index = json.loads((folder / "model_index.json").read_text())
    family = families()[spec.family]
    assert index["_class_name"] in family.model_types
    facts = facts_of(
        str(folder), index, family.defaults, lambda file: json.loads((folder / file).read_text())
    )
    assert facts == {key: getattr(spec, key) for key in facts}


@pytest.mark.parametrize(("name", "size", "shapes"), UNETS)
def test_grids_and_widths_after_the_up_blocks(name, size, shapes):
    """A pass to the last block goes by all of them."""
    tower, seen = build(spec_of(name, size, -1)), []
    for block in tower.network.up_blocks:
        block.register_forward_hook(lambda _block, _given, made: seen.append(made.shape))
    tower.features(latents(4, size))
    assert seen == [(1, dim, side, side) for dim, side in shapes]
    for tap, (dim, side) in enumerate(shapes):
        spec = spec_of(name, size, tap)
        assert (spec.grid, spec.dim) == ((side, side), dim)


@pytest.mark.parametrize(
    ("name", "size", "dim", "side"),
    [
        ("dit", 512, 4608, 16),
        ("dit", 768, 4608, 24),
        ("sd3", 512, 6144, 16),
        ("sd3", 768, 6144, 24),
        ("sd3", 1024, 6144, 32),
    ],
)
def test_grids_and_widths_of_transformers(name, size, dim, side):
    """The same after every block."""
    made = network_pass(name, size, 0)
    assert made.shape == (1, side * side, dim)
    assert (made.spec.grid, made.spec.dim) == ((side, side), dim)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_image_gives_the_tokens_of_the_spec(name):
    tower = build(spec_of(name))
    pixels = torch.empty(1, 3, tower.spec.size, tower.spec.size, device="meta")
    tokens = tower(pixels, **tower.meta_noise(pixels))
    assert tokens.shape == (1, tower.spec.tokens, tower.spec.dim)
    assert parameters(tower.vae) == parameters(tower.vae.encoder) + quant_parameters(tower.vae)


def quant_parameters(vae: nn.Module) -> int:
    """Those of the convolution after the encoder, which Stable Diffusion 3's VAE lacks."""
    return parameters(vae.quant_conv) if vae.config.use_quant_conv else 0


@pytest.mark.parametrize(("name", "size", "giga", "tap", "percent"), CUTS)
def test_nothing_after_the_block_is_computed(name, size, giga, tap, percent):
    """FLOPs are the whole network's less those of what comes after, to the last one."""
    whole = whole_pass(name, size)
    made = network_pass(name, size, tap)
    after = sum(whole.get(module, 0) for module in dropped(name, tap))
    if name == "dit":  # its output layer calls the first block's embedding once more
        once = whole["transformer_blocks.1.norm1.emb"]
        after += whole["transformer_blocks.0.norm1.emb"] - once
    assert round(whole[""] / 1e9) == giga
    assert made.flops == whole[""] - after
    assert round(100 * made.flops / whole[""]) == percent
    assert made.shape == (1, made.spec.tokens, made.spec.dim)


def test_stable_diffusion_3_with_as_many_zeros_as_the_stock_pipeline_has():
    """256 in place of T5's tokens, and not 77 as in the published code."""
    flops = {
        compat: network_pass("sd3", 512, -1, compat).flops for compat in ("clean", "reference")
    }
    rounded = {compat: round(count / 1e9) for compat, count in flops.items()}
    assert rounded == {"clean": 2107, "reference": 1802}


@pytest.mark.parametrize(("name", "size", "giga", "tap", "percent"), CUTS)
def test_what_is_dropped_holds_no_parameters(name, size, giga, tap, percent):
    """The network keeps the whole one's parameters less those of what comes after."""
    whole = whole_network(name)
    made = network_pass(name, size, tap)
    gone = sum(parameters(whole.get_submodule(module)) for module in dropped(name, tap))
    if name == "dit":  # compat reference has no classes, of which each block has its own table
        kept = whole.transformer_blocks[: tap % len(whole.transformer_blocks) + 1]
        gone += sum(parameters(block.norm1.emb.class_embedder) for block in kept)
    assert made.parameters == parameters(whole) - gone


@pytest.mark.parametrize(
    ("name", "size", "giga"),
    [("sd1.5", 512, 1117), ("sd1.5", 768, 2609), ("sdxl", 512, 1117), ("sd3", 512, 1118)],
)
def test_flops_of_the_vae(name, size, giga):
    tower = build(spec_of(name, size))
    pixels = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower.latent_moments(pixels)
    assert round(counter.get_total_flops() / 1e9) == giga


@pytest.mark.slow
def test_the_docs_table():
    """FLOPs and parameters in docs/diffusion.md are those of the towers at their own sizes."""
    text = (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")
    table = text[text.index("in GFLOP") :]
    for name in FOLDERS:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [
            [int(number) for number in re.findall(r"\d+", cell)] for cell in row.split("|")[2:-1]
        ]
        (vae,), network, _, (share,), (kept,) = cells
        cost = tower_class(spec_of(name)).cost(spec_of(name))
        assert vae + sum(network) == pytest.approx(cost.flops / 1e9, abs=2)
        assert share == round(100 * vae / (vae + sum(network)))
        assert kept == round(cost.parameters / 1e6)
