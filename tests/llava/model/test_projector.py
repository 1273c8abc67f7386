"""Projectors by name: keys, sizes, numbers of parameters."""

from types import SimpleNamespace

import pytest
import torch

from llava.errors import UsageError
from llava.model.multimodal_projector.builder import (
    build_vision_projector,
    make_projector,
    projected_tokens,
    projector_parameters,
)

KEYS = {
    "linear": ["bias", "weight"],
    "mlp1x_gelu": ["0.bias", "0.weight"],
    "mlp2x_gelu": ["0.bias", "0.weight", "2.bias", "2.weight"],
    "mlp3x_gelu": ["0.bias", "0.weight", "2.bias", "2.weight", "4.bias", "4.weight"],
    "identity": [],
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys(kind):
    """As LLaVA names them."""
    width = 12 if kind == "identity" else 7
    projector = make_projector(kind, width, 12)
    assert sorted(projector.state_dict()) == KEYS[kind]
    assert projector(torch.zeros(2, 5, width)).shape == (2, 5, 12)
    assert projected_tokens(5, kind) == 5


@pytest.mark.parametrize(
    ("width", "parameters"),
    [
        (1024, 20_979_712),
        (768, 19_931_136),
        (1280, 22_028_288),
        (4608, 35_659_776),
        (6144, 41_951_232),
        (2048, 25_174_016),
    ],
)
def test_parameters(width, parameters):
    """mlp2x_gelu into the width of the 7B model: in * H + H + H * H + H."""
    assert projector_parameters(width, 4096, "mlp2x_gelu") == parameters


def test_parameters_of_13b():
    """Of CLIP's width into 5120."""
    assert projector_parameters(1024, 5120, "mlp2x_gelu") == 31_467_520


def test_perceiver():
    """64 latents whatever the number of tokens, and the published names."""
    projector = make_projector("perceiver2x", 16, 12)
    assert projector(torch.randn(3, 5, 16)).shape == (3, 64, 12)
    assert projected_tokens(5, "perceiver2x") == 64
    state = projector.state_dict()
    assert state["0.latents"].shape == (64, 16)
    assert state["0.layers.1.0.to_q.weight"].shape == (512, 16)
    assert state["0.layers.1.0.to_kv.weight"].shape == (1024, 16)
    assert state["0.layers.0.1.1.weight"].shape == (64, 16)
    assert {"0.norm.weight", "0.norm.bias", "1.weight"} <= set(state)
    assert "0.layers.2.0.to_q.weight" not in state


def test_perceiver_reads_every_token():
    """In no order: the tokens of an image are a set to it."""
    torch.manual_seed(0)
    projector = make_projector("perceiver1x", 16, 12)
    tokens = torch.randn(1, 5, 16)
    expected = projector(tokens)
    torch.testing.assert_close(projector(tokens.flip(1)), expected, atol=1e-5, rtol=1e-4)
    tokens[0, 3] = torch.randn(16)
    assert not torch.allclose(projector(tokens), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["mlp2x_gleu", "mlp0x_gelu", "mlp", "Linear ", "perceiver"])
def test_unknown(kind):
    """With the nearest one, or with those there are."""
    with pytest.raises(UsageError, match="unknown mm_projector_type"):
        make_projector(kind, 4, 8)


def test_identity_of_another_width():
    """Says both."""
    with pytest.raises(UsageError, match="tokens are 4 wide and the language model takes 8"):
        make_projector("identity", 4, 8)


def test_config_without_a_type():
    """As LLaVA: linear."""
    config = SimpleNamespace(mm_hidden_size=4, hidden_size=8)
    assert isinstance(build_vision_projector(config), torch.nn.Linear)
