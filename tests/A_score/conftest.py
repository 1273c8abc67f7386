"""The golden tokens laid out as the published dump lays them out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "ascore"


@pytest.fixture(scope="session")
def expected():
    return json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="session")
def golden_tokens():
    """Tower -> list over images of float32 [N, 64]."""
    arrays = np.load(GOLDEN / "tokens.npz")
    towers = {}
    for name in sorted(arrays.files):
        towers.setdefault(name.rpartition("_")[0], []).append(torch.from_numpy(arrays[name]))
    return towers


@pytest.fixture(scope="session")
def golden_folder(golden_tokens, tmp_path_factory):
    """DIR/<tower>/tensor_<i>.pt, i from 1."""
    base = tmp_path_factory.mktemp("ascore") / "mme"
    for tower, images in golden_tokens.items():
        (base / tower).mkdir(parents=True)
        for i, tokens in enumerate(images, 1):
            torch.save(tokens, base / tower / f"tensor_{i}.pt")
    return base
