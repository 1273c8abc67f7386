"""warps-mini: the keypoints are where they are said to be, and a folder is whole or not there."""

import importlib.metadata
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from C_score import warps
from C_score.warps_layout import FEWEST, SLOTS, WHAT
from C_score.warps_scenes import PHOTOS, POINTS, corners, sure_disparity
from C_score.warps_views import LONGEST_PX, MARGIN_PX, homography, inside, project
from llava.errors import LawError, MissingPackageError, UsageError

SPAIR = {
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "train",
    "tvmonitor",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The set with seed 0."""
    pytest.importorskip("skimage")
    out = tmp_path_factory.mktemp("set") / "warps-mini"
    warps.build(out)
    return out


@pytest.fixture(scope="module")
def pairs(built):
    """Every pair annotation, by name."""
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((built / "PairAnnotation/test").glob("*.json"))
    }


@pytest.fixture(scope="module")
def greys(built):
    """Every image as grey levels, by file name."""
    return {
        path.name: np.asarray(Image.open(path).convert("L"), np.float32)
        for path in sorted(built.glob("JPEGImages/*/*.jpg"))
    }


def fit(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Homography through all of the points, by least squares; none of the code under test."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y, -u], [0, 0, 0, x, y, 1, -v * x, -v * y, -v]]
    return np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)


def moved(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[2, ...]: (x, y) through a homography."""
    found = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), 1)
    return found[:2] / found[2]


def difference(source: np.ndarray, target: np.ndarray, back: np.ndarray) -> float:
    """Mean grey difference of `target` to `source` drawn through `back`, where both have pixels."""
    y, x = np.mgrid[: target.shape[0] : 3, : target.shape[1] : 3].astype(float)
    from_x, from_y = moved(back, x, y)
    height, width = source.shape
    shared = (from_x >= 0) & (from_x <= width - 1) & (from_y >= 0) & (from_y <= height - 1)
    seen = map_coordinates(source, [from_y[shared], from_x[shared]], order=1)
    return float(np.abs(seen - target[::3, ::3][shared]).mean())


def test_a_homography_explains_every_pair_of_warps(pairs, greys):
    """Points fit to rounding, and the pictures agree under it far better than without it."""
    before, after = [], []
    for pair in pairs.values():
        if pair["category"] == "motorcycle":
            continue
        source, target = np.array(pair["src_kps"]), np.array(pair["trg_kps"])
        matrix = fit(source, target)
        # Coordinates are rounded to 0.001 px; the fit passes between them, magnified at most 3x.
        assert np.abs(moved(matrix, *source.T) - target.T).max() < 0.01
        names = pair["src_imname"], pair["trg_imname"]
        source_grey, target_grey = (greys[name] for name in names)
        identity = np.diag([source_grey.shape[1], source_grey.shape[0], 1.0])
        identity @= np.diag([1 / target_grey.shape[1], 1 / target_grey.shape[0], 1.0])
        before.append(difference(source_grey, target_grey, identity))
        after.append(difference(source_grey, target_grey, np.linalg.inv(matrix)))
        assert after[-1] < 0.5 * before[-1], names
    assert np.mean(after) < 0.2 * np.mean(before)


def test_the_stereo_pair_follows_its_disparity(pairs, greys):
    """x_right < x_left at the same height; squares around the points agree, unmoved ones do not."""
    (pair,) = (
        p
        for p in pairs.values()
        if p["filename"].startswith("motorcycle_left-") and "right" in p["filename"]
    )
    source, target = np.array(pair["src_kps"]), np.array(pair["trg_kps"])
    assert len(source) == POINTS
    assert np.abs(source[:, 1] - target[:, 1]).max() < 0.01
    shift = source[:, 0] - target[:, 0]
    scale = 480 / 741
    assert 7 * scale < shift.min() < shift.max() < 60 * scale  # range of the disparity map, scaled

    dy, dx = np.mgrid[-3:4, -3:4]

    def squares(name, points):
        at = [points[:, 1, None, None] + dy, points[:, 0, None, None] + dx]
        return map_coordinates(greys[name], at, order=1)

    left = squares(pair["src_imname"], source)
    after = np.abs(squares(pair["trg_imname"], target) - left).mean()
    before = np.abs(squares(pair["trg_imname"], source) - left).mean()
    assert after < 0.3 * before


def test_points_of_turned_stereo_views_agree(pairs):
    """Views of either picture lead to the same points: source to target and back is no detour."""
    chains = {}
    for pair in pairs.values():
        key = pair["src_imname"], pair["trg_imname"]
        chains[key] = dict(
            zip(pair["kps_ids"], zip(pair["src_kps"], pair["trg_kps"], strict=True), strict=True)
        )
    for (source, target), points in chains.items():
        for slot, (here, there) in points.items():
            assert chains[target, source][slot] == (there, here)


def test_annotations_say_what_is_in_the_images(built, pairs):
    """Sizes, slots, boxes; a pair repeats what its two images say."""
    images = {p.stem: json.loads(p.read_text()) for p in built.glob("ImageAnnotation/*/*.json")}
    for name, image in images.items():
        with Image.open(built / f"JPEGImages/{image['category']}/{name}.jpg") as opened:
            assert opened.size == (image["image_width"], image["image_height"])
            assert opened.mode == "RGB"
        assert max(image["image_width"], image["image_height"]) <= LONGEST_PX
        assert list(image["kps"]) == [str(slot) for slot in range(SLOTS)]
        shown = np.array([point for point in image["kps"].values() if point])
        assert (shown >= MARGIN_PX - 0.001).all()
        limit = np.array([image["image_width"], image["image_height"]]) - 1 - MARGIN_PX
        assert (shown <= limit + 0.001).all()
        x1, y1, x2, y2 = image["bndbox"]
        assert (np.floor(shown.min(0)) == [x1, y1]).all()
        assert (np.ceil(shown.max(0)) == [x2, y2]).all()
    for pair in pairs.values():
        for side in ("src", "trg"):
            image = images[pair[f"{side}_imname"].removesuffix(".jpg")]
            assert pair[f"{side}_imsize"] == [image["image_width"], image["image_height"], 3]
            assert pair[f"{side}_bndbox"] == image["bndbox"]
            assert pair[f"{side}_kps"] == [image["kps"][slot] for slot in pair["kps_ids"]]
        assert len(pair["kps_ids"]) >= FEWEST


def test_its_size(built, pairs):
    """What a laptop encodes in a minute, and enough pairs for a mean."""
    images = sorted(built.glob("JPEGImages/*/*.jpg"))
    assert len(images) == 6 * len(PHOTOS) == 60
    assert 250 <= len(pairs) <= 300
    assert np.mean([len(pair["kps_ids"]) for pair in pairs.values()]) > 12
    about = json.loads((built / "warps.json").read_text())
    assert about["pairs"] == len(pairs)
    shapes = {Image.open(path).size for path in images}
    assert any(w > h for w, h in shapes)
    assert any(w < h for w, h in shapes)
    linked = [pair for pair in pairs if pair.count("strong") + pair.count("medium") == 2]
    assert len(linked) >= 40


def test_layout_is_that_of_spair(built, pairs):
    """Names, folders, lists; categories that SPair-71k's tables of slots say nothing about."""
    for name, pair in pairs.items():
        number, _, rest = name.partition("-")
        assert number == f"{pair['pair_id']:06d}"
        assert rest == pair["filename"]
        stems = [pair[f"{side}_imname"].removesuffix(".jpg") for side in ("src", "trg")]
        assert rest == f"{'-'.join(stems)}:{pair['category']}"
    assert [pair["pair_id"] for pair in pairs.values()] == list(range(len(pairs)))
    for size, split in itertools.product(("large", "small"), ("trn", "val", "test")):
        lines = (built / f"Layout/{size}/{split}.txt").read_text().splitlines()
        assert lines == (list(pairs) if split == "test" else [])
    categories = {path.name for path in (built / "JPEGImages").iterdir()}
    assert categories == {photo.name for photo in PHOTOS}
    assert not categories & SPAIR


def test_it_says_what_it_is(built, pairs):
    """In the README, in every annotation, on the command line."""
    assert "geometric correspondence" in WHAT
    assert "not semantic" in WHAT
    assert WHAT in (built / "README.md").read_text()
    assert all(pair["note"] == WHAT for pair in pairs.values())
    assert json.loads((built / "warps.json").read_text())["note"] == WHAT


def test_pairs_of_each_severity(pairs):
    """SPair-71k's own keys for them."""
    assert {pair["viewpoint_variation"] for pair in pairs.values()} == {0, 1, 2}
    assert {pair["scale_variation"] for pair in pairs.values()} == {0, 1, 2}


def contents(folder) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes(built, tmp_path):
    """Twice the same set; another seed other warps of the same photographs."""
    again, other = tmp_path / "again", tmp_path / "other"
    warps.build(again)
    warps.build(other, seed=1)
    assert contents(again) == contents(built)
    photo = "JPEGImages/chelsea/chelsea_photo.jpg"
    assert (other / photo).read_bytes() == (built / photo).read_bytes()
    strong = "JPEGImages/chelsea/chelsea_strong1.jpg"
    assert (other / strong).read_bytes() != (built / strong).read_bytes()


def test_a_second_call_writes_nothing(built, capsys):
    """The command says that the set is there; what it prints is the same."""
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    warps.main(["--out", str(built)])
    printed = capsys.readouterr()
    assert "10 photographs" in printed.out
    assert WHAT in printed.out
    assert "is there already" in printed.err
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_features_may_lie_in_the_folder(built):
    """They are written beside the images, and are no change of the set."""
    (built / "features").mkdir()
    (built / "features/x.pt").write_bytes(b"x")
    assert warps.build(built)["pairs"] > 0


def test_folders_that_hold_something_else(built, tmp_path):
    """Nothing is overwritten: not another seed's set, not somebody's files, not a file."""
    with pytest.raises(UsageError, match=r"with seed 0, wanted version \d with seed 3"):
        warps.build(built, seed=3)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"exists and is no warps-mini; take another --out"):
        warps.build(tmp_path)
    with pytest.raises(UsageError, match="exists and is no warps-mini"):
        warps.build(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(LawError, match="cannot be written"):
        warps.build(tmp_path / "notes.txt" / "set")
    with pytest.raises(UsageError, match="--seed is -1"):
        warps.build(tmp_path / "new", seed=-1)


def test_a_changed_set_is_noticed(tmp_path, built):
    """A file that is gone or altered makes the command fail, with what to type."""
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    victim = next(copy.glob("PairAnnotation/test/*.json"))
    victim.unlink()
    with pytest.raises(LawError, match=r"were changed .* remove the folder and type `law warps"):
        warps.build(copy)
    (copy / "warps.json").write_text("{")
    with pytest.raises(LawError, match=r"warps\.json: cannot be read"):
        warps.build(copy)


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """No half-made set under the name that was asked for, nor under another."""
    pytest.importorskip("skimage")
    monkeypatch.setattr(warps, "read_scenes", lambda: [None])
    with pytest.raises(AttributeError):
        warps.build(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_image(tmp_path, monkeypatch):
    """What to install, before anything is written."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingPackageError, match="pip install scikit-image"):
        warps.build(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_homography_by_hand():
    """A square to twice its size and 10 px to the right, in coordinates of pixel corners."""
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
    matrix = homography(square, 2 * square + [10, 0])
    np.testing.assert_allclose(matrix, [[2, 0, 10], [0, 2, 0], [0, 0, 1]], atol=1e-12)
    # The centre of pixel (0, 0) is 0.5 from its corner, so 1.0 after doubling: pixel 10.5, 0.5.
    np.testing.assert_allclose(project(matrix, np.zeros((1, 2))), [[10.5, 0.5]])


def test_inside_keeps_a_margin():
    """Both ends count the same."""
    points = np.array([[6, 6], [5.9, 50], [93, 43], [93.1, 43], [50, 43.1]], float)
    assert inside(points, (100, 50)).tolist() == [True, False, True, False, False]


def test_corners_are_found():
    """The four corners of a bright square, and none on its flat parts or its edges."""
    pytest.importorskip("skimage")
    grey = np.zeros((200, 300), np.float32)
    grey[60:140, 80:200] = 200
    found = corners(grey, np.ones(grey.shape, bool))
    expected = np.array([[80, 60], [199, 60], [80, 139], [199, 139]])
    assert len(found) == 4
    distance = np.linalg.norm(found[:, None] - expected[None], axis=2)
    assert distance.min(0).max() < 3
    allowed = np.ones(grey.shape, bool)
    allowed[:100] = False
    assert (corners(grey, allowed)[:, 1] > 100).all()


def test_disparity_is_trusted_where_both_pictures_show_it():
    """A square 40 px nearer hides what lies beside it; edges and unknown pixels are left out."""
    generator = np.random.default_rng(0)
    scene = generator.uniform(0, 255, (100, 300)).astype(np.float32)
    disparity = np.full(scene.shape, 5.0)
    disparity[30:70, 150:200] = 45
    disparity[:, 250] = np.nan
    right = np.roll(scene, -5, 1)
    right[30:70, 105:155] = scene[30:70, 150:200]
    sure = sure_disparity(scene, right, disparity)
    assert sure[50, 175]  # the near square
    assert sure[10, 130]  # above it
    assert not sure[50, 130]  # its place in the right picture, 125, shows the square
    assert not sure[50, 150]  # half of what surrounds it is 40 px further away
    assert not sure[50, 251]
    assert not sure[50, 8]  # x = 3 in the right picture
    right[80:95, 20:60] = 0
    assert not sure_disparity(scene, right, disparity)[88, 45]
