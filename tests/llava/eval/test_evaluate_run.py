"""`law evaluate` and its checkpoint: what tells it, what it needs, what several processes share."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tiny import save_encoder

from llava.eval.evaluation.fingerprint import SMALL, fingerprint
from llava.eval.evaluation.subject import subject

CONFIG = {"model_type": "llava_llama", "conversation_version": "v1"}


@pytest.fixture
def two(tmp_path):
    """Two equal checkpoints, each with a safetensors file and an archive of PyTorch."""
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    (one / "vocab.json").write_text("{}")
    tensors = {f"layer.{i}": torch.zeros(SMALL // 4) for i in range(5)}
    save_file(tensors, one / "model.safetensors")
    torch.save({"projector": torch.zeros(SMALL)}, one / "mm_projector.bin")
    torch.save(
        {"older": torch.zeros(SMALL)}, one / "older.bin", _use_new_zipfile_serialization=False
    )
    shutil.copytree(one, tmp_path / "two")
    return one, tmp_path / "two"


@pytest.mark.parametrize("place", ["layer.0", "layer.2", "layer.4"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_changed_tensor_changes_the_fingerprint(two, place, share):
    """Whichever tensor it is, and wherever within it."""
    one, other = two
    assert fingerprint(str(one)) == fingerprint(str(other))
    tensors = {f"layer.{i}": torch.zeros(SMALL // 4) for i in range(5)}
    tensors[place][int(share * (SMALL // 4 - 1))] = 1
    save_file(tensors, other / "model.safetensors")
    assert fingerprint(str(one)) != fingerprint(str(other))


@pytest.mark.parametrize("name", ["projector", "older"])
def test_a_changed_archive_changes_the_fingerprint(two, name):
    """Of torch.save, in its present and its older form, wherever it changed."""
    one, other = two
    changed = torch.zeros(SMALL)
    changed[12345] = 1
    file = {"projector": "mm_projector.bin", "older": "older.bin"}[name]
    torch.save({name: changed}, other / file, _use_new_zipfile_serialization=name == "projector")
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_an_archive_without_checksums(two):
    """Is hashed whole: what stands in place of checksums tells nothing."""
    one, other = two
    torch.serialization.set_crc32_options(False)
    try:
        for folder, value in ((one, 0), (other, 1)):
            changed = torch.zeros(SMALL)
            changed[12345] = value
            torch.save({"projector": changed}, folder / "mm_projector.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert fingerprint(str(one)) != fingerprint(str(other))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "preprocessor_config.json"])
def test_a_changed_tokenizer_changes_the_fingerprint(two, name):
    """And a processor."""
    one, other = two
    (other / name).write_text('{"a": 1}')
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_a_changed_tower_changes_the_fingerprint(tmp_path):
    """Where a folder beside the checkpoint holds its weights."""
    save_encoder(tmp_path / "clip", "clip_vision_model")
    config = CONFIG | {"mm_vision_tower": str(tmp_path / "clip")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    before = subject(str(tmp_path / "run")).fingerprint
    assert subject(str(tmp_path / "run")).fingerprint == before
    save_encoder(tmp_path / "clip", "clip_vision_model", seed=1)
    assert subject(str(tmp_path / "run")).fingerprint != before
