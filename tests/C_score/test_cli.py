"""`law c-score`: what it prints and writes, and how it refuses."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from C_score import cli
from C_score.datasets import read_pairs
from C_score.protocol import Protocol
from C_score.score import Options
from C_score.show import file_name
from llava import results
from llava.errors import LawError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "cscore"
SPAIR = GOLDEN / "SPair-71k"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())["results"]
PROTOCOL = "spair71k/test/image/bbox/soft5-zero/16x16/anno840/external/noflip"


@pytest.fixture
def answer(tmp_path):
    """Runs the command on the golden set with --json: what it wrote."""

    def run(*flags, data=SPAIR):
        path = tmp_path / "answer.json"
        cli.main(["--data", str(data), *map(str, flags), "--json", str(path)])
        return json.loads(path.read_text())

    return run


def test_defaults_are_the_published_protocol(answer, capsys):
    """All that others build on is in the JSON; fractions there, percent on stdout."""
    found = answer("--model", "modela16")
    want = EXPECTED["modela16"]["soft_w5"]["per_image"]
    assert found["protocol"] == PROTOCOL
    assert list(found["overall"].values()) == pytest.approx(want["overall"], abs=1e-5)
    assert list(found["overall"]) == ["0.10", "0.05", "0.01"]
    assert set(found["per_category"]) == {"bus", "cat", "pottedplant"}
    assert found["per_category"]["cat"].keys() == found["overall"].keys()
    assert (found["n_pairs"], found["n_keypoints"], found["n_skipped"]) == (36, 289, 0)
    assert found["geo"].keys() >= {"per_image", "per_keypoint", "n"}
    assert found["geo"]["per_image"].keys() == found["overall"].keys()
    printed = capsys.readouterr()
    assert "overall            36        289     53.79     21.93      1.30" in printed.out
    assert PROTOCOL in printed.out
    assert "reading 18 images from" in printed.err
    assert found["averages"]["image"]["overall"] == found["overall"]


def test_categories_are_part_of_the_protocol(answer, tmp_path):
    """A score of some categories is no score of the set, and its row says so."""
    table = tmp_path / "results.csv"
    flags = ("--category", "cat", "--category", "bus", "--results", table)
    found = answer("--model", "modela16", *flags)
    assert found["protocol"] == PROTOCOL.replace("/test/", "/test-bus+cat/")
    assert set(found["per_category"]) == {"bus", "cat"}
    assert "spair71k/test-bus+cat/" in table.read_text()


def test_long_names_of_drawings():
    """A model with a long prompt, or many towers, has a folder that can be made."""
    found = [file_name(f"sd1.5:prompt={'a' * 300}{end}+clip") for end in "ab"]
    assert len(set(found)) == 2
    assert all(len(name) == 100 for name in found)
    assert file_name("sd1.5:t=261+clip") == "sd1.5-t-261+clip"


def test_drawing_is_refused_before_scoring(tmp_path, capsys):
    """Where an image is missing, or the folder cannot be written."""
    data = tmp_path / "SPair-71k"
    shutil.copytree(SPAIR, data)
    arguments = ["--data", str(data), "--model", "modela16", "--draw", "1", "--draw-dir"]
    (tmp_path / "file").write_text("")
    with pytest.raises(LawError, match="cannot be written"):
        cli.main([*arguments, str(tmp_path / "file")])
    next((data / "JPEGImages").rglob("*.jpg")).unlink()
    with pytest.raises(LawError, match=r"--draw: 1 images of the set are not there.*leave --draw"):
        cli.main([*arguments, str(tmp_path / "drawn")])
    assert capsys.readouterr().out == ""


def test_without_boxes_the_image_is_the_threshold():
    """The protocol says what was done, not what was asked for."""
    pairs = read_pairs("spair", SPAIR)
    bare = dataclasses.replace(
        pairs,
        categories=tuple(dataclasses.replace(c, target_box=None) for c in pairs.categories),
    )
    assert "/image/bbox/" in Protocol(pairs, Options(), 16).text([])
    assert "/image/image/" in Protocol(bare, Options(), 16).text([])


FLAGS = {
    ("--window", "7"): ("soft_w7", "soft7-zero"),
    ("--window", "0"): ("soft_w0", "soft0"),
    ("--window", "hard"): ("argmax", "hard"),
}


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("average", ["image", "keypoint"])
def test_flags_select_the_protocol(answer, flags, average):
    setting, text = FLAGS[flags]
    found = answer("--model", "modelb24", *flags, "--average", average)
    assert found["protocol"] == PROTOCOL.replace("soft5-zero", text).replace(
        "/image/", f"/{average}/"
    ).replace("16x16", "24x24")
    want = EXPECTED["modelb24"][setting][f"per_{average}"]["overall"]
    assert list(found["overall"].values()) == pytest.approx(want, abs=1e-5)


def test_the_fill_that_the_reference_lacks(answer):
    """Figures that were measured apart from this code, to their digits."""
    for model, percent in (("modelb16", 47.97), ("modelb24", 58.05)):
        found = answer("--model", model, "--fill", "inf")
        assert 100 * found["overall"]["0.10"] == pytest.approx(percent, abs=0.005)
        assert "soft5-inf" in found["protocol"]


def test_threshold_flip_and_mapping(answer):
    found = answer("--model", "modela16", "--threshold", "image")
    want = EXPECTED["modela16@img_threshold"]["soft_w5"]["per_image"]["overall"]
    assert list(found["overall"].values()) == pytest.approx(want, abs=1e-5)
    assert "/image/image/" in found["protocol"]
    found = answer("--model", "modela16", "--flip", "--geo-mapping", "reference")
    want = EXPECTED["modela16@adapt_flip_mutual_nn"]["soft_w5"]["per_image"]["overall"]
    assert list(found["overall"].values()) == pytest.approx(want, abs=1e-5)
    assert found["protocol"].endswith("/flip-reference")
    assert answer("--model", "modela16", "--flip")["protocol"].endswith("/flip")


def test_several_models(answer, capsys):
    """A list in their order, each with its own grid; the table ranks them."""
    found = answer("--model", "modela16", "--model", "modela24+modelb24")["results"]
    assert [one["model"] for one in found] == ["modela16", "modela24+modelb24"]
    assert [one["protocol"].split("/")[5] for one in found] == ["16x16", "24x24"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["modela24+modelb24", "modela16"]


def test_all_combinations(answer, tmp_path):
    """One entry and one set of rows for each; the law reads the table."""
    table = tmp_path / "results.csv"
    models = ("--model", "modela16", "--model", "modelb16")
    found = answer(*models, "--all-combinations", "--results", table)["results"]
    assert [one["model"] for one in found] == ["modela16", "modelb16", "modela16+modelb16"]
    for one in found:
        want = EXPECTED[one["model"]]["soft_w5"]["per_image"]["overall"]
        assert list(one["overall"].values()) == pytest.approx(want, abs=1e-5)
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 3 * 4
    first = rows[0]
    assert (first["representation"], first["quantity"]) == ("modela16", "C_pck")
    assert (first["benchmark"], first["unit"], first["n"]) == ("spair71k", "percent", "36")
    assert float(first["value"]) == pytest.approx(100 * found[0]["overall"]["0.10"])
    assert float(first["stderr"]) == pytest.approx(100 * found[0]["stderr"]["0.10"])
    assert first["protocol"] == PROTOCOL
    assert [row["quantity"] for row in rows[:4]] == [
        "C_pck",
        "C_pck_0.05",
        "C_pck_0.01",
        "C_pck_geo",
    ]
    assert rows[-1]["representation"] == "modela16.modelb16"
    assert len(results.read(table)) == 12


def test_resampled_grids_say_so(answer):
    """Both grids stand in the protocol; without the flag they are refused."""
    found = answer("--model", "modela16+modela24", "--resample", "16")
    assert "/16x16+24x24r16x16/" in found["protocol"]
    assert answer("--model", "modela24", "--resample", "24")["protocol"].split("/")[5] == "24x24"
    with pytest.raises(UsageError, match="--resample 24"):
        answer("--model", "modela16+modela24")
    with pytest.raises(UsageError, match="--resample 24"):
        answer("--model", "modela16", "--model", "modela24", "--all-combinations")


def test_sample_is_no_benchmark(answer):
    """k pairs of a category, drawn with replacement; the protocol says it."""
    found = answer("--model", "modela16", "--sample", "20")
    assert found["n_pairs"] == 60
    assert "/test-sample20/" in found["protocol"]


def test_predictions_and_drawings(answer, tmp_path, capsys):
    """Every scored pair's keypoints in the 840 frame; two pictures each of some."""
    path = tmp_path / "predictions.json"
    flags = ("--predictions", path, "--draw", 2, "--draw-dir", tmp_path / "drawn")
    answer("--model", "modela16", *flags)
    (found,) = json.loads(path.read_text()).values()
    assert len(found) == 36
    want = EXPECTED["modela16"]["soft_w5"]["pairs"]
    for entry in found:
        away = np.array(entry["predicted"]) - want[entry["pair"]]["pred_xy"]
        assert np.linalg.norm(away, axis=1).max() < 3e-3
        assert entry["pck"] == pytest.approx(want[entry["pair"]]["pck"], abs=1e-5)
    drawn = sorted((tmp_path / "drawn" / "modela16").glob("*.png"))
    assert [path.stem.endswith("-heat") for path in drawn] == [True, False] * 2
    out = capsys.readouterr().out
    assert all(str(path) in out for path in drawn)


def test_pairs_without_common_keypoints(answer, tmp_path, capsys):
    """Counted and named; the figure of the others is theirs alone, and never NaN."""
    data = tmp_path / "SPair-71k"
    shutil.copytree(SPAIR, data)
    image = data / "ImageAnnotation" / "cat" / "2007_001986.json"
    record = json.loads(image.read_text())
    record["kps"] = dict.fromkeys(record["kps"])
    image.write_text(json.dumps(record))
    found = answer("--model", "modela16", data=data)
    blind = [pair for pair in EXPECTED["modela16"]["soft_w5"]["pairs"] if "2007_001986" in pair]
    assert found["n_skipped"] == len(blind) == len(found["skipped"]) > 0
    assert found["n_pairs"] == 36 - len(blind)
    assert set(found["skipped"]) == set(blind)
    assert found["categories"]["cat"] == {
        "n_pairs": 12 - len(blind),
        "n_keypoints": found["categories"]["cat"]["n_keypoints"],
        "n_skipped": len(blind),
    }
    pairs = EXPECTED["modela16"]["soft_w5"]["pairs"]
    left = [v["pck"] for pair, v in pairs.items() if pair.endswith(":cat") and pair not in blind]
    assert list(found["per_category"]["cat"].values()) == pytest.approx(np.mean(left, 0), abs=1e-5)
    assert f"{len(blind)} pairs are left out" in capsys.readouterr().out


def test_a_category_with_nothing_to_score(answer, tmp_path, capsys):
    """Said in words, left out of the averages; where it is all there is, an error."""
    data = tmp_path / "SPair-71k"
    shutil.copytree(SPAIR, data)
    for image in (data / "ImageAnnotation" / "cat").glob("*.json"):
        record = json.loads(image.read_text())
        record["kps"] = dict.fromkeys(record["kps"])
        image.write_text(json.dumps(record))
    found = answer("--model", "modela16", data=data)
    assert set(found["per_category"]) == {"bus", "pottedplant"}
    assert found["categories"]["cat"] == {"n_pairs": 0, "n_keypoints": 0, "n_skipped": 12}
    assert "nothing to score in: cat" in capsys.readouterr().out
    with pytest.raises(LawError, match="nothing to score"):
        answer("--model", "modela16", "--category", "cat", data=data)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--window", "wide"], "--window wide"),
        (["--window", "-3"], "Gaussian"),
        (["--fill", "infinity"], "known: zero, inf"),
        (["--average", "imge"], "did you mean 'image'"),
        (["--threshold", "box"], "did you mean 'bbox'"),
        (["--geo-mapping", "wrong"], "--geo-mapping"),
        (["--protocol", "papers"], "did you mean 'paper'"),
        (["--dataset", "spear"], "did you mean 'spair'"),
        (["--split", "tset"], "did you mean 'test'"),
        (["--category", "bsu"], "bus"),
        (["--model", "modela16"], "given twice"),
        (["--all-combinations"], "two towers"),
        (["--draw", "-1"], "--draw -1"),
        (["--sample", "-1"], "sample"),
        (["--resample", "0"], "--resample 0"),
        (["--model", "modelb16", "--all-combinations", "--draw", "1"], "single representations"),
    ],
)
def test_what_cannot_be_meant(answer, flags, expected):
    with pytest.raises(UsageError, match=expected):
        answer("--model", "modela16", *flags)


def test_features_elsewhere(answer, tmp_path):
    """--features names another folder in the same layout."""
    shutil.copytree(SPAIR / "features", tmp_path / "kept")
    found = answer("--model", "modela16", "--features", tmp_path / "kept")
    assert found["n_pairs"] == 36
    with pytest.raises(LawError, match="no such folder of features"):
        answer("--model", "modela16", "--features", tmp_path / "other")


def test_own_keypoints(answer, tmp_path):
    """A CSV and features beside it, by the names that the reader gives the pictures."""
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (84, 84)).save(tmp_path / f"{name}.png")
    table = tmp_path / "mine.csv"
    table.write_text(
        "category,source,target,keypoint,source_x,source_y,target_x,target_y\n"
        "thing,a.png,b.png,eye,10,10,60,10\nthing,a.png,b.png,nose,60,60,10,60\n"
    )
    (tmp_path / "features").mkdir()
    cells = torch.eye(4).unflatten(1, (2, 2))[None]
    torch.save(cells, tmp_path / "features" / "a_own.pt")
    torch.save(cells.flip(3), tmp_path / "features" / "b_own.pt")
    found = answer("--dataset", "csv", "--model", "own", "--window", "hard", data=table)
    assert found["n_keypoints"] == 2
    assert found["overall"]["0.10"] == 0  # 60 is 150 px from the cell's 630 on a side of 840
    assert found["protocol"].startswith("mine/test/image/image/hard/2x2/")


def command(*argv, cwd=None):
    """The `law` command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "llava", "c-score", *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_exit_codes(tmp_path):
    """2 for a name or flag that cannot be meant, 1 for work that fails; stdout stays empty."""
    for flags, code, text in (
        (["--model", "modelc"], 2, "unknown|did you mean|there are files of"),
        (["--model", "modela16", "--features", tmp_path / "x"], 1, "no such folder"),
    ):
        done = command("--data", SPAIR, *flags)
        assert (done.returncode, done.stdout) == (code, "")
        assert any(part in done.stderr for part in text.split("|"))
        assert "Traceback" not in done.stderr
