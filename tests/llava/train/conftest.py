"""A small world to train in, made once."""

import pytest
from world import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder with llm/, clip/, dinov2/, images/, captions.json and talks.json."""
    return make_world(tmp_path_factory.mktemp("world"))
