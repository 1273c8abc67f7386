"""docs/sweeps.md: its tables list the keys that the YAML has, and its example is a sweep."""

import dataclasses
import re

import pytest
from repository import ROOT

from llava.sweep import config
from llava.sweep.plan import load_run
from llava.sweep.step import StepConfig

TEXT = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
TABLES = {
    "key": config.SweepConfig,
    "key of `search`": config.Search,
    "key of `correspondence`": config.Correspondence,
    "key of `alignment`": config.Alignment,
    "key of `alignment.cosine`": config.Cosine,
    "key of `alignment.nll`": config.Likelihood,
    "key of `evaluation`": config.Evaluation,
    "key of `features`": config.Features,
    "key of `policy`": config.Policy,
    "key of `cost`": config.Cost,
    "key of `launch`": config.Launch,
    "key of a step in `prepare` and `finish`": StepConfig,
}


@pytest.mark.parametrize(("head", "of"), TABLES.items(), ids=[c.__name__ for c in TABLES.values()])
def test_every_key_is_told(head, of):
    """And no other."""
    table = TEXT.split(f"\n| {head} | meaning |\n")[1].split("\n\n")[0]
    told = [
        name
        for line in table.splitlines()[1:]
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(of))


def test_the_example_is_a_sweep(tmp_path):
    """With nothing that the file does not know."""
    found = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1]
    (tmp_path / "mine.yaml").write_text(found)
    sweep = load_run(tmp_path / "mine.yaml")
    assert isinstance(sweep, config.SweepConfig)
    assert sweep.representations[-1] == "clip336+dinov2@336"
