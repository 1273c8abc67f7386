"""The training of an embedder: what it trains, learns and leaves, killed or shared."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from world import as_flags, losses, stage1, stage2

from llava.errors import LawError, UsageError
from llava.eval.embedding import Entry, instruction, load_embedder
from llava.eval.pairs.train_embedder import main
from llava.model.builder import load_pretrained_model
from llava.train.embedding import run
from llava.train.embedding.pairs import Pairs, turns
from llava.train.train import main as train

STARTED = "from llava.eval.pairs.train_embedder import main; import sys; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def llava(world, tmp_path_factory):
    """A stage 2 to train on."""
    root = tmp_path_factory.mktemp("llava")
    train(stage1(world, root / "stage1"))
    train(stage2(world, root / "stage2", root / "stage1" / "mm_projector.bin"))
    return root


@pytest.fixture
def flags(world, llava, tmp_path):
    """Flags of a short run, with changes."""

    def made(output="run", **changed):
        given = {
            "model_name_or_path": llava / "stage2",
            "data_path": world / "talks.json",
            "image_folder": world / "images",
            "output_dir": tmp_path / output,
            "batch_size": 8,
            "chunk_size": 2,
            "max_steps": 6,
            "warmup_steps": 2,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "logging_steps": 1,
        }
        return as_flags(given | changed)

    return made


def adapters(folder):
    """The tensors of a folder of adapters."""
    return load_file(folder / "adapter_model.safetensors")


def test_trains_adapters_alone(flags, llava, tmp_path):
    """Of the language model; the rest is as it was; the folder says its base itself."""
    main(flags())
    written = adapters(tmp_path / "run")
    assert all("lora_" in name and "mm_projector" not in name for name in written)
    assert any(tensor.abs().max() > 0 for name, tensor in written.items() if "lora_B" in name)
    before = load_file(llava / "stage2" / "model.safetensors")
    kept = load_file(tmp_path / "run" / "non_lora_trainables.safetensors")
    for name, tensor in kept.items():
        assert torch.equal(tensor, before[name.removeprefix("base_model.model.")])
    merged = load_embedder(str(tmp_path / "run")).model
    given = load_pretrained_model(str(tmp_path / "run"), str(llava / "stage2"))[1]
    moved = 0
    for (name, one), other in zip(merged.named_parameters(), given.parameters(), strict=True):
        assert torch.equal(one, other)
        moved += not torch.equal(one, before[name])
    assert moved == len([name for name in written if "lora_A" in name])
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 64, 0.1)


def test_goes_on_with_the_same_numbers(flags, tmp_path, monkeypatch):
    """After a stop between checkpoints: the same losses, the same adapters, to the last bit."""
    main(flags("whole"))
    steps = iter(range(100))

    def stopped(*arguments):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    original = run.cached_backward
    monkeypatch.setattr(run, "cached_backward", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(flags("cut"))
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "adapter_model.safetensors").exists()
    assert len(losses(tmp_path / "cut")) == 5
    main(flags("cut"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6
    one, other = adapters(tmp_path / "cut"), adapters(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = (tmp_path / "cut" / "log.jsonl").read_text()
    main(flags("cut"))  # is done: nothing is trained again
    assert (tmp_path / "cut" / "log.jsonl").read_text() == before


def test_chunks_do_not_matter(flags, tmp_path):
    """But for dropout, which every chunk draws for itself."""
    main(flags("one", lora_dropout=0, chunk_size=1, max_steps=3))
    main(flags("all", lora_dropout=0, chunk_size=8, max_steps=3))
    one, whole = losses(tmp_path / "one"), losses(tmp_path / "all")
    assert one == pytest.approx(whole, abs=2e-4)
    for name, tensor in adapters(tmp_path / "one").items():
        torch.testing.assert_close(tensor, adapters(tmp_path / "all")[name], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_processes_are_one(flags, tmp_path):
    """With dropout, to rounding."""
    main(flags("one", max_steps=3))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    started = [sys.executable, "-c", STARTED]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", "--no-python", *started, *flags("two", max_steps=3)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
    for name, tensor in adapters(tmp_path / "two").items():
        torch.testing.assert_close(tensor, adapters(tmp_path / "one")[name], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_killed(flags, tmp_path):
    """By SIGKILL at once after a checkpoint; the next start ends as a run that was not."""
    main(flags("whole"))
    code = (
        "import os, signal, sys\nfrom llava.train.embedding import run\n"
        "from llava.eval.pairs.train_embedder import main\n"
        "save = run.save\n"
        "def killed(*a):\n    save(*a)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.save = killed\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags("cut")], capture_output=True)
    assert done.returncode == -9
    main(flags("cut"))
    one, other = adapters(tmp_path / "cut"), adapters(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dora(flags, tmp_path):
    """Lengths of weights are trained, written and read back."""
    main([*flags(max_steps=3), "--dora", "--gradient_checkpointing"])
    written = adapters(tmp_path / "run")
    assert any("lora_magnitude_vector" in name for name in written)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["use_dora"]
    weights = dict(load_embedder(str(tmp_path / "run")).model.named_parameters())
    stem = "model.layers.0.self_attn.q_proj"
    length = next(
        tensor for name, tensor in written.items() if f"{stem}.lora_magnitude_vector" in name
    )
    torch.testing.assert_close(weights[f"{stem}.weight"].norm(dim=1), length, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_learns(world, flags, tmp_path, llava):
    """Which caption belongs to which image: by chance before, most of them after."""
    given = {"data_path": world / "captions.json", "max_steps": 40, "learning_rate": 5e-3}
    main(flags(batch_size=24, chunk_size=24, lora_dropout=0, temperature=0.05, **given))
    records = json.loads((world / "captions.json").read_text())

    def right(path):
        embedder = load_embedder(str(path), batch_size=24)

        def opened(name):
            return lambda: Image.open(world / "images" / name).convert("RGB")

        text = instruction("Describe the image.")
        images = embedder.embed([Entry(text, opened(record["image"])) for record in records])
        said = [record["conversations"][1]["value"] for record in records]
        captions = embedder.embed([Entry(caption) for caption in said])
        chosen = (images @ captions.T).argmax(1).tolist()
        return sum(said[place] == said[i] for i, place in enumerate(chosen))

    assert right(llava / "stage2") < 6
    assert right(tmp_path / "run") > 12


def test_pairs(world, tmp_path):
    """A batch follows from seed and step; an epoch has every record once; turns change."""
    pairs = Pairs(str(world / "talks.json"), str(world / "images"), 5, seed=1)
    assert (len(pairs.usable), pairs.per_epoch) == (24, 4)
    again = Pairs(str(world / "talks.json"), str(world / "images"), 5, seed=1)
    texts = [[(p.query.text, p.target.text) for p in pairs.batch(step)] for step in range(9)]
    assert texts == [[(p.query.text, p.target.text) for p in again.batch(s)] for s in range(9)]
    shared = pairs.batch(3, 0, 2) + pairs.batch(3, 2, 3)
    assert [(p.query.text, p.target.text) for p in shared] == texts[3]
    places = [pair.target.where for step in range(4) for pair in pairs.batch(step)]
    assert len(set(places)) == 20
    assert places != [pair.target.where for step in range(4, 8) for pair in pairs.batch(step)]
    asked = {query for batch in texts for query, _ in batch}
    assert asked == {instruction("What is it?"), instruction("Sure?")}
    plain = Pairs(str(world / "talks.json"), str(world / "images"), 5, 1, questions=False)
    assert {pair.query.text for pair in plain.batch(0)} == {instruction()}


def test_turns():
    """Answers without words, and turns without answer, are none."""
    said = [("system", "x"), ("human", "<image>\nA?"), ("gpt", "b"), ("human", "C?"), ("gpt", " ")]
    record = {"conversations": [{"from": who, "value": text} for who, text in said]}
    assert turns(record) == [("A?", "b")]
    assert turns({}) == []


def test_refused(flags, world, llava, tmp_path):
    """What cannot be trained, before anything is loaded or written over."""
    with pytest.raises(UsageError, match="--max_steps 0: expected 1 or more"):
        main(flags(max_steps=0))
    with pytest.raises(UsageError, match="holds a projector; expected a whole LLaVA"):
        main(flags(model_name_or_path=llava / "stage1"))
    with pytest.raises(UsageError, match="multiple of 1 processes times --chunk_size 3"):
        main(flags(chunk_size=3))
    with pytest.raises(UsageError, match=r"24 of 30 records .* fewer than --batch_size 32"):
        main(flags(batch_size=32))
    records = json.loads((world / "talks.json").read_text())
    (tmp_path / "gone.json").write_text(json.dumps([records[0] | {"image": "gone.png"}] * 9))
    with pytest.raises(LawError, match=r"record 0: image .*gone\.png is not there"):
        main(flags(data_path=tmp_path / "gone.json"))
    (tmp_path / "out.json").write_text(json.dumps([records[0] | {"image": "../x.png"}] * 9))
    with pytest.raises(LawError, match=r"record 0: image \.\./x\.png: is no file inside"):
        main(flags(data_path=tmp_path / "out.json"))
    with pytest.raises(UsageError, match="holds a run of another kind"):
        main(flags(output_dir=llava / "stage2"))


def test_other_flags_when_going_on(world, flags, tmp_path):
    """Refused by name, as are other data, but not their place; `False` begins anew."""
    main(flags(max_steps=2))
    with pytest.raises(UsageError, match="was trained with seed 0, and now it is 1"):
        main(flags(max_steps=2, seed=1))
    talks = world / "talks.json"
    (tmp_path / "same.json").write_bytes(talks.read_bytes())
    main(flags(max_steps=2, data_path=tmp_path / "same.json"))  # is done
    records = json.loads(talks.read_text())
    (tmp_path / "same.json").write_text(json.dumps(records[::-1]))
    with pytest.raises(UsageError, match="was trained with records"):
        main(flags(max_steps=2, data_path=tmp_path / "same.json"))
    main(flags(max_steps=2, seed=1, resume_from_checkpoint=False))
    assert (tmp_path / "run" / "checkpoint-2.aside").is_dir()
