"""Captions out of conversations, and what exchanging left and right makes of them."""

import json

import pytest

from A_score.contrastive.captions import Captions
from A_score.contrastive.negatives import phrases_of
from llava.data.records import Records
from llava.errors import ConfigError, LawError, UsageError

LEFTRIGHT = phrases_of("leftright")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A cup to the left of a plate.", "A cup to the right of a plate."),
        ("TO THE LEFT, always", "TO THE RIGHT, always"),
        ("On the Right side, on the right", "On the Left side, on the left"),
        ("the cat  at  the left", "the cat  at  the right"),
        ("the left cup", None),
        ("onto the lefthand shelf", None),
        ("to the leftmost", None),
    ],
)
def test_left_and_right(caption, expected):
    assert LEFTRIGHT.rewritten(caption) == expected
    if expected:
        assert LEFTRIGHT.rewritten(expected) == caption


def test_one_phrase_is_exchanged_only():
    """The file's first, everywhere; another one stays."""
    caption = "A dog on the left looks to the right, on the left."
    assert LEFTRIGHT.rewritten(caption) == "A dog on the right looks to the right, on the right."


def test_own_phrases(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("phrases: [[above, further down than]]\n")
    found = phrases_of(str(path))
    assert found.rewritten("A bird Above") == "A bird further down than"
    assert found.rewritten("it is further down than ever") == "it is above ever"
    path.write_text("phrases: [[above, above]]\n")
    with pytest.raises(ConfigError, match="twice"):
        phrases_of(str(path))
    with pytest.raises(UsageError, match="did you mean 'leftright'"):
        phrases_of("leftrigth")


def turn(who, value):
    return {"from": who, "value": value}


RECORDS = [
    {
        "id": "a",
        "image": "a.png",
        "conversations": [
            *(turn("system", "You see."), turn("human", "<image>"), turn("gpt", " One. "))
        ],
    },
    {
        "id": "b",
        "image": "b.png",
        "conversations": [
            *(turn("human", "<image>\nWhat?"), turn("gpt", "First.")),
            *(turn("human", "And?"), turn("gpt", "Second."), turn("human", "?"), turn("gpt", " ")),
        ],
    },
    {"id": "text", "conversations": [turn("human", "Hello"), turn("gpt", "Hello.")]},
    {"id": "two", "image": ["a.png", "b.png"], "conversations": [turn("gpt", "Both.")]},
    {"id": "mute", "image": "a.png", "conversations": [turn("human", "<image>")]},
]


def captions_of(tmp_path, records=RECORDS, seed=0):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    return Captions(Records(path), seed)


def test_answers_are_drawn(tmp_path):
    """Of records with one image; by seed, epoch and id, whatever the record's place."""
    found = captions_of(tmp_path)
    assert len(found) == 2
    assert [found.image(i) for i in (0, 1)] == ["a.png", "b.png"]
    assert {found.caption(0, epoch) for epoch in range(9)} == {"One."}
    drawn = [found.caption(1, epoch) for epoch in range(20)]
    assert set(drawn) == {"First.", "Second."}
    assert found.every() == ["First.", "One.", "Second."]
    assert [captions_of(tmp_path, RECORDS[1:2]).caption(0, e) for e in range(20)] == drawn
    assert [captions_of(tmp_path, seed=1).caption(1, e) for e in range(20)] != drawn


def test_data_without_captions_are_refused(tmp_path):
    with pytest.raises(LawError, match="none of 3 records has one image and an answer"):
        captions_of(tmp_path, RECORDS[2:])
