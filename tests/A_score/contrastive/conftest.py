"""One world for all tests of heads."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from headworld import tower_without_positions

from llava.eval.pairs.synthetic import make_synthetic


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """`tower`, and `data` with 8 pairs and 48 training images."""
    folder = tmp_path_factory.mktemp("head")
    tower_without_positions(folder / "tower")
    make_synthetic(folder / "data", 8, 0, train=48)
    return folder
