"""Accuracies: exact values of scorers whose answers are known, chance, and published counts."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llava.errors import LawError
from llava.eval.pairs.accuracies import ACCURACIES
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.metrics import Accuracy, measure

AXES = ("left/right",) * 2 + ("on/under",) * 2


def whatsup_item(name: str, ways: int = 2) -> Item:
    """A set of What'sUp without its files."""
    two = ((0, 1), (0, 1), (2, 3), (2, 3))
    return Item(
        id=name,
        images=tuple(Path(f"{name}_{i}.jpeg") for i in range(4)),
        captions=("left", "right", "on", "under"),
        right=(0, 1, 2, 3),
        choices=two if ways == 2 else ((0, 1, 2, 3),) * 4,
        pairs=((0, 1), (2, 3)),
        axes=AXES,
    )


def whatsup(sets: int, ways: int = 2) -> Benchmark:
    return Benchmark("whatsup", tuple(whatsup_item(str(i), ways) for i in range(sets)))


def two_by_two(items: int, chooses: str = "captions") -> Benchmark:
    item = Item("x", (Path("a"), Path("b")), ("x", "y"), (0, 1), ((0, 1),) * 2, ((0, 1),))
    return Benchmark("grid", tuple(replace(item, id=str(i)) for i in range(items)), chooses)


def counts(measures) -> dict[str, tuple[int, int]]:
    return {name: (one.right, one.of) for name, one in measures.accuracies.items()}


@pytest.mark.parametrize(
    ("scores", "text", "image"),
    [
        ([[2, 1], [0, 3]], 1, 1),
        ([[1, 1], [0, 3]], 0, 1),
        ([[2, 1], [3, 3]], 0, 0),
        ([[2, 1], [2, 3]], 1, 0),
        ([[2, 3], [0, 3]], 0, 0),
        ([[2, 1], [0, 1]], 1, 0),
    ],
)
def test_a_tie_is_right_of_nothing(scores, text, image):
    """Wherever it is in the matrix."""
    found = counts(measure(two_by_two(1), [np.array(scores, float)]))
    assert found["text"] == found["pair"] == (text, 1)
    assert found["image"] == (image, 1) and found["group"] == (text & image, 1)


def test_what_a_pair_is_compared_by_is_needed():
    """Also where neither image chooses the other's caption."""
    choices = ((0, 2), (1, 2))
    item = Item("x", (Path("a"), Path("b")), ("x", "y", "z"), (0, 1), choices, ((0, 1),))
    assert item.needed.all()
    assert replace(item, pairs=()).needed.tolist() == [[True, False, True], [False, True, True]]


@pytest.mark.parametrize("ways", [2, 4])
def test_a_scorer_that_ignores_the_image_has_half_and_no_pair(ways):
    benchmark = whatsup(25, ways)
    rng = np.random.default_rng(0)
    found = measure(benchmark, [np.tile(rng.normal(size=4), (4, 1)) for _ in range(25)])
    expected = 50 if ways == 2 else 25
    assert counts(found)["individual"] == (expected, 100)
    for name in ("pair", "set", "text", "image", "group"):
        assert found.accuracies[name].right == 0, name
    assert (found.same_choice.right, found.same_choice.of) == (50, 50)
    assert found.ties == 0


def test_a_scorer_that_is_constant_ties_everywhere():
    found = measure(whatsup(3), [np.zeros((4, 4))] * 3)
    assert counts(found)["individual"] == (0, 12)
    assert found.ties == 12
    assert found.same_choice.right == 0, "nothing was chosen"


@pytest.mark.parametrize("ways", [2, 4])
def test_an_oracle_is_right_and_its_contrary_wrong(ways):
    benchmark = whatsup(3, ways)
    right = measure(benchmark, [np.eye(4)] * 3)
    wrong = measure(benchmark, [-np.eye(4)] * 3)
    for name in ACCURACIES:
        assert right.accuracies[name].share == 1.0, name
        assert wrong.accuracies[name].share == 0.0, name
    assert right.same_choice.right == 0 and right.ties == 0
    assert right.accuracies["pair"].of == 6 and right.accuracies["set"].of == 3


CHANCE = {
    2: {"individual": 1 / 2, "pair": 1 / 4, "set": 1 / 16},
    4: {"individual": 1 / 4, "pair": 1 / 16, "set": 1 / 256},
}


@pytest.mark.parametrize("ways", [2, 4])
def test_scores_drawn_at_random_are_at_chance(ways):
    rng = np.random.default_rng(1)
    found = measure(whatsup(2000, ways), list(rng.normal(size=(2000, 4, 4))))
    expected = CHANCE[ways] | {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
    for name, chance in expected.items():
        one = found.accuracies[name]
        assert one.chance == pytest.approx(chance), name
        error = math.sqrt(chance * (1 - chance) / one.of)
        assert abs(one.share - chance) < 3 * error, name
        assert one.stderr == pytest.approx(error, rel=0.3), name
    assert found.same_choice.share == pytest.approx(1 / ways, abs=0.02)


def test_winoground_by_hand():
    """Rows are images, columns captions; text, image and group of five cases."""
    cases = {
        ((2, 1), (1, 2)): (1, 1, 1),
        ((4, 3), (1, 2)): (1, 0, 0),  # image 0 is likelier than image 1 with either caption
        ((4, 1), (5, 6)): (1, 0, 0),
        ((2, 3), (1, 4)): (0, 1, 0),
        ((1, 2), (2, 1)): (0, 0, 0),
    }
    for scores, (text, image, group) in cases.items():
        one = counts(measure(two_by_two(1), [np.array(scores, float)]))
        assert (one["text"], one["image"], one["group"]) == ((text, 1), (image, 1), (group, 1))
        assert one["pair"] == one["text"]
        assert "set" not in one, "a single pair is no set"
        other = counts(measure(two_by_two(1, "images"), [np.array(scores, float)]))
        assert other["pair"] == other["image"] == (image, 1)


def test_captions_choose_images():
    """MMVP-VLM: caption x chooses image 0 and so does caption y."""
    found = measure(two_by_two(1, "images"), [np.array([[3.0, 3.0], [1.0, 2.0]])])
    assert counts(found)["individual"] == (1, 2)
    assert found.same_choice.right == 1
    assert found.ties == 0, "S[0,0] equals S[0,1], which no caption compares"


def test_one_image_and_two_captions_has_individuals_only():
    item = Item("x", (Path("a"),), ("true", "false"), (0,), ((0, 1),), axes=("left/right",))
    found = measure(Benchmark("coco_one", (item,)), [np.array([[1.0, 0.0]])])
    assert counts(found) == {"individual": (1, 1)}
    assert found.same_choice is None
    assert found.by_axis == {"left/right": {"individual": Accuracy(1, 1, None, 0.5)}}


def test_four_way_text_compares_the_pair_only():
    """A third caption may win: the image is wrong of four, and its pair's text score right."""
    scores = np.eye(4)
    scores[0, 2] = 5.0
    found = counts(measure(whatsup(1, ways=4), [scores]))
    assert found["individual"] == (3, 4) and found["pair"] == (1, 2)
    assert found["text"] == (2, 2)


def test_what_is_not_needed_is_not_read():
    scores = np.where(whatsup_item("x").needed, np.eye(4), np.nan)
    assert np.isnan(scores).sum() == 8
    assert counts(measure(whatsup(1), [scores]))["set"] == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_named(bad):
    scores = np.eye(4)
    scores[1, 0] = bad
    with pytest.raises(LawError, match=r"item 0: the score of 0_1.jpeg with 'left' is (nan|inf)"):
        measure(whatsup(1), [scores])
    with pytest.raises(LawError, match=r"scores \(2, 4\), expected \(4, 4\)"):
        measure(whatsup(1), [np.eye(4)[:2]])
    with pytest.raises(LawError, match="1 matrices for 2 items"):
        measure(whatsup(2), [np.eye(4)])


def test_stderr_goes_by_items():
    """Of one decision per item it is that of a share; two that go together count as one."""
    one = Item("x", (Path("a"),), ("true", "false"), (0,), ((0, 1),))
    alone = Benchmark("one", tuple(replace(one, id=str(i)) for i in range(10)))
    rights = [np.array([[float(i < 3), 0.5]]) for i in range(10)]
    found = measure(alone, rights).accuracies["individual"]
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 9))
    both = [np.eye(2) if i < 3 else -np.eye(2) for i in range(10)]
    found = measure(two_by_two(10), both).accuracies["individual"]
    assert (found.right, found.of) == (6, 20)
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 9))
    assert measure(two_by_two(1), [np.eye(2)]).accuracies["pair"].stderr is None


def with_counts(sets: int, individual: tuple[int, int], pair: tuple[int, int], both: int):
    """Matrices of two-way sets: right images and right pairs by axis, `both` sets all right.

    Pairs that are right are dealt from the first set for one axis, from set `pair[0] - both` for
    the other; the rest of the right images one to a pair.
    """
    first = [range(pair[0]), range(pair[0] - both, pair[0] - both + pair[1])]
    scores = np.zeros((sets, 4, 4))
    for axis, whole in enumerate(first):
        left = individual[axis] - 2 * len(whole)
        for s in range(sets):
            a, b = 2 * axis, 2 * axis + 1
            single = s not in whole and left > 0
            left -= single
            scores[s, a, a] = 1.0 if s in whole or single else -1.0
            scores[s, b, b] = 1.0 if s in whole else -1.0
        assert left == 0
    return list(scores)


@pytest.mark.parametrize(
    ("sets", "individual", "pair", "both", "printed"),
    [
        # LLM2CLIP on What'sUp A and B: the result file that the paper's repository holds
        (103, (102, 121), (1, 18), 1, "54.13 49.51 58.74 0.97 17.48 9.22 0.97"),
        (102, (100, 113), (1, 15), 0, "52.21 49.02 55.39 0.98 14.71 7.84 0.00"),
    ],
)
def test_published_percentages_are_these_counts(sets, individual, pair, both, printed):
    benchmark = whatsup(sets)
    found = measure(benchmark, with_counts(sets, individual, pair, both))
    assert found.accuracies["individual"].of == 4 * sets
    assert found.accuracies["pair"].of == 2 * sets and found.accuracies["set"].of == sets
    axes = [found.by_axis[axis] for axis in ("left/right", "on/under")]
    shown = [
        found.accuracies["individual"],
        *(axis["individual"] for axis in axes),
        *(axis["pair"] for axis in axes),
        found.accuracies["pair"],
        found.accuracies["set"],
    ]
    assert " ".join(f"{100 * one.share:.2f}" for one in shown) == printed


@pytest.mark.parametrize(
    ("right", "of", "printed"),
    [
        # pair accuracies by axis: CLIP-L/14-336, LLaVA-1.5-7B, Phi-3-V, LLaMA-3-V (A, A, B)
        *((2, 103, "1.9"), (24, 103, "23.3"), (8, 102, "7.8")),
        *((96, 103, "93.2"), (54, 103, "52.4"), (54, 102, "52.9")),
        *((98, 103, "95.1"), (60, 103, "58.3"), (27, 102, "26.5")),
        *((99, 103, "96.1"), (66, 103, "64.1"), (48, 102, "47.1")),
        # left/right pairs with patches, with RoPE, with SPARC, with LLM2CLIP's text encoder
        *((11, 102, "10.8"), (10, 103, "9.7"), (10, 102, "9.8")),
        *((23, 103, "22.3"), (21, 102, "20.6"), (0, 103, "0.0"), (7, 102, "6.9")),
        *((11, 103, "10.7"), (16, 102, "15.7")),
        # LLM2CLIP: COCO one and two, GQA one and two
        *((1124, 2247, "50.0"), (233, 440, "53.0"), (537, 1160, "46.3"), (163, 291, "56.0")),
    ],
)
def test_counts_behind_published_percentages(right, of, printed):
    assert f"{100 * Accuracy(right, of).share:.1f}" == printed
