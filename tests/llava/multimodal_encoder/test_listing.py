"""`law towers`: every name with its facts, and what one name stands for."""

import json

import pytest

from llava.errors import UsageError
from llava.model.multimodal_encoder import known, registry
from llava.model.multimodal_encoder.listing import main


def test_every_tower_is_listed(capsys):
    """Size, grid, tokens, layer, widths and package of each; what is missing and what to type."""
    main([])
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert set(known.towers()) <= set(rows)
    clip = rows["openai/clip-vit-large-patch14-336"].split()
    assert clip[1:] == [
        "336",
        "24",
        "x",
        "24",
        "576",
        "23",
        "of",
        "24",
        "1024",
        "1024",
        "transformers",
    ]
    assert rows["facebook/dinov2-large"].split()[1] == "224*"
    assert "(gated)" in rows["facebook/dinov3-vitl16-pretrain-lvd1689m"]
    for family in known.families().values():
        missing = known.missing_packages(family)
        assert (f"missing {', '.join(missing)}: {family.install}" in out) == bool(missing)


def test_one_name(capsys):
    """Its parts at their settled sizes and the projector's width."""
    main(["C+D@336"])
    out = capsys.readouterr().out
    assert out.count("24 x 24") == 3
    assert "projector input 2048" in out


def test_json(capsys):
    """The same as data, with the hash that results carry."""
    main(["dinov2@336", "--select", "cls_patch", "--json"])
    found = json.loads(capsys.readouterr().out)
    spec = registry.resolve("dinov2@336", select="cls_patch").parts[0]
    assert (found["name"], found["parts"][0]["hash"]) == ("facebook/dinov2-large@336", spec.hash())
    main(["--json"])
    assert [x["name"] for x in json.loads(capsys.readouterr().out)] == list(known.towers())


def test_unknown():
    """With the near name."""
    with pytest.raises(UsageError, match="did you mean 'DINOv2'"):
        main(["dinv2"])
