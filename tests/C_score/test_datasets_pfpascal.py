"""PF-Pascal on a stand-in in its layout."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from C_score.datasets import read_pairs
from llava.errors import LawError, UsageError

HEADER = "source_image,target_image,class,XA,YA,XB,YB"
IMAGES = "PF-dataset-PASCAL/JPEGImages"
TEST = f"""{HEADER}
{IMAGES}/2008_1.jpg,{IMAGES}/2008_2.jpg,20,10.5;20,5;10;,1;2,3;4
{IMAGES}/2008_3.jpg,{IMAGES}/2008_1.jpg,8,50;60;70,1;2;3,10;20;30,4;5;6
{IMAGES}/2008_2.jpg,{IMAGES}/2008_3.jpg,8.0,7,8,9,10
"""
NAN = np.nan


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images, pair lists of all splits, matrices for trn; the folder has another name."""
    root = tmp_path / "pascal"
    (root / "JPEGImages").mkdir(parents=True)
    for number, size in enumerate([(100, 50), (40, 80), (210, 210)], 1):
        Image.new("RGB", size).save(root / f"JPEGImages/2008_{number}.jpg")
    (root / "Annotations/cat").mkdir(parents=True)
    for number, kps in {1: [[1, 2], [NAN, NAN], [5, 6]], 2: [[3, 4], [7, 8]]}.items():
        scipy.io.savemat(root / f"Annotations/cat/2008_{number}.mat", {"kps": np.array(kps, float)})
    for split in ("test", "val"):
        (root / f"{split}_pairs_pf_pascal.csv").write_text(TEST)
    (root / "train_pairs_pf_pascal.csv").write_text(
        f"source_image,target_image,class,flip\n{IMAGES}/2008_1.jpg,{IMAGES}/2008_2.jpg,8,0\n"
    )
    return root


@pytest.mark.parametrize("split", ["test", "val"])
def test_pairs_of_the_lists(folder, split):
    """Class 8 is cat, 20 is tvmonitor; points go by their place in the list."""
    found = read_pairs("pfpascal", folder, split)
    assert (found.name, found.split, found.alphas) == ("pfpascal", split, (0.10, 0.05, 0.15))
    cat, monitor = found.categories
    assert (cat.name, monitor.name) == ("cat", "tvmonitor")
    assert cat.pairs == ("000003-2008_3-2008_1:cat", "000004-2008_2-2008_3:cat")
    assert cat.slots == (0, 1, 2)
    assert cat.source_kps[0].tolist() == [[200, 4, 1], [240, 8, 1], [280, 12, 1]]
    assert cat.source_kps[1].tolist() == [[283.5, 84, 1], [0, 0, 0], [0, 0, 0]]
    assert monitor.slots == (0, 1)
    assert np.allclose(monitor.source_kps, [[[88.2, 252, 1], [168, 294, 1]]])
    assert np.allclose(monitor.target_kps, [[[220.5, 31.5, 1], [231, 42, 1]]])


def test_no_boxes_and_no_groups(folder):
    """The threshold is the frame."""
    found = read_pairs("pfpascal", folder)
    for category in found.categories:
        assert set(category.threshold_px) == {840}
        assert (category.source_box, category.target_box) == (None, None)
        assert (category.groups, category.flip_groups) == ((), ())
    assert [p.name for p in found.pictures] == ["2008_3", "2008_1", "2008_2"]
    assert found.pictures[0].path == folder / "JPEGImages/2008_3.jpg"
    assert (found.pictures[2].width, found.pictures[2].height) == (40, 80)


def test_training_pairs(folder):
    """From the matrices, where NaN means not visible; other columns of the list are not read."""
    (cat,) = read_pairs("pfpascal", folder, "trn").categories
    assert cat.slots == (0, 1, 2)
    assert np.allclose(cat.source_kps, [[[8.4, 226.8, 1], [0, 0, 0], [42, 260.4, 1]]])
    assert np.allclose(cat.target_kps, [[[241.5, 42, 1], [283.5, 84, 1], [0, 0, 0]]])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("XA", "XC", "no column 'XA'"),
        (",20,", ",21,", "line 2: class is '21'; expected 1 to 20"),
        (",20,", ",cat,", "line 2: class is 'cat'"),
        (",20,", ",,", "line 2: class is ''"),
        ("5;10;", "5", "lists of different lengths (XA 2, YA 1, XB 2, YB 2)"),
        ("5;10;", "5;x", "line 2: YA is 'x'"),
        ("5;10;", "5;nan", "line 2: YA is 'nan'"),
        ("5;10;", "5;;10", "line 2: YA is ''"),
        (",3;4", "", "line 2: 6 cells; expected 7"),
        ("2008_2.jpg,20", "gone.jpg,20", "line 2: no such image"),
        ("2008_2.jpg,20", "../x.jpg,20", "is no plain path"),
        (f"{IMAGES}/2008_2.jpg,20", "2008_2.jpg,20", "expected PF-dataset-PASCAL/JPEGImages/"),
        ("2008_2.jpg,20", "bad.jpg,20", "cannot be read as an image"),
        (TEST[len(HEADER) :], "\n", "has a header and no rows"),
    ],
)
def test_lists_that_are_not_as_meant(folder, old, new, message):
    """File and line."""
    (folder / "JPEGImages/bad.jpg").write_bytes(b"")
    assert old in TEST
    (folder / "test_pairs_pf_pascal.csv").write_text(TEST.replace(old, new, 1))
    with pytest.raises(LawError) as error:
        read_pairs("pfpascal", folder)
    assert message in str(error.value)
    assert "test_pairs_pf_pascal.csv" in str(error.value)


def test_files_that_are_not_there(folder):
    """List, matrix, images' folder; a damaged matrix and one of another shape."""
    matrix = folder / "Annotations/cat/2008_2.mat"
    scipy.io.savemat(matrix, {"kps": np.zeros((3, 3))})
    with pytest.raises(LawError, match=r"`kps` has shape \(3, 3\)"):
        read_pairs("pfpascal", folder, "trn")
    scipy.io.savemat(matrix, {"other": np.zeros((3, 2))})
    with pytest.raises(LawError, match="no matrix `kps` can be read"):
        read_pairs("pfpascal", folder, "trn")
    matrix.write_bytes(b"cut off")
    with pytest.raises(LawError, match="no matrix `kps` can be read"):
        read_pairs("pfpascal", folder, "trn")
    matrix.unlink()
    with pytest.raises(LawError, match=r"2008_2.mat: no such file.*prepare_pfpascal.sh"):
        read_pairs("pfpascal", folder, "trn")
    (folder / "train_pairs_pf_pascal.csv").unlink()
    with pytest.raises(LawError, match=r"csv: no such file.*prepare_pfpascal.sh"):
        read_pairs("pfpascal", folder, "trn")
    with pytest.raises(LawError, match="pascal has; give that one"):
        read_pairs("pfpascal", folder.parent)


def test_a_category_without_pairs(folder):
    """Asked for by name."""
    with pytest.raises(UsageError, match="unknown category 'dog'; known: cat, tvmonitor"):
        read_pairs("pfpascal", folder, categories=["dog"])
