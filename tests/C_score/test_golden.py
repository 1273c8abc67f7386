"""Equal to the reference's own results on the golden set, in every setting that it holds.

PCK to 1e-5 (the reference adds float32 values), predictions exactly for argmax and to 3e-3 px for
soft-argmax: the reference's float32 sums are themselves up to 1.9e-3 px from float64.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from C_score.datasets import read_pairs
from C_score.evaluate import Request, evaluate
from C_score.matching import Match
from C_score.report import predictions
from C_score.score import Options

GOLDEN = Path(__file__).parents[1] / "golden" / "cscore"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())["results"]
FIXED = json.loads((GOLDEN / "geo_fixed.json").read_text())["results"]
WINDOWS = {"argmax": None, "soft_w5": 5, "soft_w7": 7, "soft_w0": 0}
SETTINGS = [(model, setting) for model, settings in EXPECTED.items() for setting in settings]


@functools.cache
def golden_pairs():
    return read_pairs("spair", GOLDEN / "SPair-71k")


def report_of(model, setting, average="image", mapping="reference"):
    """The report of `model` as expected.json calls it, an extra behind '@'."""
    name, _, extra = model.partition("@")
    options = Options(
        Match(WINDOWS[setting]),
        threshold="image" if extra == "img_threshold" else "bbox",
        flip=extra == "adapt_flip_mutual_nn",
        mapping=mapping,
    )
    features = GOLDEN / "SPair-71k" / "features"
    (report,) = evaluate(
        golden_pairs(), Request([name], features, options, average=average, detail=True)
    )
    return report


def test_every_setting_is_there():
    """Six feature settings with four matchings each, the flip with two, the image threshold."""
    assert len(SETTINGS) == 6 * 4 + 2 + 1


@pytest.mark.parametrize(("model", "setting"), SETTINGS)
def test_equal_to_the_reference(model, setting):
    expected = EXPECTED[model][setting]
    for average, key in (("image", "per_image"), ("keypoint", "per_keypoint")):
        report = report_of(model, setting, average)
        answer, want = report.to_json(), expected[key]
        assert list(answer["overall"].values()) == pytest.approx(want["overall"], abs=1e-5)
        assert answer["per_category"].keys() == want["per_category"].keys()
        for name, entry in want["per_category"].items():
            found = list(answer["per_category"][name].values())
            assert found == pytest.approx(entry["pck"], abs=1e-5)
            counted = "n_pairs" if average == "image" else "n_keypoints"
            assert answer["categories"][name][counted] == entry["weight"]
        geo = answer["geo"][key]
        assert list(geo.values()) == pytest.approx(want["geo_overall"], abs=1e-5)
    assert answer["geo"]["n_pairs"] == expected["per_image"]["geo_images"]
    for name, entry in expected["per_keypoint"]["geo_per_category"].items():
        found = answer["geo"]["per_category"][name]
        assert list(found["per_keypoint"].values()) == pytest.approx(entry["pck"], abs=1e-5)
        assert found["n"] == entry["weight"]
    for name, entry in expected["per_image"]["geo_per_category"].items():
        found = list(answer["geo"]["per_category"][name]["per_image"].values())
        assert found == pytest.approx(entry["pck"], abs=1e-5)
    compare_pairs(report, expected["pairs"], exactly=setting == "argmax")


def compare_pairs(report, expected, exactly):
    """Predictions of every used keypoint, and every pair's own PCK."""
    found = {entry["pair"]: entry for entry in predictions(report)}
    assert found.keys() == expected.keys()
    for pair, want in expected.items():
        away = np.array(found[pair]["predicted"]) - want["pred_xy"]
        assert np.linalg.norm(away, axis=1).max() <= (0 if exactly else 3e-3)
        if "pck" in want:  # the reference gives none for the image threshold
            assert found[pair]["pck"] == pytest.approx(want["pck"], abs=1e-5)


@pytest.mark.parametrize("model", FIXED)
def test_geo_aware_with_the_right_mapping(model):
    """Over points; the reference's own mapping gives its own figure beside it."""
    for setting, entry in FIXED[model].items():
        right = report_of(model, setting, mapping="right").to_json()["geo"]
        assert right["mapping"] == "right"
        found = list(right["per_keypoint"].values())
        assert found == pytest.approx(entry["geo_kpt_fixed_mapping"], abs=1e-12)


def test_image_threshold_reaches_the_geo_aware_figure():
    """Where the reference still takes the box, so that both its figures agree by accident."""
    right = report_of("modela16@img_threshold", "soft_w5", mapping="right")
    listed = report_of("modela16@img_threshold", "soft_w5", mapping="reference")
    boxes = report_of("modela16", "soft_w5", mapping="reference")
    geo = [one.to_json()["geo"]["per_image"]["0.10"] for one in (right, listed, boxes)]
    assert geo[0] > geo[1] == geo[2]
