"""`--check`: everything that is wrong, at once, without a step and without a GPU."""

import json
import re
import shutil

import pytest
from repository import ROOT
from safetensors.numpy import load_file
from world import stage1, stage2

from llava.train.args import parse
from llava.train.check import _data, _Found, _model, _offloaded, _towers
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


def test_marks_are_added_before_the_projector_is_read(world, tmp_path, capsys):
    """The file of stage 1 holds rows of <im_start> and <im_end>, which the model then has too."""
    marks = {"mm_use_im_start_end": True}
    train(stage1(world, tmp_path / "a", max_steps=1, **marks))
    projector = tmp_path / "a" / "mm_projector.bin"
    said, code = check(stage2(world, tmp_path / "b", projector, **marks), capsys)
    assert code == 0
    assert said.count(f"{projector} fits") == 1
    assert "embeddings              16,448 parameters" in said  # 514 of 32


def test_a_llava_of_other_towers(world, tmp_path, capsys):
    """That the projector is kept, or new, is what a run would do."""
    train(stage2(world, tmp_path / "a", max_steps=1))
    flags = {"model_name_or_path": tmp_path / "a"}
    assert "the projector is new" not in check(stage2(world, tmp_path / "b", **flags), capsys)[0]
    flags["vision_tower"] = world / "dinov2"
    assert "the projector is new" in check(stage2(world, tmp_path / "c", **flags), capsys)[0]


def teraflop(flags, capsys):
    """(TFLOP, epochs) that a check says."""
    said, _ = check(flags, capsys)
    flops, epochs = re.search(r"(\S+) TFLOP for (\S+) epoch", said).groups()
    return float(flops), float(epochs)


def test_hours_are_of_what_is_seen(world, tmp_path, capsys):
    """Of 24 records in steps of 4: six steps an epoch, whatever --num_train_epochs says."""
    epoch, seen = teraflop(stage1(world, tmp_path, max_steps=6), capsys)
    half = teraflop(stage1(world, tmp_path, max_steps=3), capsys)
    twice = teraflop(stage1(world, tmp_path, max_steps=-1, num_train_epochs=2), capsys)
    assert (seen, half[1], twice[1]) == (1, 0.5, 2)
    assert half[0] == pytest.approx(epoch / 2, rel=5e-3)  # of a whole number of tokens
    assert twice[0] == pytest.approx(epoch * 2, rel=1e-3)


def test_steps_of_packed_sequences(world, tmp_path, capsys):
    """Packs are what a batch holds."""
    flags = {"packing": True, "max_steps": -1, "num_train_epochs": 2}
    said, _ = check(stage2(world, tmp_path, per_device_train_batch_size=2, **flags), capsys)
    packs = int(re.search(r"makes (\d+) sequences", said)[1])
    assert packs < 30
    assert f"{2 * -(-packs // 2)} steps; " in said


def test_adapters_are_no_part_of_what_is_frozen(world, tmp_path, capsys):
    """All of the language model is frozen under LoRA, so memory counts its weights whole."""
    flags = stage2(world, tmp_path, lora_enable=True, lora_r=4)
    found = _Found(parse(flags))
    for part in (_towers, _data, _model):
        list(part(found))
    frozen = sum(t.size for t in load_file(world / "llm" / "model.safetensors").values())
    assert found.sizes.frozen == frozen
    assert found.sizes.trained == 1856 + 4 * 2 * (4 * 64 + 3 * 96)


def read(name):
    """A config of DeepSpeed that is shipped."""
    return json.loads((ROOT / "scripts" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("zero", "offloads"),
    [
        ({}, (False, False)),
        ({"offload_optimizer": {"device": "cpu"}}, (False, True)),
        ({"offload_param": {"device": "none"}}, (False, False)),
        (
            json.loads((ROOT / "scripts/zero3_offload.json").read_text())["zero_optimization"],
            (1, 1),
        ),
    ],
)
def test_offloading(zero, offloads):
    """States alone, or weights too, as DeepSpeed's config says."""
    assert tuple(_offloaded(zero, f"offload_{what}") for what in ("param", "optimizer")) == offloads
