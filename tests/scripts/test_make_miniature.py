"""The miniature's world: same seed, same bytes; exact keypoints; a tower that learns."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
import torch
from make_miniature import GRID, SIDE
from make_miniature import main as make_miniature
from PIL import Image
from repository import ROOT
from tiny_world.contrast import look, read, save_trained_encoder, vocabulary
from tiny_world.records import captions
from tiny_world.scenes import COLOURS, SHAPES, imagine
from tiny_world.schedule import one_cycle
from tiny_world.texts import caption, questions

from C_score.datasets import read_pairs
from llava.conversation import conv_templates
from llava.errors import UsageError
from llava.model.multimodal_encoder.registry import resolve
from llava.tokenization import load_tokenizer

SMALL = ["--images", "40", "--held-out", "10", "--questions", "12", "--pairs", "5"]
PARTS = {
    "world": SMALL,
    "language-model": ["--steps", "2"],
    "towers": ["--steps", "2"],
}


def digest(folder):
    """SHA-256 of every file, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def make(out, seed="0"):
    """All parts in a folder, each as its own process would make it."""
    for part, flags in PARTS.items():
        given = ["--world", str(out / "world")] if part == "towers" else []
        make_miniature([part, "--out", str(out / part), "--seed", seed, *given, *flags])
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small one."""
    return make(tmp_path_factory.mktemp("miniature") / "a")


@pytest.fixture(scope="module")
def rows(made):
    """The keypoints' CSV, as dicts."""
    head, *lines = (made / "world" / "correspondence" / "pairs.csv").read_text().splitlines()
    names = head.split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines]


def test_same_seed_same_bytes(made, tmp_path):
    """In another process; and another seed another world and other weights."""
    script = [sys.executable, str(ROOT / "scripts" / "make_miniature.py")]
    flags = ["world", "--out", str(tmp_path / "world"), *SMALL]
    assert subprocess.run([*script, *flags]).returncode == 0
    again = make(tmp_path / "again")
    assert digest(made / "world") == digest(tmp_path / "world") == digest(again / "world")
    assert digest(made) == digest(again)
    one, other = digest(made), digest(make(tmp_path / "other", "1"))
    weights = [name for name in one if name.endswith(".safetensors")]
    assert len(weights) == 5
    assert all(one[name] != other[name] for name in weights)


def test_both_stages_see_the_same_images(made):
    """A caption and a conversation for every image, and no held-out scene among them."""
    world = made / "world"
    told, asked, held_out = (
        json.loads((world / f"{name}.json").read_text())
        for name in ("captions", "instructions", "captions_heldout")
    )
    assert [one["image"] for one in told] == [one["image"] for one in asked]
    assert all((world / "images" / one["image"]).is_file() for one in [*told, *held_out])
    said = {one["conversations"][1]["value"] for one in told}
    assert not said & {one["conversations"][1]["value"] for one in held_out}


def test_conversations_are_of_their_scene(made):
    """Answers fit the caption of the same image."""
    world = made / "world"
    told, asked = (
        json.loads((world / f"{name}.json").read_text()) for name in ("captions", "instructions")
    )
    for one, other in zip(told, asked, strict=True):
        text = one["conversations"][1]["value"]
        for question, answer in zip(
            other["conversations"][::2], other["conversations"][1::2], strict=True
        ):
            wanted, count = answer["value"], text.count(",")
            if "How many" in question["value"]:
                assert ["one", "two", "three"][count - 1] == wanted
            else:
                assert wanted in text


def test_every_word_is_one_token(made):
    """Of the world's texts and of the prompt, so that sequences are short."""
    tokenizer = load_tokenizer(made / "language-model")
    rng = random.Random(1)
    texts = [conv_templates["v1"].get_prompt()]
    for _ in range(50):
        scene = imagine(rng)
        texts += [caption(scene), *(q for pairs in questions(scene).values() for q, _ in pairs)]
    for text in texts:
        words = text.replace(",", " ,").replace("?", " ?").replace(".", " .").split()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) <= 1.3 * len(words), (text, tokenizer.convert_ids_to_tokens(ids))


def test_keypoints_are_on_their_shapes(made, rows):
    """The pixel at each is of the shape's colour, the same in both images, and not the next to it.

    A corner's neighbour outside is not of that colour, so the corner is exact to the pixel.
    """
    folder = made / "world" / "correspondence"
    assert {row["category"] for row in rows} == set(SHAPES)
    outward = {"top": (0, -1), "bottom": (0, 1), "left": (-1, 0), "right": (1, 0)}
    for row in rows:
        colours = []
        for end in ("source", "target"):
            image = Image.open(folder / row[end])
            x, y = int(row[f"{end}_x"]), int(row[f"{end}_y"])
            colours.append(image.getpixel((x, y)))
            for word in row["keypoint"].split():
                if word == "middle":
                    continue
                dx, dy = outward[word]
                if 0 <= x + dx < image.width and 0 <= y + dy < image.height:
                    assert image.getpixel((x + dx, y + dy)) != colours[-1], row
        assert colours[0] == colours[1], row
        assert colours[0] in COLOURS.values()


def test_keypoints_are_read(made, rows):
    """By the C score: five pairs of each kind, all points visible, another quarter each time."""
    pairs = read_pairs("csv", made / "world" / "correspondence" / "pairs.csv")
    assert [len(category.pairs) for category in pairs.categories] == [5] * len(SHAPES)
    for row in rows:
        if row["keypoint"] == "middle":
            quarters = [
                (int(row[f"{end}_x"]) // 32, int(row[f"{end}_y"]) // 32)
                for end in ("source", "target")
            ]
            assert quarters[0] != quarters[1]


def test_towers_have_one_grid(made):
    """So that all can be joined, with those of the plugin at 84 and 96 px, too."""
    for folder in sorted((made / "towers").iterdir()):
        found = resolve(str(folder))
        assert (found.grid, found.parts[0].size) == ((GRID, GRID), SIDE)


def test_refused(made):
    """A folder that is there already."""
    with pytest.raises(UsageError, match="is there already"):
        make_miniature(["world", "--out", str(made / "world")])


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 250])
def test_rates_of_learning(steps):
    """As high as asked for and back to almost nothing, in however few steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = one_cycle(optimizer, 1.0, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step() if len(rates) < steps else None
    assert all(0 < rate <= 1 for rate in rates)
    assert steps < 20 or (max(rates) > 0.99 and rates[-1] < 1e-3)


@pytest.mark.slow
def test_the_trained_tower_learns(tmp_path):
    """Held-out images find their captions far above chance, which is 1 of 100."""
    told = captions(tmp_path, "told", 600, 0)
    held_out = captions(tmp_path, "held_out", 100, 0, held_out=True)
    folder = tmp_path / "tower"
    model = save_trained_encoder(folder, told, tmp_path, 120, 0, SIDE)
    texts = [one["conversations"][1]["value"] for one in told]
    words = vocabulary(texts)
    ids = read([one["conversations"][1]["value"] for one in held_out], words)
    seen = look([tmp_path / one["image"] for one in held_out], folder)
    with torch.no_grad():
        scores = model(input_ids=ids, pixel_values=seen).logits_per_image
    assert (scores.argmax(1) == torch.arange(100)).float().mean() > 0.1
