"""`law a-score head`: what it writes, that a killed run goes on, that two processes are one."""

import json
import re
import shutil
import subprocess

import duals
import pytest
import torch
from headworld import ROOT, SMALL, flags, torchrun

from A_score.contrastive import training
from A_score.contrastive.config import read_config
from A_score.contrastive.heldout import alignment, pools, recall
from A_score.contrastive.train import main
from A_score.contrastive.training import Batches
from llava.errors import ConfigError, LawError, UsageError
from llava.model.contrastive.config import HeadConfig, TextConfig
from llava.model.contrastive.model import Head
from llava.model.contrastive.saved import load_head
from llava.model.contrastive.texts import text_source
from llava.results import read


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run with RoPE out of a feature store, measured on its own data."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    more = ["--features", str(out.parent / "store"), "--results", str(out.parent / "r.csv")]
    more += ["--held-out", str(world / "data/train.json"), "--pool", "8", "--name", "shapes"]
    main(flags(world, out, *more, config="pacl_rope"))
    return out


def weights(folder):
    return load_head(folder).head.state_dict()


def assert_same(one, other, **near):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **(near or {"rtol": 0, "atol": 0}))


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_what_is_written(trained):
    lines = log(trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert read_config(trained / "config.yaml").head.rope
    saved = load_head(trained)
    assert not saved.head.training
    assert saved.head.config.rope
    assert saved.training["steps"] == 6
    assert saved.frame == "own"
    assert len(saved.head.texts.captions) == 48


def test_held_out_alignment(trained):
    found = json.loads((trained / "heldout.json").read_text())
    assert (found["n"], found["pool"], found["left_out"]) == (48, 8, 0)
    text = (trained.parent / "r.csv").read_text()
    for name, unit in (("image_to_text", "fraction"), ("infonce", "nats")):
        line = next(line for line in text.splitlines() if f"shapes_{name}" in line)
        assert f",A_head,shapes_{name},{found[name]['mean']}" in line
        assert f",{unit}," in line
        assert re.search("pacl-rope/text-table/train-[0-9a-f]{12}/pool8/heldout-", line)
    assert len(read(trained.parent / "r.csv")) == 3


def test_the_tower_runs_or_is_read(world, trained, tmp_path):
    """The same numbers with and without a feature store."""
    main(flags(world, tmp_path / "live", config="pacl_rope"))
    assert log(tmp_path / "live") == log(trained)
    assert_same(weights(tmp_path / "live"), weights(trained))


def test_a_killed_run_ends_the_same(world, trained, tmp_path, monkeypatch):
    """Killed after the fourth of six steps, whose checkpoint is whole; dropout is on."""
    own = training.Training._step

    def killed(self, step, batch):
        if step == 4:
            raise KeyboardInterrupt
        return own(self, step, batch)

    again = flags(world, tmp_path / "run", config="pacl_rope")
    monkeypatch.setattr(training.Training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        main(again)
    assert not (tmp_path / "run/head.safetensors").exists()
    monkeypatch.setattr(training.Training, "_step", own)
    main(again)
    assert log(tmp_path / "run") == log(trained)
    assert_same(weights(tmp_path / "run"), weights(trained))


def test_a_learned_temperature_can_come_back(tmp_path):
    """From where it may not go; its gradient is not lost there."""
    text = TextConfig("table", width=4)
    config = HeadConfig(width=4, temperature=0.01, learned_temperature=True, text=text)
    head = Head(config, 6, text_source(text, ["a", "b"]))
    with torch.no_grad():
        head.log_scale += 1
    head.limit_scale()
    assert head.scale.item() == pytest.approx(100)
    head.loss(torch.randn(2, 3, 6), ["a", "b"]).backward()
    assert head.log_scale.grad != 0


def test_texts_may_be_elsewhere(world, tmp_path):
    """Of a hub id that no network is there for; the tower needs no alias of its own."""
    duals.save_dual(tmp_path / "clip", "clip")
    text = '{"source": "clip", "model": "some/hub-id"}'
    alias = ("--tower-alias", f"some/hub-id={tmp_path / 'clip'}")
    main(flags(world, tmp_path / "run", *alias, **{"head.text": text, "steps": 1}))
    assert load_head(tmp_path / "run").head.config.text.model == str(tmp_path / "clip")


def test_a_missing_image_is_found_before_training(world, tmp_path):
    with pytest.raises(LawError, match=r"48 of 48 images are not there, such as .*--images"):
        main(flags(world, tmp_path / "run", "--images", str(tmp_path)))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_protocol_says_how_a_head_was_trained(world, trained, tmp_path):
    """Not where its data are, nor how often it was saved; another frame or data is another way."""

    def way(out, *more, **changes):
        main(flags(world, out, *more, config="pacl_rope", **changes))
        return load_head(out).training["way"]

    known = load_head(trained).training["way"]
    assert known[:2] == ["pacl-rope", "text-table"]
    assert known[2].startswith("train-")
    shutil.copytree(world / "data", tmp_path / "data", copy_function=shutil.copyfile)
    moved = ("--data", str(tmp_path / "data/train.json"), "--images", str(tmp_path / "data"))
    assert way(tmp_path / "moved", *moved, save_steps=5) == known
    assert way(tmp_path / "padded", "--frame", "pad") == [*known[:2], "frame-pad", known[2]]
    records = json.loads((tmp_path / "data/train.json").read_text())
    (tmp_path / "data/train.json").write_text(json.dumps(records[::-1]))
    assert way(tmp_path / "other", *moved)[2] != known[2]


def test_another_run_is_refused(world, trained, tmp_path):
    before = (trained / "config.yaml").read_text()
    with pytest.raises(UsageError, match="of another run"):
        main(flags(world, trained, config="pacl_rope", seed=1))
    assert (trained / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "more", "expected"),
    [
        ({"head.poolin": "sum"}, [], "unknown key 'poolin'; did you mean 'pooling'"),
        ({"head.kind": "sparc"}, [], "take clip or llm"),
        ({"negatives": "leftrigh"}, [], "did you mean 'leftright'"),
        ({}, ["--results", "r.csv"], "add --held-out"),
        ({}, ["--pool", "1"], "expected 2 or more"),
        ({}, ["--set", "batch_size"], "expected KEY=VALUE"),
        ({"batch_size": 0}, [], "expected 1 or more"),
        ({"batch_size": 49}, [], "more than the 48 records .* --set batch_size=48"),
        ({"head.temperature": 0.001}, [], "expected 0.01 or more"),
        ({}, ["--dtype", "float33"], "did you mean 'float32'"),
        ({}, ["--tower-batch", "0"], "1 image or more"),
        ({"head.text": '{"source": "clip", "model": "TOWER"}'}, [], "no text half"),
    ],
)
def test_what_cannot_be_meant(world, tmp_path, changes, more, expected):
    changes = {key: str(v).replace("TOWER", str(world / "tower")) for key, v in changes.items()}
    with pytest.raises(UsageError, match=expected):
        main(flags(world, tmp_path / "run", *more, **changes))


def test_too_large_a_pool(world, tmp_path):
    """Is said before anything is trained."""
    with pytest.raises(LawError, match=r"48 different captions .* a pool of 64"):
        main(flags(world, tmp_path / "run", "--held-out", str(world / "data/train.json"), steps=1))
    assert not (tmp_path / "run/log.jsonl").exists()


def test_negatives_take_part(world, tmp_path):
    """Half of the captions have a left or right to exchange; the table knows what comes out."""
    main(flags(world, tmp_path / "own", steps=1))
    main(flags(world, tmp_path / "with", steps=1, negatives="leftright"))
    assert log(tmp_path / "with")[0]["loss"] > log(tmp_path / "own")[0]["loss"] + 0.05


@pytest.mark.parametrize("name", ["pacl", "pacl_rope", "sparc"])
def test_shipped_configs(name):
    config = read_config(ROOT / f"configs/A_score/{name}.yaml")
    assert config.head.kind == name.partition("_")[0]
    assert config.head.rope == (name != "pacl")
    assert config.total_steps(1_200_000) == 2920
    with pytest.raises(ConfigError, match=r"--set: head\.dropout: expected a number"):
        read_config(ROOT / f"configs/A_score/{name}.yaml", ["head.dropout=much"])


def test_batches_go_through_every_epoch():
    """Nothing stands twice in an epoch; what no whole batch has room for waits for the next."""
    batches = Batches(8, 3, seed=0)
    steps = [batches.of(step) for step in range(40)]
    for epoch in range(20):
        part = steps[2 * epoch] + steps[2 * epoch + 1]
        assert {number for _, number in part} == {epoch}
        assert len({i for i, _ in part}) == 6
    assert steps[0] != [(i, 0) for i, _ in steps[2]]
    assert {i for step in steps for i, _ in step} == set(range(8))
    assert Batches(8, 3, seed=0).of(3) == steps[3]


class Told:
    """Captions of records in place of a file's."""

    def __init__(self, captions, images=None):
        self.captions = captions
        self.images = images or [f"{i}.png" for i in range(len(captions))]

    def __len__(self):
        return len(self.captions)

    def caption(self, i, epoch):
        return self.captions[i]

    def image(self, i):
        return self.images[i]


def test_pools_have_no_caption_twice():
    told = ["a"] * 3 + ["b", "c", "d"] * 2 + ["e"]
    found, captions = pools(Told(told), 3, seed=0)
    assert len(found) == 3
    assert len({i for pool in found for i in pool}) == 9
    for pool in found:
        assert len({captions[i] for i in pool}) == 3
    assert pools(Told(told), 3, seed=0)[0] == found


def test_pools_have_no_image_twice():
    """Two records of one image would tie for each other's captions."""
    images = ["a", "a", "a", "b", "b", "c", "d", "e"]
    found, _ = pools(Told([f"caption {i}" for i in range(8)], images), 2, seed=0)
    assert len(found) >= 3
    for pool in found:
        assert len({images[i] for i in pool}) == 2
    with pytest.raises(LawError, match="3 different captions and 1 images; a pool of 2"):
        pools(Told(["a", "b", "c"], ["x"] * 3), 2, seed=0)


def test_recall_counts_no_ties():
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 2.0]])
    assert recall(scores) == pytest.approx(2 / 3)
    assert recall(torch.ones(3, 3)) == 0


class Oracle(torch.nn.Module):
    """Scores a given number for an image's own caption, 0 for others."""

    scale = torch.tensor(1.0)

    def __init__(self, sure):
        super().__init__()
        self.sure = sure

    def patches(self, tokens):
        return tokens

    def embed(self, captions):
        return captions

    def scores(self, patches, texts):
        return self.sure * torch.eye(len(texts))


@pytest.mark.parametrize(("sure", "right"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_alignment_of_an_oracle(sure, right, tmp_path):
    told = Told([f"caption {i}" for i in range(9)])
    found = alignment(Oracle(sure), len, told, tmp_path, 4, seed=0)
    assert (found.n, found.left_out) == (8, 1)
    assert found.mean("image_to_text") == found.mean("text_to_image") == right
    expected = torch.tensor(3 + torch.e**sure).log().item() - sure
    assert found.mean("infonce") == pytest.approx(expected)
    assert found.stderr("infonce") == pytest.approx(0)


@pytest.mark.slow
def test_two_processes_are_one(world, tmp_path):
    """The same losses and weights up to the order of sums; with negatives, unequal in number."""
    same = SMALL | {"head.dropout": 0, "negatives": "leftright", "steps": 3}
    del same["head.pooling"]
    main(flags(world, tmp_path / "one", **same))
    more = ["--features", str(tmp_path / "store")]
    done = subprocess.run(
        torchrun(*flags(world, tmp_path / "two", *more, **same)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "two")
    for one, other in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-4)
