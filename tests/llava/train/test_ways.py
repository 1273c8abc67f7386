"""Other ways to the same loss: packed, from the store, with adapters; and the A score."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from world import as_flags, launch, losses, stage1, stage2

from llava.errors import LawError
from llava.extraction import main as features
from llava.train.train import main as train


def run(flags, output):
    """Trains in this process; the folder."""
    train(flags)
    return output


def test_packed_is_unpacked(world, tmp_path):
    """All records in one step, in rows of 192 tokens or one by one: the same loss and update."""
    flags = {"max_steps": 1, "group_by_modality_length": False}
    apart = stage2(world, tmp_path / "apart", per_device_train_batch_size=30, **flags)
    run(apart, tmp_path / "apart")
    packed = stage2(
        world, tmp_path / "packed", packing=True, per_device_train_batch_size=100, **flags
    )
    run(packed, tmp_path / "packed")
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "apart"), rel=1e-5)
    ours = load_file(tmp_path / "packed" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "apart" / "model.safetensors").items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tower", ["clip", "clip+dinov2"])
def test_stored_features_are_live_ones(world, tmp_path, tower):
    """The tower is not even loaded, and every weight is the same to the last bit."""
    name = "+".join(str(world / part) for part in tower.split("+"))
    frame = "own" if tower == "clip" else "crop"
    for part in name.split("+"):
        given = {"images": world / "images", "out": tmp_path / "store", "model": part}
        features(as_flags(given | {"frame": frame}))
    run(stage1(world, tmp_path / "live", vision_tower=name), tmp_path / "live")
    flags = {"vision_features": "store", "feature_store": tmp_path / "store"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava.model.multimodal_encoder.base.VisionTower.__init__", None)
        run(stage1(world, tmp_path / "stored", vision_tower=name, **flags), tmp_path / "stored")
    live, stored = (tmp_path / way / "mm_projector.safetensors" for way in ("live", "stored"))
    assert live.read_bytes() == stored.read_bytes()


def test_missing_features_name_the_command(world, tmp_path):
    """An empty store is refused before anything is trained."""
    flags = {"vision_features": "store", "feature_store": tmp_path / "store"}
    with pytest.raises(LawError, match="law features"):
        train(stage1(world, tmp_path / "run", **flags))


def test_adapters(world, tmp_path):
    """LoRA saves adapters and projector, goes on from its checkpoint, and merges to the same."""
    pytest.importorskip("peft")
    flags = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    flags |= {"save_strategy": "steps", "save_steps": 2}
    whole = run(stage2(world, tmp_path / "whole", **flags), tmp_path / "whole")
    for name in ("adapter_config.json", "non_lora_trainables.bin", "config.json"):
        assert (whole / name).is_file()
    assert not (whole / "model.safetensors").exists()
    begun = run(stage2(world, tmp_path / "begun", **flags | {"max_steps": 2}), tmp_path / "begun")
    run(stage2(world, begun, **flags), begun)
    for name in ("adapter_model.safetensors", "non_lora_trainables.safetensors"):
        assert (whole / name).read_bytes() == (begun / name).read_bytes()
    assert losses(begun)[-2:] == losses(whole)[-2:]


@pytest.fixture(scope="module")
def projector(world, tmp_path_factory):
    """A projector of stage 1."""
    output = tmp_path_factory.mktemp("projector")
    return run(stage1(world, output), output) / "mm_projector.bin"


def score(world, output, projector, **flags):
    """`a_score.json` of a run in this process."""
    given = {"a_score": True, "a_score_samples": 20, "pretrain_mm_mlp_adapter": projector}
    train(stage1(world, output, **(given | flags)))
    return json.loads((output / "a_score.json").read_text())


def test_a_score(world, tmp_path, projector, capsys):
    """Independent of the batch size; every mean follows from the sums; a row for the policy."""
    table = tmp_path / "results.csv"
    found = [
        score(world, tmp_path / str(size), projector, per_device_train_batch_size=size)
        for size in (1, 3, 10)
    ]
    for one in found[1:]:
        assert one["a_nll_token_mean"] == pytest.approx(found[0]["a_nll_token_mean"], rel=1e-6)
        assert one["nll_sums"] == pytest.approx(found[0]["nll_sums"], rel=1e-6)
        assert (one["records"], one["tokens"]) == (list(range(20)), found[0]["tokens"])
    one = found[0]
    assert one["n_tokens"] == sum(one["tokens"])
    assert one["a_nll_token_mean"] == pytest.approx(sum(one["nll_sums"]) / one["n_tokens"])
    means = [s / t for s, t in zip(one["nll_sums"], one["tokens"], strict=True)]
    assert one["a_nll_sample_mean"] == pytest.approx(sum(means) / 20)
    assert one["a_score"] == -one["a_nll_token_mean"]
    score(world, tmp_path / "row", projector, results=table)
    (row,) = csv.DictReader(table.open())
    assert (row["quantity"], row["unit"], row["n"]) == ("A_nll", "nats", "20")
    assert row["higher_is_better"] == "false"
    assert float(row["value"]) == pytest.approx(one["a_nll_token_mean"], rel=1e-6)
    assert "nats per token" in capsys.readouterr().out


def test_too_few_records_for_the_score(world, tmp_path, projector):
    """Fewer than asked for is no score of so many."""
    with pytest.raises(LawError, match=r"only 24 records .* expected 100"):
        score(world, tmp_path, projector, a_score_samples=100)


@pytest.mark.slow
def test_a_score_of_two_processes(world, tmp_path, projector):
    """Each scores its share; the first writes what one process would have."""
    alone = score(world, tmp_path / "one", projector)
    flags = {"a_score": True, "a_score_samples": 20, "pretrain_mm_mlp_adapter": projector}
    given = stage1(world, tmp_path / "two", per_device_train_batch_size=3, **flags)
    assert launch(given, processes=2).count("A score (nll)") == 1
    both = json.loads((tmp_path / "two" / "a_score.json").read_text())
    assert both["nll_sums"] == pytest.approx(alone["nll_sums"], rel=1e-6)
    assert both["records"] == alone["records"]
