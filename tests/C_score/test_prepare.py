"""prepare_*.sh on local archives: whole sets or nothing, from a download or from a folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

from C_score.datasets import read_pairs

SCRIPTS = ROOT / "C_score" / "data"
SPAIR = ROOT / "tests/golden/cscore/SPair-71k"
OTHER = "--allow-other-counts"

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("tar") and shutil.which("unzip")),
    reason="needs bash, tar and unzip",
)
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="wget reads no file:// links")


def call(script: str, *arguments: object) -> subprocess.CompletedProcess:
    """`bash C_score/data/prepare_<script>.sh ARGUMENTS`."""
    return subprocess.run(
        ["bash", SCRIPTS / f"prepare_{script}.sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHON": sys.executable},
    )


def listing(folder: Path) -> list[str]:
    """What is in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The golden set without its features."""
    root = tmp_path_factory.mktemp("tree") / "SPair-71k"
    shutil.copytree(SPAIR, root, ignore=shutil.ignore_patterns("features", "Segmentation"))
    return root


def packed(tree: Path, folder: Path) -> Path:
    """SPair-71k.tar.gz of `tree` in `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / "SPair-71k.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, "SPair-71k")
    return path


@pytest.fixture
def source(tree, tmp_path) -> Path:
    """A folder with SPair's archive."""
    return packed(tree, tmp_path / "source").parent


def test_spair_from_a_folder(source, tmp_path):
    """Unpacked, checked, and it reads; a second call only checks; the next commands are printed."""
    to = tmp_path / "a folder"
    first = call("spair", to, "--from", source, OTHER)
    assert first.returncode == 0, first.stderr
    assert listing(to) == ["SPair-71k"]
    assert len(read_pairs("spair", to / "SPair-71k")) == 36
    assert (
        f"law c-score --dataset spair --data {str(to).replace(' ', chr(92) + ' ')}" in first.stdout
    )
    assert "extract_feature.py --input_path" in first.stdout
    before = (to / "SPair-71k").stat().st_mtime_ns
    second = call("spair", to, OTHER)
    assert second.returncode == 0
    assert "nothing to do" in second.stderr
    assert second.stdout == first.stdout
    assert (to / "SPair-71k").stat().st_mtime_ns == before


def test_spair_of_another_size(source, tmp_path):
    """Refused, since its scores compare with nothing; accepted with a warning where one says so."""
    refused = call("spair", tmp_path / "to", "--from", source)
    assert refused.returncode == 1
    assert "9 trn; expected 53340, as published" in refused.stderr
    assert listing(tmp_path / "to") == []
    accepted = call("spair", tmp_path / "to", "--from", source, OTHER)
    assert accepted.returncode == 0
    assert "WARNING: 36 test, but SPair-71k has 12234" in accepted.stderr
    assert "WARNING: 18 images, but SPair-71k has 1800" in accepted.stderr
    later = call("spair", tmp_path / "to")
    assert later.returncode == 1
    assert "is there but not complete" in later.stderr


@needs_curl
@pytest.mark.parametrize("come", [0.0, 0.4, 1.0])
def test_a_download_goes_on(source, tmp_path, come):
    """Where it stopped: nowhere, in the middle, or just before the file got its name."""
    to = tmp_path / "to"
    to.mkdir()
    whole = (source / "SPair-71k.tar.gz").read_bytes()
    if come:
        (to / "SPair-71k.tar.gz.part").write_bytes(whole[: int(come * len(whole))])
    done = call("spair", to, "--from", source.as_uri(), OTHER)
    assert done.returncode == 0, done.stderr
    assert listing(to) == ["SPair-71k", "SPair-71k.tar.gz"]
    assert (to / "SPair-71k.tar.gz").read_bytes() == whole


@needs_curl
def test_a_download_that_fails(tmp_path):
    """What has come is kept, and the message says how to go on."""
    to = tmp_path / "to"
    to.mkdir()
    (to / "SPair-71k.tar.gz.part").write_bytes(b"begin")
    done = call("spair", to, "--from", (tmp_path / "gone").as_uri())
    assert done.returncode == 1
    assert "The same command goes on with what has come" in done.stderr
    assert listing(to) == ["SPair-71k.tar.gz.part"]


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_a_damaged_archive(source, tmp_path, cut):
    """Nothing is unpacked; one in the folder itself is renamed, another's is left alone."""
    path = source / "SPair-71k.tar.gz"
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    to = tmp_path / "to"
    done = call("spair", to, "--from", source, OTHER)
    assert done.returncode == 1
    assert "cut off or damaged" in done.stderr
    assert listing(to) == []
    assert path.exists()
    shutil.copy(path, to)
    assert call("spair", to, OTHER).returncode == 1
    assert listing(to) == ["SPair-71k.tar.gz.damaged"]


def test_a_killed_unpacking(source, tmp_path):
    """Its rest is removed, not taken for the set."""
    rest = tmp_path / "to/.SPair-71k.partial/SPair-71k/JPEGImages/ufo"
    rest.mkdir(parents=True)
    (rest / "half.jpg").touch()
    assert call("spair", tmp_path / "to", "--from", source, OTHER).returncode == 0
    assert listing(tmp_path / "to") == ["SPair-71k"]
    assert not (tmp_path / "to/SPair-71k/JPEGImages/ufo").exists()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("PairAnnotation/test/000006-2009_006962-2011_008904:bus.json", "Layout lists it"),
        ("Layout/large/val.txt", "Layout/large/val.txt is missing"),
        ("JPEGImages/cat/2007_001986.jpg", "17 images, but 18 image annotations"),
    ],
)
def test_a_set_that_is_not_whole(tree, tmp_path, gone, message):
    """In the archive, and in a folder that is there already, which is not touched."""
    root = tmp_path / "SPair-71k"
    shutil.copytree(tree, root)
    (root / gone).unlink()
    packed(root, tmp_path / "source")
    done = call("spair", tmp_path / "to", "--from", tmp_path / "source", OTHER)
    assert done.returncode == 1
    assert message in done.stderr
    assert listing(tmp_path / "to") == []
    done = call("spair", tmp_path, OTHER)
    assert done.returncode == 1
    assert message in done.stderr
    assert "move it away and call again" in done.stderr
    assert (root / "ImageAnnotation").exists()


def test_an_archive_of_something_else(tmp_path):
    """It holds no folder of the set's name."""
    (tmp_path / "other").mkdir()
    with tarfile.open(tmp_path / "SPair-71k.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "other", "other")
    done = call("spair", tmp_path)
    assert done.returncode == 1
    assert "holds no folder SPair-71k" in done.stderr
    assert ".SPair-71k.partial" not in listing(tmp_path)


@pytest.mark.parametrize("script", ["spair", "pfpascal", "ap10k"])
def test_usage(script, tmp_path):
    """--help on stdout; whatever cannot be meant ends with 2 and shows it too."""
    shown = call(script, "--help")
    assert shown.returncode == 0
    assert f"bash C_score/data/prepare_{script}.sh [DIR]" in shown.stdout
    foreign = ["--crowd", "x"] if script != "ap10k" else [OTHER]
    for wrong in (["--form", "x"], ["--from"], [tmp_path, tmp_path], foreign):
        done = call(script, *wrong)
        assert done.returncode == 2
        assert shown.stdout in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("script", "file"),
    [("spair", "SPair-71k.tar.gz"), ("pfpascal", "PF-dataset-PASCAL.zip"), ("ap10k", "ap-10k.zip")],
)
def test_a_folder_without_the_archive(script, file, tmp_path):
    """--from a folder never downloads."""
    (tmp_path / "empty").mkdir()
    done = call(script, tmp_path / "to", "--from", tmp_path / "empty")
    assert done.returncode == 1
    assert file in done.stderr
    assert listing(tmp_path / "to") == []


IMAGES = "PF-dataset-PASCAL/JPEGImages"
PAIRS = "source_image,target_image,class,XA,YA,XB,YB\r\n"


@pytest.fixture
def pascal(tmp_path) -> Path:
    """A folder with PF-Pascal's archive, with what macOS leaves in it, and two pair lists."""
    from PIL import Image

    folder = tmp_path / "source"
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "i.jpg")
    with zipfile.ZipFile(folder / "PF-dataset-PASCAL.zip", "w") as archive:
        for name in ("2008_1.jpg", "2008_2.jpg"):
            archive.write(tmp_path / "i.jpg", f"{IMAGES}/{name}")
        archive.writestr("__MACOSX/PF-dataset-PASCAL/._x", "")
        archive.writestr("PF-dataset-PASCAL/Annotations/.DS_Store", "")
    row = f"{IMAGES}/2008_1.jpg,{IMAGES}/2008_2.jpg,8,1;2,3;4,5;6,7;8"
    for split in ("test", "val"):
        (folder / f"{split}_pairs_pf_pascal.csv").write_text(PAIRS + row, newline="")
    return folder


def test_pfpascal_from_a_folder(pascal, tmp_path):
    """It reads; the training pairs are told of, and taken up by a later call."""
    to = tmp_path / "to"
    done = call("pfpascal", to, "--from", pascal)
    assert done.returncode == 0, done.stderr
    assert listing(to) == ["PF-dataset-PASCAL"]
    assert not (to / "PF-dataset-PASCAL/Annotations/.DS_Store").exists()
    assert len(read_pairs("pfpascal", to / "PF-dataset-PASCAL")) == 1
    assert "gdown 111tpXshLiJ4qudBHoGK3HbMSNr9vVRq9" in done.stderr
    assert "law c-score --dataset pfpascal" in done.stdout
    row = f"{IMAGES}/2008_1.jpg,{IMAGES}/2008_2.jpg,8\n"
    (to / "train_pairs_pf_pascal.csv").write_text("source_image,target_image,class\n" + row)
    done = call("pfpascal", to)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert "gdown" not in done.stderr
    assert (to / "PF-dataset-PASCAL/train_pairs_pf_pascal.csv").exists()


@needs_curl
def test_pfpascal_by_download(pascal, tmp_path):
    """Archive and lists."""
    done = call("pfpascal", tmp_path / "to", "--from", pascal.as_uri())
    assert done.returncode == 0, done.stderr
    assert len(read_pairs("pfpascal", tmp_path / "to/PF-dataset-PASCAL", "val")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIRS, "holds no pairs"),
        (
            f"{PAIRS}{IMAGES}/gone.jpg,{IMAGES}/2008_1.jpg,8,1,2,3,4",
            "JPEGImages/gone.jpg is missing",
        ),
    ],
)
def test_pfpascal_lists_that_do_not_fit(pascal, tmp_path, text, message):
    """Nothing is left behind."""
    (pascal / "val_pairs_pf_pascal.csv").write_text(text)
    done = call("pfpascal", tmp_path / "to", "--from", pascal)
    assert done.returncode == 1
    assert message in done.stderr
    assert listing(tmp_path / "to") == []


def test_pfpascal_cut_off(pascal, tmp_path):
    """The archive, then a list that is not there."""
    path = pascal / "PF-dataset-PASCAL.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    done = call("pfpascal", tmp_path / "to", "--from", pascal)
    assert done.returncode == 1
    assert "cut off or damaged" in done.stderr
    path.write_bytes(whole)
    (pascal / "test_pairs_pf_pascal.csv").unlink()
    done = call("pfpascal", tmp_path / "to", "--from", pascal)
    assert done.returncode == 1
    assert "has no test_pairs_pf_pascal.csv" in done.stderr
    assert listing(tmp_path / "to") == []


@pytest.fixture
def animals(tmp_path) -> Path:
    """A folder with ap-10k.zip: 32 images of one animal."""
    numbers = range(1, 33)
    coco = {
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 20, "height": 10} for i in numbers
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [1, 2, 3, 4],
                "keypoints": [5, 6, 2] * 17,
            }
            for i in numbers
        ],
        "categories": [{"id": 1, "name": "brown bear", "supercategory": "Ursidae"}],
    }
    empty = {**coco, "images": [], "annotations": []}
    folder = tmp_path / "source"
    folder.mkdir()
    with zipfile.ZipFile(folder / "ap-10k.zip", "w") as archive:
        for i in numbers:
            archive.writestr(f"ap-10k/data/{i:012d}.jpg", "image")
        for part, content in {"train": coco, "val": empty, "test": empty}.items():
            archive.writestr(f"ap-10k/annotations/ap10k-{part}-split1.json", json.dumps(content))
    return folder


def test_ap10k_from_a_folder(animals, tmp_path):
    """Unpacked, with its pairs; a second call does nothing."""
    to = tmp_path / "to"
    done = call("ap10k", to, "--from", animals)
    assert done.returncode == 0, done.stderr
    assert listing(to) == ["ap-10k"]
    found = read_pairs("ap10k", to / "ap-10k")
    assert [(c.name, len(c)) for c in found.categories] == [("brown bear", 435)]
    assert found.missing_images() == []
    assert "law c-score --dataset ap10k" in done.stdout
    again = call("ap10k", to)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


def test_ap10k_unpacked_by_hand(animals, tmp_path):
    """The pairs are made where it lies; a list of crowds is passed on."""
    with zipfile.ZipFile(animals / "ap-10k.zip") as archive:
        archive.extractall(tmp_path / "to")
    (tmp_path / "crowd.txt").write_text("32\n")
    done = call("ap10k", tmp_path / "to", "--crowd", tmp_path / "crowd.txt")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "to/ap-10k/ap10k_prepared.json").read_text())
    assert record["left_out"] == {"000000000032.jpg": "crowd"}
    assert record["pairs"]["test"] == 435


def test_ap10k_without_the_archive(tmp_path):
    """Says which file to fetch, how, and where to put it."""
    done = call("ap10k", tmp_path)
    assert done.returncode == 1
    assert "gdown 1-FNNGcdtAQRehYYkGY1y4wzFNg4iWNad" in done.stderr
    assert f"{tmp_path}/ap-10k.zip" in done.stderr


def test_ap10k_that_cannot_be_prepared(animals, tmp_path):
    """A fault in the annotations leaves nothing half done."""
    with zipfile.ZipFile(animals / "ap-10k.zip", "w") as archive:
        archive.writestr("ap-10k/annotations/ap10k-train-split1.json", "{")
    done = call("ap10k", tmp_path / "to", "--from", animals)
    assert done.returncode == 1
    assert "not valid JSON" in done.stderr
    assert listing(tmp_path / "to") == []


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck():
    """The scripts and what they share."""
    scripts = sorted(path.name for path in SCRIPTS.glob("prepare_*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", *(f"C_score/data/{name}" for name in scripts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
