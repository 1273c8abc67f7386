"""`--scorer embed`: cosines of the embedder's vectors, once for every image and caption."""

import argparse
import re

import numpy as np
import pytest
from tiny import picture
from world import make_world, stage1, stage2

from llava.errors import LawError, UsageError
from llava.eval.embedding import FACTS, Entry, instruction, trained_how
from llava.eval.pairs.embed_score import make
from llava.eval.pairs.flags.embed import add_arguments
from llava.eval.pairs.items import Item
from llava.eval.pairs.scorer import SCORERS, scorer_module
from llava.eval.vision_cache import VisionCache
from llava.extraction import decode
from llava.train.train import main as train

CAPTIONS = ("A fox to the left of a box", "A fox to the right of a box", "a tree", "an apple")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with a stage 2."""
    root = make_world(tmp_path_factory.mktemp("embed_score"))
    train(stage1(root, root / "stage1"))
    train(stage2(root, root / "stage2", root / "stage1" / "mm_projector.bin"))
    return root


@pytest.fixture(scope="module")
def items(world):
    """A pair that asks left or right, and one image whose captions tell no question."""
    folder = world / "images"
    pair = (folder / "0.png", folder / "1.png")
    return [
        Item("pair", pair, CAPTIONS[:2], (0, 1), ((0, 1), (0, 1)), ((0, 1),)),
        Item("single", (folder / "0.png",), CAPTIONS[1:], (1,), ((1, 2),)),
    ]


def scorer(world, *flags):
    """As the command makes it."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return make(parser.parse_args(["--model-path", str(world / "stage2"), *flags]))


def test_scores(world, items):
    """Equal to the cosines of single vectors; what is not needed is NaN."""
    found = scorer(world, "--batch-size", "3")
    pair, single = found.scores(items)
    asked = instruction("Is the fox to the left of or to the right of the box?")
    for matrix, item, text in ((pair, items[0], asked), (single, items[1], instruction())):
        for i, path in enumerate(item.images):
            image = found.embedder.embed([Entry(text, lambda path=path: decode(path.read_bytes()))])
            texts = found.embedder.embed([Entry(caption) for caption in item.captions])
            expected = (texts.double() @ image[0].double()).numpy()
            expected[~item.needed[i]] = np.nan
            np.testing.assert_allclose(matrix[i], expected, atol=1e-6)
    assert np.isnan(single[0]).tolist() == [True, False, False]
    assert pair.dtype == np.float64


def test_no_question(world, items):
    """Changes the scores of items that have one, and the facts."""
    plain, asked = scorer(world, "--no-question"), scorer(world)
    assert abs(plain.scores(items)[0] - asked.scores(items)[0]).max() > 1e-5
    np.testing.assert_allclose(plain.scores(items)[1], asked.scores(items)[1], atol=1e-6)
    assert plain.facts()["instruction"] == "Represent the given image."
    assert {k for k, v in plain.facts().items() if v != asked.facts()[k]} == {
        "instruction",
        "order_seed",
        "protocol",
    }


def test_facts(world):
    """Equal for equal scorers, plain values, and the model's contents among them."""
    one, other = scorer(world).facts(), scorer(world, "--batch-size", "2").facts()
    assert one == other
    assert one["representation"]
    assert len(one["fingerprint"].split("+")[0]) == 16
    assert one["dtype"] == "float32"
    assert one["select_feature"] == "patch"


def test_a_protocol_tells_an_embedder_from_its_base(world, tmp_path):
    """Both see by one tower, so without it a results table would hold the newer row alone."""
    assert scorer(world).facts()["protocol"] == "last-token/untrained/question/order0/float32"
    (tmp_path / FACTS).write_text('{"base": "a", "base_fingerprint": "b", "seed": 0}')
    known = trained_how(str(tmp_path))
    assert re.fullmatch("trained-[0-9a-f]{8}", known)
    (tmp_path / FACTS).write_text('{"seed": 0, "base": "c", "base_fingerprint": "d"}')
    assert trained_how(str(tmp_path)) == known
    (tmp_path / FACTS).write_text('{"seed": 1, "base": "c", "base_fingerprint": "d"}')
    assert trained_how(str(tmp_path)) != known


def test_each_image_once(world, items, monkeypatch):
    """However many items show it, and each caption once."""
    found = scorer(world)
    seen = []
    embed = found.embedder.embed
    monkeypatch.setattr(found.embedder, "embed", lambda e, what: seen.append(len(e)) or embed(e))
    found.scores([items[0], items[0], items[1]])
    assert seen == [3, 4]  # image 0 with a question and without; four captions


def test_no_call_rests_on_another(world, items, monkeypatch):
    """A run that was killed has nothing of the calls before: tokens are computed anew in each."""
    found, computed = scorer(world), []
    compute = VisionCache._compute
    monkeypatch.setattr(
        VisionCache, "_compute", lambda *given: computed.append(1) or compute(*given)
    )
    first = found.scores(items)[0]
    count = len(computed)
    assert np.array_equal(found.scores(items[:1])[0], first, equal_nan=True)
    assert len(computed) == 2 * count == 2


def test_broken_image(world, tmp_path):
    """Named with its item."""
    picture(20, 20).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    images = (tmp_path / "a.png", tmp_path / "b.png")
    item = Item("7", images, CAPTIONS[:2], (0, 1), ((0, 1), (0, 1)), ((0, 1),))
    with pytest.raises(LawError, match=r"item 7, image 1: .*b\.png: does not decode"):
        scorer(world).scores([item])


def test_table_and_flags(world):
    """Listed, and what cannot be scored with is refused before weights are read."""
    assert scorer_module("embed").make is make
    assert "embed" in SCORERS
    with pytest.raises(UsageError, match="--batch-size 0"):
        scorer(world, "--batch-size", "0")
    with pytest.raises(UsageError, match="projector of a stage 1"):
        scorer(world, "--model-path", str(world / "stage1"))
