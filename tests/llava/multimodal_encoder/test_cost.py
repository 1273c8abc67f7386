"""FLOPs and parameters that are known without making a tower, against counts of real shapes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from llava.model.multimodal_encoder.cost import facts, known_cost
from llava.model.multimodal_encoder.known import families, towers
from llava.model.multimodal_encoder.registry import resolve, tower_class

CONFIGS = Path(__file__).parents[3] / "benchmarks" / "diffusion_configs"


def vit(kind: str, spec, **more):
    """A model of a spec's shape on the meta device."""
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=spec.dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=more.pop("heads", spec.dim // 64),
        image_size=spec.size,
        patch_size=spec.patch,
        **{"intermediate_size": 4 * spec.dim, **more},
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("clip336", "CLIPVision", {}),
        ("openai/clip-vit-base-patch32", "CLIPVision", {}),
        ("siglip", "SiglipVision", {}),
        (
            "google/siglip-so400m-patch14-384",
            "SiglipVision",
            {"heads": 16, "intermediate_size": 4304},
        ),
        ("dinov2", "Dinov2", {}),
        ("facebook/dinov2-giant", "Dinov2", {"use_swiglu_ffn": True}),
    ],
)
def test_vision_transformers_are_counted(name, kind, more):
    """Within 1 %: norms, biases and pooling heads, which are not in the formula, are less."""
    (spec,) = resolve(name).parts
    model = vit(kind, spec, **more)
    whole = dataclasses.replace(spec, layer=spec.depth)
    if hasattr(model, "head"):
        model.head = torch.nn.Identity()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, spec.size, spec.size))
    cost = known_cost(whole)
    kept = sum(p.numel() for p in model.parameters())
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert cost.parameters == pytest.approx(kept, rel=0.01)
    share = known_cost(spec).flops / cost.flops
    assert share == pytest.approx((spec.depth - 1) / spec.depth, rel=0.01)


@pytest.mark.parametrize(
    ("name", "size"), [("sd1.5", 448), ("sdxl", 384), ("dit", 448), ("sd3", 384)]
)
def test_diffusion_towers_between_counted_sizes(name, size):
    """A size that is not in the file is counted again, of the published shape."""
    (spec,) = resolve(f"{name}@{size}").parts
    local = dataclasses.replace(spec, weights=str(CONFIGS / Path(spec.id).name))
    counted = tower_class(spec).cost(local)
    assert known_cost(spec).parameters == counted.parameters
    assert known_cost(spec).flops == pytest.approx(counted.flops, rel=1e-4)


def test_draws_of_noise_repeat_the_network_alone():
    """docs/diffusion.md: of SD 1.5 at 768 px the VAE takes 2609 GFLOP, the network 782."""
    (one,), (three,) = resolve("sd1.5").parts, resolve("sd1.5:ensemble_size=3").parts
    assert known_cost(one).flops == pytest.approx(2609e9 + 782e9, rel=1e-3)
    assert known_cost(three).flops - known_cost(one).flops == pytest.approx(2 * 782.39e9, rel=1e-4)


def test_what_is_not_counted_is_none():
    """Another block, another behaviour, a tower that was never counted: nothing is made up."""
    for name in ("sd1.5:up_ft_index=1", "sd3:compat=clean", "flux", "sd3.5"):
        (spec,) = resolve(name).parts
        assert known_cost(spec) is None, name


def test_facts_name_known_towers():
    """Every id and family exists, and three sizes give each polynomial."""
    assert set(facts().vision_transformers) <= set(families())
    assert set(facts().mlp) <= set(towers())
    for entry in facts().diffusion:
        assert entry.id in towers()
        assert len(entry.gflop) == 3


def test_nothing_here_needs_torch():
    """A sweep's plan reads costs where torch is not installed."""
    script = (
        "import sys; from llava.model.multimodal_encoder.cost import known_cost\n"
        "from llava.model.multimodal_encoder.registry import resolve\n"
        "assert known_cost(resolve('clip336').parts[0]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
