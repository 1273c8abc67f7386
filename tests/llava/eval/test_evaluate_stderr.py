"""Standard errors of benchmarks: equal to numpy's over what the number is the mean of."""

import math

import numpy as np
import pytest

from llava.eval.evaluation.stderr import spread

RNG = np.random.default_rng(0)


def stderr(values):
    """Of a mean, as every textbook has it."""
    return np.std(values, ddof=1) / math.sqrt(len(values))


def test_mean():
    """Of values between, as in VQA."""
    values = RNG.uniform(size=50).tolist()
    found = spread("mean", values, float(np.mean(values)), "fraction")
    assert found.n == 50
    assert found.stderr == pytest.approx(stderr(values), rel=1e-12)


@pytest.mark.parametrize(("values", "value"), [(["a", "b"], 0.5), ([0.1, 0.2], 0.3), ([1.0], 1.0)])
def test_no_mean(values, value):
    """None for texts, for a value that is not the mean, for one question; it says why."""
    found = spread("mean", values, value, "fraction")
    assert (found.n, found.stderr) == (len(values), None)
    assert found.how


@pytest.mark.parametrize(("unit", "factor"), [("fraction", 1), ("percent", 100)])
def test_share(unit, factor):
    """The same as of zeros and ones, in the value's unit."""
    right = RNG.integers(0, 2, 37)
    found = spread("share", [{}] * 37, factor * float(right.mean()), unit)
    assert found.stderr == pytest.approx(factor * stderr(right), rel=1e-12)


def test_share_as_it_is_rounded():
    """MMMU's comes with five places; what is no share of n has no error."""
    found = spread("share", [{}] * 900, round(317 / 900, 5), "fraction")
    assert found.stderr == pytest.approx(stderr([1] * 317 + [0] * 583), rel=1e-4)
    assert spread("share", [{}] * 900, 0.35, "fraction").stderr is not None
    assert spread("share", [{}] * 900, 0.3505, "fraction").stderr is None
    assert spread("share", [{}] * 9, 35.0, "fraction").stderr is None


@pytest.mark.parametrize(
    ("kind", "values", "value"),
    [("mean", [1.0] * 5, 1.0), ("share", [{}] * 5, 0.0), ("circular", [{"index": 1}] * 5, 1.0)],
)
def test_all_alike(kind, values, value):
    """Five right answers of five do not make the next one certain."""
    found = spread(kind, values, value, "fraction")
    assert (found.n, found.stderr) == (5, None)
    assert "unknown" in found.how


def test_circular():
    """MMBench's n counts questions, not the orders of their options."""
    values = [{"index": q + 1_000_000 * turn} for q in range(10) for turn in range(4)]
    found = spread("circular", values, 30.0, "percent")
    assert found.n == 10
    assert found.stderr == pytest.approx(100 * stderr([1] * 3 + [0] * 7), rel=1e-12)


def mme(counts):
    """(what the task logs, value, standard error) of random answers, category by category."""
    values, total, variance = [], 0.0, 0.0
    for category, images in counts.items():
        right = RNG.integers(0, 2, (images, 2))
        scores = right.mean(1) * 100 + (right.sum(1) == 2) * 100
        total += scores.mean()
        variance += stderr(scores) ** 2 if images > 1 else 0
        for image, both in enumerate(right):
            for one in both:
                entry = {"category": category, "question_id": f"{image}.png", "score": float(one)}
                values.append(entry)
    return values, total, math.sqrt(variance)


def test_mme():
    """A sum of independent means: their variances add; n counts images."""
    values, total, expected = mme({"color": 30, "OCR": 20, "scene": 200})
    found = spread("mme", values, total, "points")
    assert found.n == 250
    assert found.stderr == pytest.approx(expected, rel=1e-12)


def test_mme_is_as_wide_as_drawing_images_again():
    """Against a bootstrap over images within categories, to within what 2,000 draws tell."""
    values, total, _ = mme({"color": 30, "OCR": 20, "scene": 60})
    scores = {}
    for one in values:
        images = scores.setdefault(one["category"], {})
        images.setdefault(one["question_id"], []).append(one["score"])
    sums = np.zeros(2000)
    for images in scores.values():
        both = np.array([[np.mean(s) * 100 + (sum(s) == 2) * 100] for s in images.values()])[:, 0]
        drawn = RNG.integers(0, len(both), (2000, len(both)))
        sums += both[drawn].mean(1)
    found = spread("mme", values, total, "points")
    assert found.stderr == pytest.approx(sums.std(), rel=0.1)


def test_mme_of_a_single_image():
    """A category of one image has no spread, and then the sum has none."""
    values, total, _ = mme({"color": 5, "OCR": 1})
    found = spread("mme", values, total, "points")
    assert (found.stderr, found.n) == (None, 6)
    assert "OCR" in found.how
    assert spread("mme", values, total + 1, "points").stderr is None
