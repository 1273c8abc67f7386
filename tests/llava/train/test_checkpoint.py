"""One good checkpoint always exists, and a damaged one is found before training starts from it."""

import json
from pathlib import Path

import pytest

from llava.errors import LawError, UsageError
from llava.train import checkpoint
from llava.train.checkpoint import (
    SAVING,
    Checkpoint,
    checkpoints,
    checksum,
    choose,
    clear_unfinished,
    publish,
    seal,
    set_aside,
)


def save(output, step, keep=None, text="weights"):
    """What a run does for a checkpoint."""
    saved = output / SAVING / f"checkpoint-{step}"
    (saved / "global_step").mkdir(parents=True)
    (saved / "model.safetensors").write_text(f"{text} {step}" * 10)
    (saved / "global_step" / "optimizer.pt").write_bytes(bytes(range(256)))
    return publish(saved, output, keep)


def damage(folder, how):
    """Does to a checkpoint what disks, quotas and hands do."""
    file = folder / "model.safetensors"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif how == "bit":
        content = bytearray(file.read_bytes())
        content[5] ^= 1
        file.write_bytes(bytes(content))
    elif how == "gone":
        (folder / "global_step" / "optimizer.pt").unlink()
    elif how == "unsealed":
        (folder / "checkpoint.json").unlink()
    else:
        (folder / "checkpoint.json").write_text('{"files": [')


HOWS = {
    "cut": "bytes, expected",
    "bit": "not what was written",
    "gone": "optimizer.pt is missing",
    "unsealed": "has no checkpoint.json",
    "seal": "checkpoint.json cannot be read",
}


def test_newest_is_taken(tmp_path):
    """Steps are numbers: 10 comes after 9; other folders are none of ours."""
    for step in (9, 10, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoint-11.tmp").mkdir()
    (tmp_path / "checkpoint-abc").mkdir()
    assert [one.step for one in checkpoints(tmp_path)] == [2, 9, 10]
    for asked in (None, "", "True", "true", "auto"):
        assert choose(tmp_path, asked) == tmp_path / "checkpoint-10"
    assert choose(tmp_path, "False") is None
    assert choose(tmp_path, str(tmp_path / "checkpoint-2")) == tmp_path / "checkpoint-2"


def test_nothing_to_go_on_from(tmp_path):
    """A first run just begins, unless it was told to go on."""
    assert choose(tmp_path / "new", None) is None
    assert choose(tmp_path / "new", "auto") is None
    with pytest.raises(UsageError, match="has no checkpoint-N"):
        choose(tmp_path, "True")
    with pytest.raises(UsageError, match="expected a folder checkpoint-N"):
        choose(tmp_path, str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("how", HOWS)
def test_damage_is_found(tmp_path, how, law_log):
    """The error names what is wrong, the newest good one and the flag that takes it."""
    save(tmp_path, 2)
    good = save(tmp_path, 4)
    damage(save(tmp_path, 6), how)
    with pytest.raises(LawError, match=HOWS[how]) as error:
        choose(tmp_path, None)
    assert str(good) in str(error.value)
    assert "--resume_from_checkpoint auto" in str(error.value)
    assert choose(tmp_path, "auto") == good
    assert any(HOWS[how] in line and "going on from checkpoint-4" in line for line in law_log)
    with pytest.raises(LawError, match=f"newest good one is {good}"):
        choose(tmp_path, str(tmp_path / "checkpoint-6"))


def test_no_good_one_left(tmp_path):
    """`auto` does not begin anew on its own."""
    damage(save(tmp_path, 2), "cut")
    for asked in (None, "auto"):
        with pytest.raises(LawError, match="no good checkpoint is left"):
            choose(tmp_path, asked)


def test_limit_keeps_the_newest(tmp_path):
    """With a limit of one, the older goes only after the newer is there."""
    for step in (2, 4, 6):
        save(tmp_path, step, keep=1)
        assert [one.step for one in checkpoints(tmp_path)] == [step]
    save(tmp_path, 8, keep=3)
    save(tmp_path, 10, keep=2)
    assert [one.step for one in checkpoints(tmp_path)] == [8, 10]
    save(tmp_path, 12, keep=0)
    assert len(checkpoints(tmp_path)) == 3


def test_older_stays_when_the_newer_is_bad(tmp_path, monkeypatch):
    """A checkpoint that does not read back removes nothing."""
    save(tmp_path, 2, keep=1)
    monkeypatch.setattr(Checkpoint, "fault", lambda self: "model.safetensors is missing")
    with pytest.raises(LawError, match="older checkpoints were kept"):
        save(tmp_path, 4, keep=1)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_a_step_saved_again(tmp_path):
    """A run that went on from an older checkpoint replaces the newer ones."""
    save(tmp_path, 4, text="old")
    save(tmp_path, 4, text="new")
    assert "new 4" in (tmp_path / "checkpoint-4" / "model.safetensors").read_text()
    assert not Checkpoint(tmp_path / "checkpoint-4", 4).fault()


def test_unfinished_is_cleared(tmp_path):
    """What a killed run was saving has no name that counts, and goes at the next start."""
    (tmp_path / SAVING / "checkpoint-8").mkdir(parents=True)
    assert choose(tmp_path, None) is None
    clear_unfinished(tmp_path)
    assert not (tmp_path / SAVING).exists()


@pytest.mark.parametrize("size", [0, 1, 1000, 4096, 70_001])
def test_large_files_are_checked_in_part(tmp_path, monkeypatch, size):
    """Above the limit every n-th block and the last count; below it every byte does."""
    path = tmp_path / "optimizer.pt"
    path.write_bytes(bytes(i % 251 for i in range(size)))
    whole = checksum(path)
    monkeypatch.setattr(checkpoint, "WHOLE", 1024)
    monkeypatch.setattr(checkpoint, "BLOCK", 64)
    part = checksum(path)
    assert (part == whole) == (size <= 1024)
    content = bytearray(path.read_bytes())
    if content:
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        assert checksum(path) != part


def test_seal_lists_every_file(tmp_path):
    """Files in folders too, and not itself, also when sealed twice."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"12345")
    seal(tmp_path)
    seal(tmp_path)
    assert list(json.loads((tmp_path / "checkpoint.json").read_text())["files"]) == ["a/b.bin"]


def test_later_steps_are_set_aside(tmp_path):
    """A run that goes on from an older checkpoint must not meet the later ones again."""
    for step in (2, 4, 6):
        save(tmp_path, step)
    set_aside(tmp_path, tmp_path / "checkpoint-6")
    assert len(checkpoints(tmp_path)) == 3
    set_aside(tmp_path, tmp_path / "checkpoint-2")
    assert choose(tmp_path, None) == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-6.aside" / "model.safetensors").is_file()
    set_aside(tmp_path, None)
    assert choose(tmp_path, None) is None


def test_a_checkpoint_of_another_run(tmp_path, law_log):
    """Going on from elsewhere leaves that run as it is, and sets aside all that this one had."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for step in (2, 4):
        save(other, step)
    for step in (1, 2, 6):
        save(mine, step)
    set_aside(mine, other / "checkpoint-2")
    assert [one.step for one in checkpoints(other)] == [2, 4]
    assert choose(mine, None) is None
    assert len(list(mine.glob("checkpoint-*.aside"))) == 3
    assert sum(f"goes on from {other / 'checkpoint-2'}" in line for line in law_log) == 3


def test_a_folder_by_another_name(tmp_path, monkeypatch):
    """A relative path to the run's own folder is no other folder."""
    for step in (2, 4):
        save(tmp_path, step)
    monkeypatch.chdir(tmp_path)
    set_aside(tmp_path, Path("checkpoint-2"))
    assert [one.step for one in checkpoints(tmp_path)] == [2]
