"""Numbers of parameters of real sizes, on the meta device, and what a stage trains."""

from types import SimpleNamespace

import pytest
import torch
from llavas import FAMILIES, family_llava

from llava.errors import UsageError
from llava.model.language_model import llava_class
from llava.model.trainable import parameter_table, trainable

SEVEN = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
}
LLM = 6_738_415_616
PROJECTOR = 20_979_712


@pytest.fixture(scope="module")
def seven():
    """LLaVA-1.5-7B without any memory."""
    made = llava_class("llama")
    with torch.device("meta"):
        return made(made.config_class(**SEVEN))


@pytest.mark.parametrize(("stage", "trained"), [(1, PROJECTOR), (2, PROJECTOR + LLM)])
def test_seven_billion(seven, stage, trained):
    """Stage 1: the projector, 0.3 % of all. Stage 2: everything but the tower."""
    trainable(seven, stage)
    table = {part.name: part for part in parameter_table(seven)}
    assert sum(part.trained for part in table.values()) == trained
    assert sum(part.parameters for part in table.values()) == PROJECTOR + LLM
    assert table["projector"].parameters == PROJECTOR
    assert table["embeddings"].parameters == table["head"].parameters == 32000 * 4096
    assert "tower" not in table


@pytest.mark.parametrize("family", FAMILIES)
def test_table(family):
    """Every parameter is in one part; a shared head counts as embeddings; the tower is last."""
    model = family_llava(family)
    trainable(model, 2, freeze_backbone=True)
    table = {part.name: part for part in parameter_table(model)}
    *own, tower = table.values()
    assert sum(part.parameters for part in own) == sum(p.numel() for p in model.parameters())
    assert (tower.name, tower.trained) == ("tower", 0)
    tied = family == "llama_tied"
    assert (table["head"].parameters == 0) == tied
    assert table["embeddings" if tied else "head"].trained > 0
    assert table["language model"].trained == 0


def test_stage_of_no_name():
    """One or two."""
    with pytest.raises(UsageError, match="stage 3"):
        trainable(SimpleNamespace(), 3)
