"""`--scorer head`: a trained head's scores, and what a bag of patches cannot know."""

import argparse
import json
import random
from itertools import islice

import numpy as np
import pytest
import torch
from headworld import flags, tower_without_positions
from safetensors.torch import load_file, save_file

from A_score.contrastive.train import main
from llava.errors import LawError, UsageError
from llava.eval.pairs import head_score
from llava.eval.pairs.flags import head as head_flags
from llava.eval.pairs.items import Item
from llava.eval.pairs.shapes import OBJECT_PAIRS, RELATIONS, Scene, all_captions
from llava.model.contrastive.config import HeadConfig, TextConfig
from llava.model.contrastive.model import Head
from llava.model.contrastive.saved import load_head, save_head
from llava.model.contrastive.texts import text_source
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.registry import resolve


def pair_items(world):
    lines = (world / "data/pairs.jsonl").read_text().splitlines()
    return [
        Item(
            id=record["id"],
            images=tuple(world / "data" / name for name in record["images"]),
            captions=tuple(record["captions"]),
            right=(0, 1),
            choices=((0, 1), (0, 1)),
            pairs=((0, 1),),
        )
        for record in map(json.loads, lines)
    ]


def right(scores):
    """(image right, pair right), whole numbers."""
    each = [(s[0, 0] > s[0, 1], s[1, 1] > s[1, 0]) for s in scores]
    return sum(map(sum, each)), sum(map(all, each))


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """Heads of a few steps without and with RoPE."""
    out = tmp_path_factory.mktemp("heads")
    for config in ("pacl", "pacl_rope"):
        main(flags(world, out / config, config=config, steps=2))
    return out


def scorer(folder, *more):
    parser = argparse.ArgumentParser()
    head_flags.add_arguments(parser)
    given = ["--head", str(folder), "--device", "cpu", *more]
    return head_score.make(parser.parse_args(given))


def test_a_bag_of_patches_is_right_about_half(world, folders):
    """Both images of a pair get the same scores: one is right, never both, whatever was learned."""
    items = pair_items(world)
    scores = scorer(folders / "pacl").scores(items)
    assert right(scores) == (len(items), 0)
    assert max(abs(s[0] - s[1]).max() for s in scores) < 1e-6
    turned = scorer(folders / "pacl_rope").scores(items)
    assert min(abs(s[0] - s[1]).max() for s in turned) > 1e-4


def test_batches_and_chunks_do_not_matter(world, folders):
    items = pair_items(world)
    whole = scorer(folders / "pacl_rope").scores(items)
    single = scorer(folders / "pacl_rope", "--batch-size", "1")
    for item, expected in zip(items, whole, strict=True):
        np.testing.assert_allclose(single.scores([item])[0], expected, atol=1e-6)


def test_only_what_is_needed(world, folders):
    first = pair_items(world)[0]
    item = Item("x", first.images[:1], (*first.captions, all_captions()[0]), (0,), ((0, 1),))
    scores = scorer(folders / "pacl").scores([item])[0]
    assert np.isnan(scores).tolist() == [[False, False, True]]


def test_facts(world, folders):
    plain, turned = (scorer(folders / name).facts() for name in ("pacl", "pacl_rope"))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["head"] == "pacl"
    assert turned["head"] == "pacl-rope"
    assert plain["fingerprint"] != turned["fingerprint"]
    assert plain["spec_hash"] == resolve(str(world / "tower")).parts[0].hash()
    assert scorer(folders / "pacl").facts() == plain
    assert plain["protocol"].startswith("pacl/text-table/train-")
    assert plain["protocol"] != turned["protocol"]  # two heads of a tower are two columns


def test_a_table_has_no_other_captions(world, folders):
    first = pair_items(world)[0]
    item = Item("x", first.images, ("A dog.", "A cat."), (0, 1), ((0, 1), (0, 1)), ((0, 1),))
    with pytest.raises(LawError, match=r"'A dog\.' is none of the 48"):
        scorer(folders / "pacl").scores([item])


def test_a_folder_that_is_none(tmp_path, folders):
    with pytest.raises(LawError, match="expected a folder that `law a-score head --out` wrote"):
        scorer(tmp_path)
    with pytest.raises(UsageError, match="expected 1 or more"):
        scorer(folders / "pacl", "--batch-size", "0")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "has format 2, and this version reads 1"),
        ({"text": []}, "`text` is \\[\\]"),
        ({"towers": []}, "`towers` is"),
        ({"towers": {}}, "no mm_vision_specs"),
        ({"digest": None}, "`digest` is None"),
    ],
)
def test_a_config_that_is_none(folders, tmp_path, change, expected):
    facts = json.loads((folders / "pacl/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | change))
    with pytest.raises(LawError, match=expected):
        load_head(tmp_path)


def test_damaged_weights_are_refused(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders / "pacl/config.json").read_text())
    data = bytearray((folders / "pacl/head.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "head.safetensors").write_bytes(data)
    with pytest.raises(LawError, match="copy it again"):
        load_head(tmp_path)


def test_the_tower_may_move(world, folders, tmp_path):
    """Its weights are found by --tower-alias, and must be those of training."""
    items = pair_items(world)[:2]
    before = scorer(folders / "pacl_rope").scores(items)
    moved = tmp_path / "moved"
    tower_without_positions(moved)
    alias = ("--tower-alias", f"{world / 'tower'}={moved}")
    for one, other in zip(scorer(folders / "pacl_rope", *alias).scores(items), before, strict=True):
        np.testing.assert_array_equal(one, other)
    state = load_file(moved / "model.safetensors")
    next(iter(state.values())).mul_(2)
    save_file(state, moved / "model.safetensors")
    with pytest.raises(LawError, match="other weights"):
        scorer(folders / "pacl_rope", *alias)


def test_a_combination(world, tmp_path):
    """A head on two towers joined, trained live and out of a store, asked the pairs."""
    other = tower_without_positions(tmp_path / "other", hidden_size=12, num_attention_heads=2)
    command = flags(world, tmp_path / "out", config="pacl_rope", steps=2)
    command[command.index("--tower") + 1] = f"{world / 'tower'}+{other}"
    main([*command, "--features", str(tmp_path / "store")])
    both = scorer(tmp_path / "out")
    assert both.saved.head.channels == 24 + 12
    assert both.saved.frame == "crop"
    items = pair_items(world)
    assert all(np.isfinite(one).all() for one in both.scores(items))
    before = (tmp_path / "out/head.safetensors").read_bytes()
    command[command.index("--out") + 1] = str(tmp_path / "live")
    main(command)
    assert (tmp_path / "live/head.safetensors").read_bytes() == before


def scenes(seed, relations):
    rng = random.Random(seed)
    while True:
        for one, other in rng.sample(OBJECT_PAIRS, len(OBJECT_PAIRS)):
            yield Scene.drawn(rng, one, other, rng.choice(relations))


@pytest.mark.slow
def test_positions_make_the_difference(tmp_path):
    """A bag of patches stays at no pair at all; turned by their places, most pairs are right."""
    tower_without_positions(tmp_path / "tower", hidden_size=96, num_hidden_layers=1)
    representation = resolve(str(tmp_path / "tower"))
    tower = build_tower(representation)

    def tokens(pictures):
        return tower(tower.preprocess([scene.picture() for scene in pictures]))

    train = list(islice(scenes(0, list(RELATIONS)), 4000))
    tests = list(islice(scenes(1, ["left", "above"]), 60))
    train_BNC = torch.cat([tokens(train[i : i + 200]) for i in range(0, len(train), 200)])
    told = [scene.caption for scene in train]
    one_BNC, other_BNC = tokens(tests), tokens([scene.swapped for scene in tests])
    found = {}
    for rope in (False, True):
        torch.manual_seed(0)
        text = TextConfig(source="table", width=64)
        config = HeadConfig(pooling="sum", rope=rope, width=64, dropout=0.0, text=text)
        head = Head(config, representation.dim, text_source(text, all_captions()))
        optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], 5e-3)
        for step in range(500 if rope else 20):
            batch = np.random.default_rng(step).integers(len(train), size=64)
            loss = head.loss(train_BNC[batch], [told[i] for i in batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        save_head(tmp_path / "head", head, representation, "own", "float32", {})
        head = load_head(tmp_path / "head").head
        with torch.no_grad():
            scores = [
                head.scores(
                    head.patches(torch.stack([one_NC, other_NC])),
                    head.embed([scene.caption, scene.swapped.caption]),
                )
                for one_NC, other_NC, scene in zip(one_BNC, other_BNC, tests, strict=True)
            ]
        found[rope] = right(scores)
    assert found[False] == (len(tests), 0)
    assert found[True][1] > 0.6 * len(tests)
