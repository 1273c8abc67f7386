"""`--check`: everything that is wrong, at once, without a step and without a GPU."""

import json
import shutil

import pytest
from world import stage1, stage2

from llava.train.train import main as train


def check(flags, capsys):
    """(report, exit code) of a check."""
    try:
        train([*flags, "--check"])
        code = 0
    except SystemExit as ended:
        code = ended.code
    return capsys.readouterr().out, code


def test_nothing_is_wrong(world, tmp_path, capsys):
    """Towers, data, a sample with its mask, lengths, parameters, needs; and no run."""
    said, code = check(stage1(world, tmp_path, max_steps=-1), capsys)
    assert code == 0
    assert "16 tokens 24 wide" in said
    assert "24 of 24 records are used" in said
    assert "24 samples' images decoded, 0 bad" in said
    assert '"<s> <image> [[a red fox.\\n]]"' in said
    assert "longest 37 of 96 allowed" in said
    assert "projector                1,856 parameters,          1,856 trained" in said
    assert "language model          20,640 parameters,              0 trained" in said
    assert "18 steps" in said
    assert "begins anew" in said
    assert "of the FLOPs of every epoch" in said
    assert said.endswith("Nothing is wrong.\n")
    assert not list(tmp_path.glob("mm_projector*"))


def test_lora_and_stage2(world, tmp_path, capsys):
    """What is trained differs by stage."""
    said, code = check(stage2(world, tmp_path / "a"), capsys)
    assert code == 0
    assert "the projector is new" in said
    assert "head                    16,384 parameters,         16,384 trained" in said
    said, code = check(stage2(world, tmp_path / "b", lora_enable=True, lora_r=4), capsys)
    # two layers: q k v o 32 + 32 each, gate and up 32 + 64, down 64 + 32, times the rank
    assert f"adapters       {4 * 2 * (4 * 64 + 3 * 96):>15,} parameters, all trained" in said


def test_everything_wrong_is_listed(world, tmp_path, capsys):
    """A wrong projector does not hide a damaged image, nor that a wrong length."""
    train(stage1(world, tmp_path / "projector", max_steps=1))
    images = tmp_path / "images"
    shutil.copytree(world / "images", images)
    (images / "5.png").write_bytes((images / "5.png").read_bytes()[:50])
    flags = {"vision_tower": world / "dinov2", "image_folder": images}
    projector = tmp_path / "projector" / "mm_projector.bin"
    said, code = check(stage2(world, tmp_path / "run", projector, **flags), capsys)
    assert code == 1
    assert "2 problem(s):" in said
    problems = said[said.index("2 problem(s)") :]
    assert "5.png" in problems
    assert "was trained with" in problems
    said, code = check(stage1(world, tmp_path / "b", model_max_length=1024), capsys)
    assert (code, "has 512 positions" in said) == (1, True)


def test_images_are_sampled(world, tmp_path, capsys):
    """As many as asked for, spread over the data; none with 0."""
    flags = stage1(world, tmp_path)
    assert "7 samples' images decoded" in check([*flags, "--check_images", "7"], capsys)[0]
    assert "24 samples' images decoded" in check([*flags, "--check_images", "-1"], capsys)[0]
    assert "\n  0 samples' images decoded" in check([*flags, "--check_images", "0"], capsys)[0]


@pytest.mark.parametrize("spoil", ["data", "tower", "llm"])
def test_goes_on_after_a_part_fails(world, tmp_path, capsys, spoil):
    """A part that another one needs is `not known`, not a traceback."""
    (tmp_path / "empty.json").write_text(json.dumps([]))
    flags = {
        "data": {"data_path": tmp_path / "empty.json"},
        "tower": {"vision_tower": "clippp"},
        "llm": {"model_name_or_path": world / "images"},
    }[spoil]
    said, code = check(stage1(world, tmp_path / "run", **flags), capsys)
    assert code == 1
    assert "problem(s):" in said
    assert "Stored features" in said
