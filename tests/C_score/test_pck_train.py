"""`pck_train.py` and `pck_train_two.py`: the reference's YAML files, log lines and results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from C_score import pck_train, pck_train_two
from llava.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "C_score" / "configs"
GOLDEN = Path(__file__).parents[1] / "golden" / "cscore"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())["results"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with data/SPair-71k in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "SPair-71k").symlink_to(GOLDEN / "SPair-71k")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, changes, name="eval_zero_shot_spair.yaml"):
    """The shipped configuration with some keys changed, or left out where None."""
    lines = [line.partition("#")[0].strip() for line in (CONFIGS / name).read_text().splitlines()]
    keys = dict(line.split(": ", 1) for line in lines if line)
    keys |= {key: str(value) for key, value in changes.items()}
    path = folder / "config.yaml"
    path.write_text("".join(f"{k}: {v}\n" for k, v in keys.items() if v != "None"))
    return path


def run(folder, changes, script=pck_train, name="eval_zero_shot_spair.yaml"):
    script.main(["--config", str(write(folder, changes, name))])
    (path,) = (folder / "results_spair").glob("*/result.json")
    return json.loads(path.read_text())


def test_the_shipped_configuration(folder, capsys):
    """The published protocol, with the reference's lines on stdout and in result.log."""
    found = run(folder, {"MODEL": "modela16", "NOTE": "try"})
    printed = capsys.readouterr().out
    line = "Weighted Per image PCK0.10: 53.79%, image PCK0.05: 21.93%, image PCK0.01: 1.30%"
    assert line in printed
    assert "bus: PCK-Transfer@0.10: 55.15%" in printed
    assert "Weighted Per image geo-aware PCK0.10: 52.87%" in printed
    results = folder / "results_spair" / "pck_train_try_sample_1_None_lr_0.00125"
    assert line in (results / "result.log").read_text()
    assert found["score"]["protocol"].startswith("spair71k/test/image/bbox/soft5-zero/16x16/")
    run(folder, {"MODEL": "modela16", "NOTE": "try"})
    assert (results / "result1.log").is_file()  # an older log stays


def test_predictions_stand_by_keypoint_id(folder):
    """30 rows a pair, zeros for ids that the category never uses, as in the reference's pickle."""
    found = run(folder, {"MODEL": "modela16"})["pairs"]
    data = json.loads((GOLDEN / "expected.json").read_text())["data"]
    want = EXPECTED["modela16"]["soft_w5"]["pairs"]
    assert len(found) == len(want) == 36
    for entry, (pair, expected) in zip(found, want.items(), strict=True):
        stem, category = pair.split(":")
        assert Path(entry["src_fn"]).stem in stem
        used = data[category]["used_points"]
        xy = np.array(entry["src_kpts_pred"])
        assert xy.shape == (30, 2)
        assert np.linalg.norm(xy[used] - expected["pred_xy"], axis=1).max() < 3e-3
        assert not np.delete(xy, used, 0).any()
        assert entry["resize_resolution"] == 840


def test_two_towers(folder):
    changes = {"MODEL1": "modela24", "MODEL2": "modelb24"}
    found = run(folder, changes, pck_train_two, "eval_zero_shot_spair_two.yaml")["score"]
    want = EXPECTED["modela24+modelb24"]["soft_w5"]["per_image"]["overall"]
    assert list(found["overall"].values()) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "model", "setting", "average"),
    [
        ({"SOFT_EVAL": "false"}, "modela16", "argmax", "image"),
        ({"SOFT_EVAL_WINDOW": 7, "KPT_RESULT": "true"}, "modela16", "soft_w7", "keypoint"),
        ({"SOFT_EVAL_WINDOW": 0}, "modela16", "soft_w0", "image"),
        ({"IMG_THRESHOLD": "true"}, "modela16@img_threshold", "soft_w5", "image"),
        (
            {"ADAPT_FLIP": "true", "MUTUAL_NN": "true", "GEO_MAPPING": "reference"},
            "modela16@adapt_flip_mutual_nn",
            "soft_w5",
            "image",
        ),
    ],
)
def test_keys_select_the_protocol(folder, capsys, changes, model, setting, average):
    found = run(folder, {"MODEL": "modela16", **changes})["score"]
    want = EXPECTED[model][setting][f"per_{average}"]["overall"]
    assert list(found["overall"].values()) == pytest.approx(want, abs=1e-5)
    kind = {"image": "image", "keypoint": "kpt"}[average]
    assert f"Weighted Per {kind} PCK0.10: {100 * want[0]:.2f}%, {kind} PCK0.05" in (
        capsys.readouterr().out
    )


def test_a_sample_is_drawn_as_the_reference_draws(folder, capsys):
    """Its default of 20 pairs, with replacement, is said to be no benchmark."""
    found = run(folder, {"MODEL": "modela16", "TEST_SAMPLE": None})["score"]
    assert found["n_pairs"] == 60
    assert "the benchmark is TEST_SAMPLE: 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"DO_EVAL": "false"}, "set DO_EVAL: true"),
        ({"DUMMY_NET": "false"}, "set DUMMY_NET: true"),
        ({"DUMMY_NET": None}, "set DUMMY_NET: true"),
        ({"LR": "0.001"}, "LR: is of the reference's training"),
        ({"LOAD": "best.pth"}, "LOAD: is of the reference's training"),
        ({"ADAPT_FLIP": "true"}, "set MUTUAL_NN: true"),
        ({"ANNO_SIZE": 512}, "a frame of 840 pixels"),
        ({"ENSEMBLE": 0}, "ENSEMBLE"),
        ({"EVAL_DATASET": "spiar"}, "did you mean 'spair'"),
        ({"SOFT_EVAL_WINDOWS": 3}, "did you mean 'SOFT_EVAL_WINDOW'"),
        ({"SOFT_EVAL_WINDOW": -2}, "Gaussian"),
        ({"TEST_SAMPLE": -1}, "sample is -1"),
        ({"MODEL": None}, "MODEL: this key is required"),
        ({"MODEL": None, "MODEL1": "a", "MODEL2": "b"}, "python pck_train_two.py"),
    ],
)
def test_keys_that_cannot_be_meant(folder, changes, expected):
    with pytest.raises(UsageError, match=expected):
        run(folder, {"MODEL": "modela16", **changes})


def test_one_tower_in_the_script_for_two(folder):
    with pytest.raises(ConfigError, match=r"python pck_train\.py --config"):
        pck_train_two.main(["--config", str(write(folder, {}))])


def test_another_grid_than_the_file_says(folder):
    """An error that names both, never a silent reshape."""
    with pytest.raises(UsageError, match=r"NUM_PATCHES is 16, .* 24 x 24 .*_modela24\.pt"):
        run(folder, {"MODEL": "modela24"})
    assert run(folder, {"MODEL": "modela24", "NUM_PATCHES": None})["score"]["n_pairs"] == 36


def test_ensembles_have_a_folder_of_their_own(folder):
    with pytest.raises(Exception, match="features_ensemble8: no such folder"):
        run(folder, {"MODEL": "modela16", "ENSEMBLE": 8})


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pck_train.py", "pck_train_two.py"])
def test_run_as_the_readme_says(folder, script):
    """As a file, from another folder than the repository's root; a usage error is one line."""
    done = subprocess.run(
        [sys.executable, ROOT / "C_score" / script, "--config", "missing.yaml"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "missing.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr
