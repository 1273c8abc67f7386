"""The adaptive flip: which point goes where in a mirrored image, and when it is taken."""

import numpy as np
import pytest
import torch
from made_pairs import category, pair_set, random_maps, random_set, save_maps

from C_score.flip import mirrored, mutual_distance
from C_score.matching import Match
from C_score.score import Options, score


def test_mirrored_points():
    """A pair of scored twins changes places; a twin whose other is not scored is left out."""
    kps = [[[100, 10, 1], [200, 20, 1], [300, 30, 1], [400, 40, 1], [500, 50, 1]]]
    true = [[[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]]]
    moved, usable = mirrored(category(kps, true, [0], [0], [100]), ((0, 1), (2, 3)))
    assert moved[0].tolist() == [[640, 20], [740, 10], [540, 30], [440, 40], [340, 50]]
    assert usable[0].tolist() == [True, True, False, False, True]


def test_mutual_distance_by_loops():
    """The mean Euclidean distance of the cells that are each other's nearest."""
    drawn = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 12, 5, generator=drawn), dim=2)
    apart = torch.cdist(a.double(), b.double())
    mutual = [
        apart[i, j].item()
        for i, j in enumerate(apart.argmin(1).tolist())
        if apart[:, j].argmin() == i
    ]
    assert mutual_distance(a @ b.T) == pytest.approx(np.mean(mutual), abs=1e-6)


def test_the_mirrored_source_is_taken_where_it_is_nearer(tmp_path):
    """The target has the features of the mirrored source: with the flip its points are found."""
    maps = random_maps(2, 12, 6, 0, kinds=36)
    kps = np.array([[[70, 70, 1], [350, 210, 1], [630, 490, 1]]], np.float32)
    true = np.array([[[770, 70, 1], [490, 210, 1], [210, 490, 1]]], np.float32)
    pairs = pair_set([category(kps, true, [0], [1], [300])], 2)
    features = save_maps(tmp_path, "made", pairs, maps)
    save_maps(tmp_path, "made_flip", pairs, [maps[1], maps[0]])
    for flip, expected in ((True, 1), (False, 0)):
        (found,) = score(pairs, [features], [[1]], 6, Options(Match(None), flip=flip))
        assert found.all.mean("keypoint")[0, 0] == expected
    save_maps(tmp_path, "made_flip", pairs, random_maps(2, 12, 6, 7, kinds=36))
    save_maps(tmp_path, "made", pairs, [maps[1].flip(2), maps[1]])
    (found,) = score(pairs, [features], [[1]], 6, Options(Match(None), flip=True))
    assert found.all.mean("keypoint")[0, 0] == 1  # the source as it is lies nearer


def test_several_representations_at_once(tmp_path):
    """Each decides by its own features: the same as one after the other."""
    pairs = random_set(0)
    towers = []
    for name in "ab":
        towers.append(save_maps(tmp_path, name, pairs, random_maps(5, 8, 6, ord(name))))
        save_maps(tmp_path, f"{name}_flip", pairs, random_maps(5, 8, 6, ord(name) + 9))
    members = np.array([[1, 0], [0, 1], [0.5, 0.5]])
    options = Options(flip=True)
    (together,) = score(pairs, towers, members, 6, options, detail=True)
    for row, weights in enumerate(members):
        (alone,) = score(pairs, towers, weights[None], 6, options, detail=True)
        assert np.array_equal(together.detail.hits_SPA[row], alone.detail.hits_SPA[0])
