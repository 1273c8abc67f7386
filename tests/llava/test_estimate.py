"""Estimates of memory, time and disk, against numbers worked out by hand."""

import dataclasses

import pytest

from llava.errors import UsageError
from llava.estimate import (
    Sizes,
    Way,
    disk,
    gpu,
    gpu_hours,
    gpus,
    memory,
    training_flops,
)
from llava.model.multimodal_encoder.registry import resolve, tower_class

VICUNA = 6_738_415_616
PROJECTOR = 20_979_712
TOWER = 2.0 * 303_000_000 * 257
SHAPE = {"tower": 303_000_000, "layers": 32, "hidden": 4096, "vocabulary": 32_000}
STAGE1 = Sizes(frozen=VICUNA, trained=PROJECTOR, tower_flops=TOWER, **SHAPE)
STAGE2 = Sizes(frozen=0, trained=VICUNA + PROJECTOR, tower_flops=TOWER, **SHAPE)


def test_memory_of_stage2_under_zero():
    """7B in bf16: 2 + 2 + 12 bytes a parameter; ZeRO-2 shards 14 of them, ZeRO-3 all 16."""
    way = Way(batch=16, length=2048, processes=8, zero=2)
    two, three = memory(STAGE2, way), memory(STAGE2, dataclasses.replace(way, zero=3))
    n = VICUNA + PROJECTOR
    assert two["weights"] == 2 * n
    assert two["gradients"] == pytest.approx(2 * n / 8)
    assert two["optimizer"] == pytest.approx(12 * n / 8)
    assert three["weights"] == pytest.approx(2 * n / 8)
    assert three["optimizer"] == two["optimizer"]
    states = memory(STAGE2, dataclasses.replace(way, zero=3, offload_optimizer=True))
    assert states == three | {"optimizer": 0}
    weights = memory(STAGE2, dataclasses.replace(way, zero=3, offload_weights=True))
    assert weights == three | {"weights": 0}


def test_memory_of_stage1():
    """The frozen model in bf16, the projector in float32 with gradients and moments."""
    found = memory(STAGE1, Way(batch=32, length=600))
    assert found["weights"] == 2 * VICUNA + 4 * PROJECTOR
    assert found["gradients"] == 4 * PROJECTOR
    assert found["optimizer"] == 8 * PROJECTOR
    assert found["tower"] == 2 * 303_000_000


def test_memory_of_activations():
    """34 bytes a token, layer and unit; checkpointed 2, and 34 for the layer at work."""
    way = Way(batch=1, length=1000, checkpointing=False)
    assert memory(STAGE2, way)["activations"] == 34 * 32 * 1000 * 4096
    way = dataclasses.replace(way, checkpointing=True)
    assert memory(STAGE2, way)["activations"] == (2 * 32 + 34) * 1000 * 4096
    assert memory(STAGE2, way)["logits"] == 2 * 500 * 32_000 * 2


def test_hours():
    """Stage 1 takes 4 FLOPs a parameter and token, stage 2 takes 6; checkpointing 2 more."""
    per_token = training_flops(STAGE1, 1, 0, checkpointing=False)
    assert per_token == pytest.approx(4 * VICUNA, rel=0.02)
    assert training_flops(STAGE2, 1, 0, False) == 6 * (VICUNA + PROJECTOR)
    assert training_flops(STAGE2, 1, 0, True) == 8 * (VICUNA + PROJECTOR)
    assert training_flops(STAGE1, 0, 10, True) == 10 * 2 * 303_000_000 * 257
    assert gpu_hours(312e12 * 3600, gpu("A100-80GB"), utilisation=0.5) == 2


def test_disk():
    """One checkpoint more than is kept exists while it is written; stage 1 holds the projector."""
    way = Way(batch=1, length=1)
    small = disk(STAGE1, way, partial=True, keep=1, saves=10)
    assert small == 2 * 12 * PROJECTOR + 4 * PROJECTOR
    n = VICUNA + PROJECTOR
    assert disk(STAGE2, way, partial=False, keep=None, saves=3) == 3 * 12 * n + 4 * n
    assert disk(STAGE2, way, partial=False, keep=5, saves=1) == 12 * n + 4 * n


def test_frozen_weights_may_be_wide():
    """What stage 2 freezes of a language model stays float32."""
    sizes = dataclasses.replace(STAGE2, frozen=VICUNA, trained=PROJECTOR)
    wide, narrow = (
        memory(sizes, Way(batch=1, length=2048, frozen_bytes=size))["weights"] for size in (4, 2)
    )
    assert wide - narrow == 2 * VICUNA


def test_towers():
    """CLIP ViT-L/14 has 303 M parameters; one of its 24 blocks is not run."""
    (clip,) = resolve("openai/clip-vit-large-patch14").parts
    cost = tower_class(clip).cost(clip)
    assert cost.parameters == pytest.approx(303e6 * 23 / 24, rel=0.01)
    attention = 23 * 4 * 257**2 * 1024
    assert cost.flops == pytest.approx(2 * cost.parameters * 257 + attention, rel=1e-4)


def test_gpus():
    """Names are unique, and a wrong one gets the nearest."""
    assert len(gpus()) >= 8
    with pytest.raises(UsageError, match="did you mean 'H200'"):
        gpu("H20")
