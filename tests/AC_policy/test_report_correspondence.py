"""The report's section on correspondence: what `law c-score` wrote, shown as it is."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from AC_policy.report import correspondence
from llava.__main__ import main
from llava.errors import UsageError


def entry(model: str, value: float, **changes) -> dict:
    """One result as `law c-score --json` writes it, without what the report does not read."""
    return {
        "model": model,
        "protocol": "warps-mini/test/image/bbox/soft5-zero/16x16/anno840/tower/noflip",
        "n_pairs": 294,
        "n_keypoints": 4074,
        "overall": {"0.10": value, "0.05": value / 2, "0.01": value / 50},
        "stderr": {"0.10": 0.015, "0.05": 0.01, "0.01": 0.001},
    } | changes


@pytest.fixture
def folder(tmp_path):
    """Two towers, their combination, and a picture of each."""
    results = [entry("a/one", 0.4), entry("b", 0.6), entry("a/one+b", 0.7)]
    (tmp_path / "c_score.json").write_text(json.dumps({"results": results}))
    for name in ("a-one", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (50, 1500, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / name / "000001-x-y.png")
    return tmp_path


def test_numbers_order_and_pictures(folder):
    """Best first at 0.05; singles and combinations apart; pictures inside, not beyond the page."""
    found = correspondence.read(folder)
    assert [score.name for score in found.scores] == ["a/one+b", "b", "a/one"]
    assert found.alpha == "0.05"
    html = correspondence.section(found)
    text = re.sub(r"<[^>]+>", " ", html)
    assert "294 pairs with 4074 keypoints" in text
    assert "tests geometric, not semantic, correspondence" in text
    assert "30.0 ± 1.0" in text
    assert "All 1 combinations" in text
    assert "a/one+b, 5.0 points above the best single encoder, b" in text
    assert text.index("b") < text.index("a/one+b, 5.0")
    assert html.count("data:image/jpeg") == 2
    assert html.count("data:image/svg+xml") == 1
    assert "a-one: 000001-x-y" in text
    assert html == correspondence.section(correspondence.read(folder))


def test_one_result_alone(tmp_path):
    """A single object, one pair (so no standard error), another set: no claim on warps."""
    alone = entry("b", 0.6, stderr=None, protocol="spair71k/test/image")
    (tmp_path / "c_score.json").write_text(json.dumps(alone))
    html = correspondence.section(correspondence.read(tmp_path))
    assert "60.0" in html
    assert "±" not in html
    assert "geometric" not in html
    assert "All combinations" not in html


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": []}', '{"results": [{}]}'])
def test_another_file(tmp_path, text):
    """Refused with the command that writes the right one."""
    (tmp_path / "c_score.json").write_text(text)
    with pytest.raises(UsageError, match="not what `law c-score --json"):
        correspondence.read(tmp_path)


@pytest.mark.slow
def test_a_folder_that_is_not_there(tmp_path, capsys):
    """Said and left out; with one, test_quickstart looks for the section in its page."""
    out = tmp_path / "report.html"
    main(["report", "--correspondence", str(tmp_path / "no"), "--out", str(out), "--trials", "20"])
    assert "Correspondence, measured here" not in out.read_text()
    assert "no section on it" in capsys.readouterr().err
