"""Adapters: on which layers, merged and not, and LLaVA's layout of their folder."""

import json

import numpy as np
import pytest
import torch
from llavas import CLIP, FAMILIES, GOLDEN, MODELS, batch, family_llava, folders, golden_llava
from safetensors.torch import load_file

from llava.errors import LawError, UsageError
from llava.model.builder import load_pretrained_model
from llava.model.lora import add_lora, lora_parameters, lora_targets
from llava.model.saving import load_projector, save_lora
from llava.tokenization import load_tokenizer

pytest.importorskip("peft")

LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ROWS = [[1, -200, 5, 6, 7, 2], [1, 8, 9, 10]]
BASE = str(MODELS / "lmsys" / "tiny-vicuna")


@pytest.mark.parametrize("family", FAMILIES)
def test_targets(family):
    """All linear layers of the language model; neither head, projector nor tower."""
    model = family_llava(family)
    assert lora_targets(model) == LAYERS
    expected = lora_parameters(model, 2)
    wrapped = add_lora(model, 2, 4, 0.0)
    assert expected == sum(p.numel() for n, p in wrapped.named_parameters() if ".lora_" in n)
    adapted = {n.partition(".lora_")[0] for n, _ in wrapped.named_parameters() if ".lora_" in n}
    assert len(adapted) == 7 * 2
    assert not any("mm_projector" in name or "lm_head" in name for name in adapted)
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" not in n}
    assert {n.rpartition("mm_projector.")[2] for n in trained} == {
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    }


def drawn(wrapped):
    """The same with adapters that are not zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.2 if "lora_" in name else 0.05))
    return wrapped


def test_training_and_merging():
    """Loss and gradients through peft's own forward; merged logits to 1e-5."""
    model = family_llava()
    given = batch(ROWS)
    before = model(**given).logits
    wrapped = drawn(add_lora(model, 2, 4, 0.0))
    wrapped.train()
    wrapped(**given, num_items_in_batch=3).loss.backward()
    without = [n for n, p in wrapped.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    wrapped.eval()
    adapted = wrapped(**given).logits
    assert not torch.allclose(adapted, before, atol=1e-2)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(**given).logits, adapted, atol=1e-5, rtol=1e-5)


def golden_adapted():
    """The golden LLaVA with adapters that are not zero."""
    return drawn(add_lora(golden_llava(), 2, 4, 0.0)).eval()


@pytest.mark.parametrize("gathered", [False, True])
def test_folder(tmp_path, gathered):
    """Written, and loaded on the base by its files alone."""
    wrapped = golden_adapted()
    state = None
    if gathered:
        state = {n: p.detach() for n, p in wrapped.named_parameters() if p.requires_grad}
    save_lora(wrapped, tmp_path, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "non_lora_trainables.bin",
        "non_lora_trainables.safetensors",
    ]
    golden = torch.load(
        GOLDEN / "checkpoints" / "off-llava-lora" / "adapter_model.bin", weights_only=True
    )
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == set(golden)
    others = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    assert set(others) == {
        f"base_model.model.model.mm_projector.{i}.{what}"
        for i in (0, 2)
        for what in ("weight", "bias")
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == LAYERS
    assert (config["peft_type"], config["inference_mode"]) == ("LORA", True)
    _, model, _, _ = load_pretrained_model(str(tmp_path), BASE)
    given = batch(ROWS)
    found, wanted = model(**given).logits, wrapped(**given).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_biases(tmp_path):
    """`lora_bias all`: they are written beside the projector, and read again."""
    model = family_llava("qwen2")
    wrapped = drawn(add_lora(model, 2, 4, 0.0, bias="all"))
    save_lora(wrapped, tmp_path)
    others = load_file(tmp_path / "non_lora_trainables.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.bias" in others
    base = tmp_path / "base"
    family_llava("qwen2").save_pretrained(base)
    load_tokenizer(BASE).save_pretrained(base)
    _, again, _, _ = load_pretrained_model(str(tmp_path), str(base))
    given = batch(ROWS)
    wanted = wrapped.eval()(**given).logits
    torch.testing.assert_close(again(**given).logits, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match="lora_bias 'some'"):
        add_lora(family_llava(), 2, 4, 0.0, bias="some")


def test_projector_of_a_partial_checkpoint(tmp_path):
    """What a run goes on from: a wrapped model takes its projector from the folder."""
    wrapped = golden_adapted()
    save_lora(wrapped, tmp_path)
    expected = wrapped.get_base_model().mm_projector[0].weight.detach().clone()
    other = add_lora(golden_llava(), 2, 4, 0.0)
    assert not torch.equal(other.get_base_model().mm_projector[0].weight, expected)
    load_projector(other, tmp_path)
    assert torch.equal(other.get_base_model().mm_projector[0].weight, expected)


def test_merged_into_the_model_that_was_trained_on(tmp_path):
    """A LLaVA may be the base, too: its projector is then replaced."""
    golden_llava().save_pretrained(tmp_path / "base")
    save_lora(golden_adapted(), tmp_path / "lora")
    load_tokenizer(BASE).save_pretrained(tmp_path / "base")
    _, first, _, _ = load_pretrained_model(str(tmp_path / "lora"), BASE)
    _, second, _, _ = load_pretrained_model(str(tmp_path / "lora"), str(tmp_path / "base"))
    given = batch(ROWS)
    assert torch.equal(first(**given).logits, second(**given).logits)


def test_incomplete_folder(tmp_path):
    """Adapters without weights, or without a projector."""
    save_lora(golden_adapted(), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    with pytest.raises(LawError, match=r"no adapter_model\.safetensors"):
        load_pretrained_model(str(tmp_path), BASE, tower_replacements=folders(CLIP))
    weights.write_bytes(kept)
    for path in tmp_path.glob("non_lora*"):
        path.unlink()
    with pytest.raises(LawError, match="no file of a projector"):
        load_pretrained_model(str(tmp_path), BASE)


def test_nothing_to_save(tmp_path):
    """An error, not an empty file."""
    with pytest.raises(LawError, match="nothing to save"):
        save_lora(golden_adapted(), tmp_path, {"model.mm_projector.0.bias": torch.zeros(1)})


def test_golden_adapters_unmerged():
    """The published folder: torch files, and keys of an older peft."""
    folder = GOLDEN / "checkpoints" / "off-llava-lora"
    _, model, _, _ = load_pretrained_model(str(folder), BASE, tower_replacements=folders(CLIP))
    stored = np.load(GOLDEN / "checkpoints" / "logits.npz")
    logits = model(
        input_ids=torch.from_numpy(stored["input_ids"]), images=torch.from_numpy(stored["image"])
    ).logits
    wanted = stored["off-llava-lora.logits_exact_weights"]
    np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=1e-4)
