"""Both stages of training against the reference: loss, logits, gradients, three AdamW steps."""

import json

import numpy as np
import pytest
import torch
from llavas import GOLDEN, TOWERS, golden_llava, golden_pixels, gradients

from llava.model.trainable import trainable

STORED = {name: np.load(GOLDEN / f"{name}.npz") for name in ("stage1", "stage2")}
EXPECTED = {name: json.loads((GOLDEN / f"{name}.json").read_text()) for name in STORED}
RUNS = [
    ("stage1", "clip"),
    ("stage1", "clip_dinov2"),
    ("stage1", "siglip"),
    ("stage2", "clip"),
    ("stage2", "clip_dinov2"),
]
TRAININGS = [
    (stage, towers, name)
    for stage, towers in RUNS
    for name in EXPECTED[stage][towers]
    if name.startswith("train") and isinstance(EXPECTED[stage][towers][name], dict)
]


def prepared(stage: str, towers: str):
    """(model, golden batch) as training began."""
    model = golden_llava(towers)
    trainable(model, int(stage[-1]))
    stored = STORED[stage]
    given = {
        name: torch.from_numpy(stored[f"{towers}.{name}"])
        for name in ("input_ids", "labels", "attention_mask")
    }
    return model, given | {"images": golden_pixels(stored, f"{towers}.")}


@pytest.mark.parametrize(("stage", "towers"), RUNS)
def test_first_step(stage, towers):
    """Tolerances are those of the golden data's description."""
    model, given = prepared(stage, towers)
    expected, stored = EXPECTED[stage][towers], STORED[stage]
    model.eval()
    whole = model(**given)
    assert whole.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    if stage == "stage1":
        wanted = stored[f"{towers}.logits_row0"]
        np.testing.assert_allclose(whole.logits[0].detach().numpy(), wanted, atol=2e-5)
        rows, counts = model.encode_images(given["images"])
        wanted = stored[f"{towers}.image_features"]
        assert counts == [16] * 4
        found = rows.detach().numpy().reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    else:
        wanted = stored[f"{towers}.logits_last8"]
        np.testing.assert_allclose(whole.logits[:, -8:].detach().numpy(), wanted, atol=2e-5)
    model.train()
    supervised_only = model(**given)
    assert supervised_only.logits is None
    assert supervised_only.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    supervised_only.loss.backward()
    found = gradients(model)
    assert set(found) == set(expected["train"]["grad_norms"])
    for name, norm in expected["train"]["grad_norms"].items():
        assert found[name].double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-5)
        if f"{towers}.grad.{name}" in stored:
            wanted = stored[f"{towers}.grad.{name}"]
            np.testing.assert_allclose(found[name].numpy(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("stage", "towers", "training"), TRAININGS)
def test_three_steps(stage, towers, training):
    """Losses before every step and after the last, norms of gradients, parameters."""
    model, given = prepared(stage, towers)
    expected = EXPECTED[stage][towers][training]
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=expected["lr"], betas=expected["betas"], eps=expected["eps"], weight_decay=0.0
    )
    losses, norms = [], []
    for _ in range(3):
        loss = model(**given).loss
        losses.append(loss.item())
        loss.backward()
        limit = expected["max_grad_norm"] or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(trained, limit).item())
        optimizer.step()
        optimizer.zero_grad()
    losses.append(model(**given).loss.item())
    assert losses[0] == pytest.approx(expected["losses"][0], abs=1e-5)
    assert losses == pytest.approx(expected["losses"], abs=1e-4)
    assert norms == pytest.approx(expected["grad_total_norm"], rel=1e-3)
    if training == "train":
        for name, parameter in model.named_parameters():
            if f"{towers}.after3.{name}" in STORED[stage]:
                wanted = STORED[stage][f"{towers}.after3.{name}"]
                np.testing.assert_allclose(parameter.detach().numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_trained_names(stage):
    """Exactly those that the reference trains, and no tower among the frozen ones."""
    model = golden_llava()
    trainable(model, stage)
    expected = EXPECTED[f"stage{stage}"]["clip"]["trainable"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(expected)
    assert not any("vision_tower" in name for name in model.state_dict())


@pytest.mark.parametrize("flag", EXPECTED["stage2"]["trainable_by_flags"])
def test_flags(flag):
    """`freeze_backbone` leaves projector and head, as the reference's flags in their order do."""
    model = golden_llava()
    stage = 1 if flag == "tune_mm_mlp_adapter" else 2
    flags = {flag: True} if flag.startswith("freeze") else {}
    trainable(model, stage, **flags)
    expected = EXPECTED["stage2"]["trainable_by_flags"][flag]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(expected)


@pytest.mark.parametrize("towers", TOWERS)
def test_stage_1_with_checkpointing(towers):
    """Embeddings are frozen: the graph runs through the projector, and gradients stay the same."""
    model, given = prepared("stage1", towers)
    model.train()
    model(**given).loss.backward()
    plain = gradients(model)
    model.gradient_checkpointing_enable()
    model(**given).loss.backward()
    again = gradients(model)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-7, rtol=1e-5)
