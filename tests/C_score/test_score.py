"""The one-pass scorer equals the plain loop over pairs, whatever the protocol."""

import numpy as np
import plain_pck as plain
import pytest
import torch
from made_pairs import category, pair_set, random_maps, random_set, tower

from C_score import rows
from C_score import score as module
from C_score.combinations import all_combinations, membership
from C_score.datasets.frame import patch_centre, patch_index
from C_score.matching import Match
from C_score.pck import Sums
from C_score.score import Options, score

PREDICTION_PX = 2e-3
"""float32 here, float64 in the plain loop; the sums run over up to 576 cells of 840 px."""


def summed(found, which):
    """Hits and points that the plain loop found, as the sums of the scorer hold them."""
    points = np.array(found[f"{which}points"])
    return Sums.of(np.array(found[f"{which}hits"])[None], points)


def compare(found, expected, predictions=True):
    """A category's score and the plain loop's."""
    for which, sums in (("", found.all), ("geo_", found.geo_pairs), ("geo_", found.geo_points)):
        assert sums.points == sum(expected[f"{which}points"])
        for name, plainly in (("image", plain.per_image), ("keypoint", plain.per_keypoint)):
            want = plainly(expected[f"{which}hits"], expected[f"{which}points"])
            assert sums.mean(name)[0] == pytest.approx(want, abs=1e-12)
    if predictions:
        scored = found.detail.points_P > 0
        ours = found.detail.predicted_SPK2[0, scored]
        theirs = np.stack(expected["predicted"])[scored]
        assert np.linalg.norm(ours - theirs, axis=-1).max() < PREDICTION_PX


MATCHES = [Match(w, fill) for w in (5, 1, 7) for fill in ("zero", "inf")] + [Match(None), Match(0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [5, 7, 16])
@pytest.mark.parametrize("match", MATCHES, ids=str)
def test_one_tower_equals_the_plain_loop(match, n, seed):
    """Odd grids, pictures of odd shapes, invisible points, low and negative cosines."""
    pairs = random_set(seed)
    maps = random_maps(5, 8, n, seed)
    (found,) = score(pairs, [tower(maps)], [[1]], n, Options(match), detail=True)
    features = lambda i: [maps[i][None]]  # noqa: E731
    made = pairs.categories[0]
    expected = plain.score(
        made, pairs.alphas, features, match.window, match.fill, groups=made.groups
    )
    compare(found, expected)
    assert found.skipped == ("thing-11",)


@pytest.mark.parametrize("threshold", ["bbox", "image"])
def test_three_towers_equal_concatenated_features(threshold):
    """The mean of cosines is the cosine of concatenated features of length 1."""
    pairs = random_set(3)
    maps = [random_maps(5, dim, 6, dim) for dim in (4, 9, 16)]
    options = Options(Match(2), threshold)
    towers = [tower(one, str(i)) for i, one in enumerate(maps)]
    (found,) = score(pairs, towers, [[1 / 3] * 3], 6, options, detail=True)
    made = pairs.categories[0]
    expected = plain.score(
        made,
        pairs.alphas,
        lambda i: [one[i][None] for one in maps],
        2,
        threshold=threshold,
        groups=made.groups,
    )
    compare(found, expected)


@pytest.mark.parametrize(
    ("name", "value"), [("GROUP_PAIRS", 2), ("ROWS", 3), ("BLOCK_FLOATS", 1), ("ROWS_BYTES", 1)]
)
def test_how_the_work_is_cut_changes_nothing(monkeypatch, name, value):
    """Groups of pairs, blocks of rows, blocks of representations, chunks of sources."""
    pairs, members = random_set(4), membership(all_combinations(3), 3)
    towers = [tower(random_maps(5, 8, 6, seed), str(seed)) for seed in range(3)]
    (whole,) = score(pairs, towers, members, 6, detail=True)
    monkeypatch.setattr(module, name, value)
    (cut,) = score(pairs, towers, members, 6, detail=True)
    assert np.array_equal(whole.detail.hits_SPA, cut.detail.hits_SPA)
    assert np.nanmax(abs(whole.detail.predicted_SPK2 - cut.detail.predicted_SPK2)) < 1e-3


def test_each_map_is_read_once(monkeypatch):
    """Also where a picture is a source and a target; where memory is short, at most twice."""
    pairs = random_set(5)
    maps = random_maps(5, 8, 6, 0)
    read = []

    class Counting(type(tower(maps))):
        def raw(self, picture):
            read.append(picture.name)
            return super().raw(picture)

    counting = Counting(**vars(tower(maps)))
    score(pairs, [counting], [[1]], 6)
    assert sorted(read) == sorted(set(read))
    read.clear()
    monkeypatch.setattr(rows, "MAPS_BYTES", 0)
    score(pairs, [counting], [[1]], 6)
    assert max(map(read.count, read)) == 2


def test_by_hand():
    """Two pairs on a 2 x 2 grid, whose cells are the unit vectors; thresholds in the frame."""
    basis = torch.eye(4)
    same = basis.unflatten(1, (2, 2))  # cell i holds vector i
    turned = basis[:, [3, 2, 1, 0]].unflatten(1, (2, 2))
    kps = [[[100, 100, 1], [600, 100, 1], [0, 0, 0]]] * 2
    true = [[[210, 210, 1], [630, 210, 1], [5, 5, 1]], [[630, 630, 1], [210, 500, 1], [0, 0, 0]]]
    made = category(kps, true, [0, 0], [0, 1], [420, 420])
    pairs = pair_set([made], 2)
    (found,) = score(pairs, [tower([same, turned])], [[1]], 2, Options(Match(None)), detail=True)
    assert found.detail.predicted_SPK2[0, 0, :2].tolist() == [[210, 210], [630, 210]]
    assert found.detail.predicted_SPK2[0, 1, :2].tolist() == [[630, 630], [210, 630]]
    assert found.detail.points_P.tolist() == [2, 2]
    assert found.detail.hits_SPA[0].tolist() == [[2, 2, 2], [1, 1, 1]]  # 130 px off is too far
    assert found.all.mean("image").tolist() == [[0.75, 0.75, 0.75]]


def test_the_limit_itself_is_a_miss():
    """An error of exactly alpha times the side is wrong, as in the reference."""
    kps = [[[10, 10, 1]]]
    side = 30 / float(np.float32(0.10))
    made = category(kps, [[[240, 210, 1]]], [0], [0], [side])
    again = category(kps, [[[240, 210, 1]]], [0], [0], [side * (1 + 1e-12)])
    maps = [torch.eye(4).unflatten(1, (2, 2))]
    for one, expected in ((made, 0), (again, 1)):
        (found,) = score(pair_set([one], 1), [tower(maps)], [[1]], 2, Options(Match(None)))
        assert found.all.hits_SA[0, 0] == expected


def test_points_on_the_border_stay_in_the_grid():
    """x = 840 is in the last column, not in the first one of the next row."""
    assert patch_index(np.array([[840, 10], [10, 840], [840, 840]]), 4).tolist() == [3, 12, 15]
    assert patch_centre(np.array([[0, 0]]), 16).tolist() == [[26, 26]]


def test_a_category_without_scorable_pairs_is_no_nan():
    """It has no sums, and the others are unchanged."""
    blind = category([[[0, 0, 0]]], [[[5, 5, 1]]], [0], [0], [100], name="blind")
    seeing = category([[[10, 10, 1]]], [[[210, 210, 1]]], [0], [0], [100], name="seeing")
    maps = [torch.eye(4).unflatten(1, (2, 2))]
    found = score(pair_set([blind, seeing], 1), [tower(maps)], [[1]], 2, detail=True)
    assert [one.all.pairs for one in found] == [0, 1]
    assert found[0].all.mean("image") is None
    assert found[0].skipped == ("blind-0",)
    total = found[0].all + found[1].all
    assert total.mean("image").tolist() == [[1, 1, 1]]
