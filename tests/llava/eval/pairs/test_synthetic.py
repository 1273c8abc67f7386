"""Synthetic pairs: the same cells in both images, texts that are true, the same bytes again."""

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from llava.errors import LawError, UsageError
from llava.eval.pairs import shapes
from llava.eval.pairs.synthetic import main, make_synthetic, where_question

PIXELS = "45323e25742cc3dd"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "synth"
    return out, make_synthetic(out, 48, seed=3, train=96)


def cells(path) -> list[bytes]:
    """The 16 cells of a picture, in raster order."""
    pixels_SS3 = np.asarray(Image.open(path).convert("RGB"))
    assert pixels_SS3.shape == (32, 32, 3)
    side = range(0, 32, 8)
    return [pixels_SS3[y : y + 8, x : x + 8].tobytes() for y in side for x in side]


def test_a_bag_of_patches_cannot_tell_a_pair_apart(made):
    _, benchmark = made
    assert len(benchmark.items) == 48
    for item in benchmark.items:
        one, other = (cells(path) for path in item.images)
        assert one != other
        assert Counter(one) == Counter(other)
        assert len(set(one)) == 3, "two shapes and the ground"


def test_the_captions_say_where_the_cells_are(made):
    """Read off the pixels: the mean place of the first thing's colour against the second's."""
    _, benchmark = made
    for item in benchmark.items:
        for image, right in zip(item.images, item.right, strict=True):
            words = item.captions[right].removeprefix("A ").rstrip(".")
            name = next(
                r for r, relation in shapes.RELATIONS.items() if f" {relation.words} a " in words
            )
            first, second = words.split(f" {shapes.RELATIONS[name].words} a ")
            (row, column), (other_row, other_column) = (centre(image, x) for x in (first, second))
            true = {
                "left": row == other_row and column < other_column,
                "right": row == other_row and column > other_column,
                "above": column == other_column and row < other_row,
                "below": column == other_column and row > other_row,
            }
            assert true[name], item
        assert item.axes[0] == shapes.RELATIONS[name].axis


def centre(path, thing: str) -> tuple[int, int]:
    """(row, column) of the cell that holds most pixels of nearly a thing's colour."""
    pixels_SS3 = np.asarray(Image.open(path).convert("RGB")).astype(int)
    near_SS = (abs(pixels_SS3 - shapes.SHAPES[thing]) <= shapes.SHADE).all(-1)
    count_44 = near_SS.reshape(4, 8, 4, 8).sum((1, 3))
    assert (count_44 > 0).sum() == 1
    return tuple(int(i) for i in np.unravel_index(count_44.argmax(), (4, 4)))


def test_every_combination_comes_equally_often(made):
    out, benchmark = made
    assert Counter(item.axis(0) for item in benchmark.items) == {
        "left/right": 24,
        "above/below": 24,
    }
    assert set(Counter(item.captions for item in benchmark.items).values()) == {2}
    records = json.loads((out / "train.json").read_text())
    said = Counter(record["conversations"][1]["value"] for record in records)
    assert set(said) == set((out / "captions.txt").read_text().splitlines())
    assert len(said) == 48 and set(said.values()) == {2}


def test_talks_are_balanced_and_true(made):
    out, _ = made
    captions = {
        record["image"]: record["conversations"][1]["value"]
        for record in json.loads((out / "train.json").read_text())
    }
    talks = json.loads((out / "talks.json").read_text())
    assert len(talks) == 3 * len(captions) and len({talk["id"] for talk in talks}) == len(talks)
    answers = Counter()
    for talk in talks:
        asked, answer = (turn["value"] for turn in talk["conversations"])
        answers[answer] += 1
        assert asked.startswith("<image>\n")
        caption = captions[talk["image"]]
        if answer in ("Yes", "No"):
            ending = '"? Please answer yes or no.'
            assert asked.startswith('<image>\nDoes this figure show "') and asked.endswith(ending)
            assert (caption in asked) == (answer == "Yes")
        else:
            words = f"{answer.lower()} of a" if answer in ("Left", "Right") else answer.lower()
            assert words in caption
    assert answers["Yes"] == answers["No"] == 96
    assert {answers[word] for word in ("Left", "Right", "Above", "Below")} == {24}


def test_no_training_picture_is_tested(made):
    out, benchmark = made
    tested = {path.read_bytes() for item in benchmark.items for path in item.images}
    trained = [path.read_bytes() for path in sorted((out / "images").glob("train_*.png"))]
    assert len(trained) == 96 and not tested & set(trained)


def test_where_questions():
    assert where_question("red circle", "left", "blue square") == (
        "Where is the red circle, left or right of the blue square?",
        "Left",
    )
    assert where_question("red circle", "below", "blue square") == (
        "Where is the red circle, above or below the blue square?",
        "Below",
    )


def test_the_same_numbers_give_the_same_bytes(made, tmp_path):
    out, _ = made
    make_synthetic(tmp_path / "again", 48, seed=3, train=96)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert len(files) == 48 * 2 + 96 + 6
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    other = make_synthetic(tmp_path / "other", 48, seed=4)
    assert (tmp_path / "other/pairs.jsonl").read_text() != (out / "pairs.jsonl").read_text()
    assert not (tmp_path / "other/train.json").exists() and len(other.items) == 48


def test_pictures_stay_what_they_were():
    """A change of the drawing is a change of the benchmark: VERSION must go up with it."""
    rng = random.Random("golden")
    digest = hashlib.sha256()
    for one, other in shapes.OBJECT_PAIRS:
        scene = shapes.Scene.drawn(rng, one, other, "left")
        digest.update(scene.picture().tobytes() + scene.swapped.picture().tobytes())
    assert digest.hexdigest()[:16] == PIXELS


def test_another_set_is_not_mixed_in(made):
    out, _ = made
    make_synthetic(out, 48, seed=3, train=96)  # the same is no conflict
    with pytest.raises(LawError, match=r"pairs 48, seed 3.*asked for pairs 48, seed 4"):
        make_synthetic(out, 48, seed=4, train=96)


def test_training_data_may_follow_and_grow(made, tmp_path):
    """As the pages of docs make the same folder one after another."""
    whole, _ = made
    out = tmp_path / "s"
    for train in (0, 48, 96, 0):
        make_synthetic(out, 48, seed=3, train=train)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    for file in files:
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize("numbers", [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_numbers_that_cannot_be_meant(tmp_path, numbers):
    with pytest.raises(UsageError, match="expected a pair or more"):
        make_synthetic(tmp_path, *numbers)


def test_the_command_prints_the_file(tmp_path, capsys):
    main(["--out", str(tmp_path / "s"), "--n", "2", "--seed", "1"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "s" / "pairs.jsonl")
    assert len((tmp_path / "s" / "questions.jsonl").read_text().splitlines()) == 2
