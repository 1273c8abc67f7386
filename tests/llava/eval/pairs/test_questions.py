"""Questions made of captions: objects, sides and axes as published, and never the right answer."""

from pathlib import Path

import pytest

from llava.eval.pairs.items import Item
from llava.eval.pairs.questions import ANYWHERE, axes, question, relation

OPTIONS = (
    "A beer bottle on a armchair",
    "A beer bottle under a armchair",
    "A beer bottle to the left of a armchair",
    "A beer bottle to the right of a armchair",
)


def item(captions, choices=None, pairs=(), images=1, asked="", name="a"):
    """An item whose images choose among all captions, image i being shown by caption i."""
    choices = choices or [tuple(range(len(captions)))] * images
    return Item(
        name,
        tuple(Path(f"{i}.png") for i in range(images)),
        tuple(captions),
        tuple(range(images)),
        tuple(choices),
        tuple(pairs),
        question=asked,
    )


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        (OPTIONS[0], ("beer bottle", "armchair", "bottom/top", 1)),
        (OPTIONS[1], ("beer bottle", "armchair", "bottom/top", 0)),
        (OPTIONS[2], ("beer bottle", "armchair", "left/right", 0)),
        ("A cup behind a plate", ("cup", "plate", "behind/front", 0)),
        ("A cup in front of a plate", ("cup", "plate", "behind/front", 1)),
        ("A photo of a dog on the right", ("dog", "", "left/right", 1)),
        ("A photo of a dog on the top", ("dog", "", "bottom/top", 1)),
        ("A photo of a tv to the left of a bench", ("tv", "bench", "left/right", 0)),
        ("A red circle above an orange square.", ("red circle", "orange square", "bottom/top", 1)),
        ("A man on a horse to the right of a dog", ("man on a horse", "dog", "left/right", 1)),
        ("The cat is under the table", ("cat", "table", "bottom/top", 0)),
    ],
)
def test_relation(caption, found):
    """The longest phrase counts, so `on the right` is no `on`."""
    one = relation(caption)
    assert (one.first, one.second, one.axis, one.side) == found


@pytest.mark.parametrize("caption", ["a dog facing left", "An open door", "on the left", ""])
def test_no_relation(caption):
    """A caption that says nothing of where things are."""
    assert relation(caption) is None


def test_published_questions():
    """Two of four captions are of one axis; all four are of two, and no alternative is named."""
    whatsup = item(OPTIONS, [(0, 1), (0, 1), (2, 3), (2, 3)], [(0, 1), (2, 3)], images=4)
    sideways = "Is the beer bottle to the left of or to the right of the armchair?"
    upright = "Is the beer bottle at the bottom of or at the top of the armchair?"
    assert [question(whatsup, i) for i in range(4)] == [upright, upright, sideways, sideways]
    deep = item(["A cup behind a plate", "A cup in front of a plate"], pairs=[(0, 1)], images=2)
    assert question(deep, 0) == "Is the cup in the back of or in the front of the plate?"
    four = item(OPTIONS)
    assert question(four, 0) == ANYWHERE.format(first="beer bottle", second="armchair")


def test_seeded_order():
    """Of single images both orders come, the same for a seed, whichever caption is right."""
    captions = ["A photo of a dog on the left", "A photo of a dog on the right"]
    items = [item(captions, name=str(i)) for i in range(40)]
    asked = [question(one, 0, seed=3) for one in items]
    assert set(asked) == {
        "Is the dog on the left or on the right?",
        "Is the dog on the right or on the left?",
    }
    assert asked == [question(one, 0, seed=3) for one in items]
    assert asked != [question(one, 0, seed=4) for one in items]
    turned = [item(captions[::-1], name=str(i)) for i in range(40)]
    assert asked == [question(one, 0, seed=3) for one in turned]


def test_no_question():
    """Captions of different objects, or of no axis; an item's own question comes first."""
    assert question(item(["A cup on a plate", "A dog on a plate"]), 0) == ""
    assert question(item(["a dog facing left", "a dog facing right"]), 0) == ""
    assert question(item(["Open", "Closed"], asked="Is the door open?"), 0) == "Is the door open?"


def test_table():
    """Every axis has two sides and two alternatives, and no phrase stands on two sides."""
    phrases = []
    for axis in axes().values():
        assert len(axis.sides) == len(axis.alternatives) == len(axis.alone) == 2
        phrases += [phrase for side in axis.sides for phrase in side]
    assert len(phrases) == len(set(phrases))
