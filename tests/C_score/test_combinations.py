"""All combinations in one pass: the same numbers as one run each."""

import numpy as np
import pytest
from made_pairs import random_maps, random_set, tower
from tiny_world.encoders import save_encoder

from C_score.combinations import all_combinations, joined_name, membership
from C_score.matching import Match
from C_score.score import Options, score
from C_score.sources import FileFeatures
from llava.errors import UsageError
from llava.model.multimodal_encoder.registry import resolve


def test_every_subset_once():
    """Singles first; 2^n - 1 of them, and a weight of 1/k for each of k towers."""
    subsets = all_combinations(4)
    assert subsets[:6] == [(0,), (1,), (2,), (3,), (0, 1), (0, 2)]
    assert len(set(subsets)) == len(subsets) == 15
    members = membership(subsets, 4)
    assert members.sum(1) == pytest.approx(1)
    assert members[4].tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize("match", [Match(), Match(2, "inf"), Match(None), Match(0)], ids=str)
def test_equal_to_separate_runs(match):
    """Every PCK, to 1e-6, of every combination of four towers; predictions to 1e-3 px."""
    pairs = random_set(1, pairs=20)
    towers = [tower(random_maps(5, 6 + seed, 7, seed), str(seed)) for seed in range(4)]
    subsets = all_combinations(4)
    options = Options(match)
    (together,) = score(pairs, towers, membership(subsets, 4), 7, options, detail=True)
    for row, subset in enumerate(subsets):
        chosen = [towers[t] for t in subset]
        weights = np.full((1, len(chosen)), 1 / len(chosen))
        (alone,) = score(pairs, chosen, weights, 7, options, detail=True)
        for kind in ("all", "geo_pairs", "geo_points"):
            for average in ("image", "keypoint"):
                ours, theirs = (getattr(one, kind).mean(average) for one in (together, alone))
                assert ours[row] == pytest.approx(theirs[0], abs=1e-6)
        away = together.detail.predicted_SPK2[row] - alone.detail.predicted_SPK2[0]
        assert np.nanmax(np.abs(away)) < 1e-3


def test_too_many():
    with pytest.raises(UsageError, match="32,767"):
        all_combinations(15)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["openai/clip-vit-large-patch14"], "openai/clip-vit-large-patch14"),
        (
            ["openai/clip-vit-large-patch14-336", "facebook/dinov2-large"],
            "openai/clip-vit-large-patch14-336.facebook/dinov2-large",
        ),
        (["mine", "facebook/dinov2-large"], "mine.facebook/dinov2-large"),
    ],
)
def test_names_in_results_tables(parts, expected, tmp_path):
    """Those that training and the law use."""
    found = [FileFeatures("x", part, 16, 8, "", "external", tmp_path) for part in parts]
    assert joined_name(found) == expected


def test_towers_whose_weights_are_elsewhere_are_named_as_in_training(tmp_path):
    """A size that the combination gives a tower anyway is no part of the name."""
    folder = tmp_path / "towers" / "mine"
    save_encoder(folder, "clip_vision_model")  # a grid of 4 x 4
    parts = ["tiny/clip", "facebook/dinov2-large@56"]
    found = [FileFeatures("x", part, 4, 8, "", "external", tmp_path) for part in parts]
    replace = {"tiny/clip": str(folder), "not/used": "elsewhere"}
    assert joined_name(found) == "tiny/clip.facebook/dinov2-large@56"
    assert joined_name(found, replace) == "tiny/clip.facebook/dinov2-large"
    meant = resolve(parts, replace={"tiny/clip": str(folder)})
    assert joined_name(found, replace) == meant.name
