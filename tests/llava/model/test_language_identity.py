"""Language models that are told apart by more than the last part of a name."""

import json

import pytest

from llava.model.language_identity import are_different, identity

NAMES = {
    "lmsys/vicuna-7b-v1.5": "lmsys/vicuna-7b-v1.5",
    "lmsys/vicuna-7b-v1.5/": "lmsys/vicuna-7b-v1.5",
    "/cache/hub/models--lmsys--vicuna-7b-v1.5/snapshots/0a1b": "lmsys/vicuna-7b-v1.5",
    "/cache/hub/models--gpt2/snapshots/0a1b/": "gpt2",
    "/gone/checkpoints/vicuna-7b": "vicuna-7b",
    "./checkpoints/vicuna-7b": "vicuna-7b",
    "vicuna-7b": "vicuna-7b",
    "": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert identity(name) == NAMES[name]


def folder(place, tokenizer=b"words", **config):
    """A language model's folder, as far as it is looked at; gives its path."""
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"vocab_size": 9, "rope": {"a": 1}} | config))
    if tokenizer:
        (place / "tokenizer.json").write_bytes(tokenizer)
    return str(place)


def test_folders(tmp_path, monkeypatch):
    """By config and tokenizer; what saving changes does not count, nor the way that it is named."""
    one = identity(folder(tmp_path / "a" / "llm"))
    assert one.startswith("llm@")
    saved = folder(tmp_path / "b" / "llm", transformers_version="9", dtype="bfloat16")
    assert identity(saved) == one
    monkeypatch.chdir(tmp_path / "a" / "llm")
    assert identity(".") == identity("../llm/") == one
    snapshot = folder(tmp_path / "models--a--b" / "snapshots" / "0a1b")
    (tmp_path / "link").symlink_to(snapshot)
    assert identity(str(tmp_path / "link")) == identity(snapshot) == "a/b"
    others = [
        folder(tmp_path / "c" / "llm", vocab_size=10),
        folder(tmp_path / "d" / "llm", tokenizer=b"other words"),
        folder(tmp_path / "e" / "llm", tokenizer=b""),
    ]
    assert len({one, *map(identity, others)}) == 4
    assert all(are_different(one, identity(other)) for other in others)


def test_differences():
    """Of organisation, name or digest, where both have it."""
    for one, other in (("a/x", "b/x"), ("a/x", "a/y"), ("x@1", "x@2"), ("x@1", "y@1"), ("x", "y")):
        assert are_different(one, other)
    for one, other in (("a/x", "A/X"), ("a/x", "x"), ("a/x", "x@1"), ("x", "x@1"), ("", "a/x")):
        assert not are_different(one, other)
