"""A user's own keypoints."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from C_score.datasets import read_pairs
from llava.errors import LawError, UsageError

HEADER = "category,source,target,keypoint,source_x,source_y,target_x,target_y"
BOX = ",target_x1,target_y1,target_x2,target_y2"
ROWS = """\
sign,a/stop.png,b.jpg,S,10,5,420,100
sign,a/stop.png,b.jpg,T,0,0,,
mug,b.jpg,a/stop.png,handle,1.5,375,100,50
sign,b.jpg,c.png,T,250,187.5,20,40
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images of 100 x 50, 500 x 375 and 40 x 80 pixels."""
    (tmp_path / "a").mkdir()
    for name, size in {"a/stop.png": (100, 50), "b.jpg": (500, 375), "c.png": (40, 80)}.items():
        Image.new("RGB", size).save(tmp_path / name)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    """`own.csv` in the folder."""
    path = folder / "own.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_boxes(folder):
    """The threshold is the frame; pairs are made of rows, in the file's order."""
    found = read_pairs("csv", written(folder, f"{HEADER}\n{ROWS}"))
    assert (found.name, found.split, found.alphas) == ("own", "test", (0.10, 0.05, 0.01))
    mug, sign = found.categories
    assert mug.pairs == ("000004-b-a--stop:mug",)
    assert sign.pairs == ("000002-a--stop-b:sign", "000005-b-c:sign")
    assert sign.slots == ("S", "T")
    assert sign.threshold_px.tolist() == [840, 840]
    assert (sign.target_box, sign.source_box, sign.groups) == (None, None, ())
    names = [found.pictures[i].name for i in (*sign.source, *sign.target)]
    assert names == ["a/stop", "b", "b", "c"]
    assert found.pictures[sign.source[0]].path == folder / "a/stop.png"
    assert found.missing_images() == []


def test_coordinates(folder):
    """Into the frame, with the image's own size; blank cells are not visible."""
    mug, sign = read_pairs("csv", written(folder, f"{HEADER}\n{ROWS}")).categories
    assert sign.source_kps[0].tolist() == [[84, 252, 1], [0, 210, 1]]
    assert sign.target_kps[0].tolist() == [[705.5999755859375, 273, 1], [0, 0, 0]]
    assert sign.source_kps[1].tolist() == [[0, 0, 0], [420, 420, 1]]
    assert sign.target_kps[1].tolist() == [[0, 0, 0], [420, 420, 1]]
    assert np.allclose(mug.source_kps, [[[2.52, 735, 1]]])
    assert np.allclose(mug.target_kps, [[[840, 630, 1]]], rtol=1e-7)  # 840 is 839.99994 in float32


def test_with_boxes(folder):
    """The longer side of the target's box, in the frame."""
    rows = [f"{row},{box}" for row, box in zip(ROWS.split(), BOXES, strict=True)]
    path = written(folder, "\n".join([HEADER + BOX, *rows]))
    mug, sign = read_pairs("csv", path).categories
    assert sign.threshold_px == pytest.approx([100 * 1.68, 40 * 10.5])
    assert mug.threshold_px == pytest.approx([30.5 * 8.4])
    assert sign.target_box.tolist() == [[10, 10, 110, 60], [0, 0, 30, 40]]
    assert sign.source_box is None


BOXES = ("10,10,110,60", "10,10,110,60", "0,0,30.5,20", "0,0,30,40")


def test_spaces_order_of_columns_and_blank_lines(folder):
    """As spreadsheets write them: a byte order mark, quotes, CRLF, lines of commas."""
    columns = [2, 1, 0, 3, 6, 7, 4, 5]
    lines = [line.split(",") for line in f"{HEADER}\n{ROWS}".splitlines()]
    text = "\r\n".join(",".join(f' "{cells[i]}"' for i in columns) for cells in lines)
    text = "\ufeff" + text.replace(' "', '"') + "\r\n,,,,,,,\r\n\r\n"
    swapped = read_pairs("csv", written(folder, text))
    assert [len(c) for c in swapped.categories] == [1, 2]
    assert [p.name for p in swapped.pictures] == ["b", "a/stop", "c"]


def test_categories_and_sample(folder):
    """As for the published sets."""
    path = written(folder, f"{HEADER}\n{ROWS}")
    found = read_pairs("csv", path, categories=["mug"], sample=3)
    assert [c.pairs for c in found.categories] == [("000004-b-a--stop:mug",) * 3]
    assert len(found.pictures) == 2
    with pytest.raises(UsageError, match="unknown category 'sgin'; did you mean 'sign'"):
        read_pairs("csv", path, categories=["sgin"])


GOOD = "sign,a/stop.png,b.jpg,S,10,5,420,100"
BOXED = HEADER + BOX


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no header; expected category,source,target"),
        (HEADER, "has a header and no rows"),
        (HEADER.replace("source_x", "sourcex") + f"\n{GOOD}", "is 'sourcex' meant for it?"),
        (HEADER.replace(",keypoint", "") + f"\n{GOOD}", "line 1: no column 'keypoint'"),
        (HEADER + f",target_x0\n{GOOD},1", "unknown column 'target_x0'; did you mean 'target_x"),
        (HEADER + f",note\n{GOOD},1", "unknown column 'note'"),
        (HEADER + f",keypoint\n{GOOD},1", "column 'keypoint' stands there twice"),
        (HEADER + f",target_x1\n{GOOD},1", "no column 'target_y1'; expected all of"),
        (HEADER.replace(",", ";") + f"\n{GOOD}", "no column 'category'"),
        (f"{HEADER}\n{GOOD},1", "line 2: 9 cells; expected 8"),
        (f"{HEADER}\n{GOOD}\nsign,a", "line 3: 2 cells; expected 8"),
        (f"{HEADER}\n\n{GOOD.replace('S,', ',')}", "line 3: keypoint is blank"),
        (f"{HEADER}\n{GOOD.replace('sign', ' ')}", "line 2: category is blank"),
        (f"{HEADER}\n{GOOD.replace('10', 'ten')}", "line 2: source_x is 'ten'"),
        (f"{HEADER}\n{GOOD.replace('10,5', 'nan,5')}", "line 2: source_x is 'nan'"),
        (f"{HEADER}\n{GOOD.replace('420', 'inf')}", "line 2: target_x is 'inf'"),
        (f"{HEADER}\n{GOOD.replace('10,5', '10,')}", "line 2: source_y is ''"),
        (
            f"{HEADER}\n{GOOD.replace('10,5', '100.5,5')}",
            "outside of a/stop.png, which is 100 x 50",
        ),
        (f"{HEADER}\n{GOOD.replace('10,5', '10,-1')}", "source_y is -1, outside"),
        (f"{HEADER}\n{GOOD}\n{GOOD}", "line 3: keypoint 'S' stands there already for this pair"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', 'gone.jpg')}", "line 2: no such image"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', '../b.jpg')}", "line 2: '../b.jpg' is no plain path"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', '/b.jpg')}", "is no plain path"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', 'a/./b.jpg')}", "is no plain path"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', 'C:/b.jpg')}", "is no plain path"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', 'bad.jpg')}", "line 2: cannot be read as an image"),
        (f"{HEADER}\n{GOOD.replace('b.jpg', 'a')}", "line 2: cannot be read as an image"),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('b.jpg', 'b.png')}", "rename one of the images"),
        (f"{BOXED}\n{GOOD},1,1,1,9", "line 2: the target's box 1, 1, 1, 9 has no area"),
        (f"{BOXED}\n{GOOD},1,1,5,", "line 2: target_y2 is ''"),
        (
            f"{BOXED}\n{GOOD},1,1,5,9\n{GOOD.replace('S,', 'T,')},1,1,5,8",
            "line 3: the box is (1.0, 1.0, 5.0, 8.0), but (1.0, 1.0, 5.0, 9.0) on line 2",
        ),
        (f'{HEADER}\n{GOOD}"x', "cannot be read as a CSV file"),
    ],
)
def test_what_is_wrong_is_named(folder, text, message):
    """File, line, and what was expected."""
    (folder / "bad.jpg").write_bytes(b"no image")
    Image.new("RGB", (500, 375)).save(folder / "b.png")
    if text.endswith('"x'):
        text = text.replace(GOOD, '"sign"x' + GOOD)
    with pytest.raises(LawError) as error:
        read_pairs("csv", written(folder, text))
    assert message in str(error.value)
    assert "own.csv" in str(error.value) or "rename" in message


def test_a_file_that_is_no_text(folder):
    """UTF-16, which some spreadsheets write; and a folder."""
    (folder / "own.csv").write_text(f"{HEADER}\n{ROWS}", encoding="utf-16")
    with pytest.raises(LawError, match="cannot be read as a CSV file in UTF-8"):
        read_pairs("csv", folder / "own.csv")
    with pytest.raises(LawError, match="is a folder; expected a CSV file"):
        read_pairs("csv", folder)
