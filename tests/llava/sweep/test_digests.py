"""Digests: what of a file or folder counts, and what is read again."""

import os
import time

import pytest

from llava.errors import LawError
from llava.sweep import digests
from llava.sweep.digests import compare, input_digest, state_of, states_of


@pytest.fixture
def folder(tmp_path):
    """A folder of data with a folder inside."""
    for name in ("a.json", "pairs/trn/1.json", "pairs/val/2.json"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


def test_of_a_file_the_content_counts(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("one")
    first = input_digest(str(path))
    os.utime(path, ns=(0, 0))
    assert input_digest(str(path)) == first
    path.write_text("two")
    assert input_digest(str(path)) != first
    assert input_digest("lmsys/vicuna-7b-v1.5") == ""


@pytest.mark.parametrize("change", ["size", "name", "more", "fewer", "folder"])
def test_of_a_folder_all_that_is_below_it_counts(folder, change):
    first = input_digest(str(folder))
    inside = folder / "pairs" / "trn" / "1.json"
    if change == "size":
        inside.write_text("longer than it was")
    elif change == "name":
        inside.rename(inside.with_name("3.json"))
    elif change == "more":
        (folder / "pairs" / "new.json").write_text("")
    elif change == "fewer":
        inside.unlink()
    else:
        (folder / "pairs" / "trn").rename(folder / "pairs" / "test")
    assert input_digest(str(folder)) != first


def test_what_is_no_data_does_not_count(folder):
    first = input_digest(str(folder))
    for name in (
        *(".DS_Store", "README.md", "pairs/Thumbs.db", ".a.json.index.npz", "a.json.0f.index.npz"),
        *("__pycache__/x.pyc", ".git/HEAD", "pairs/.lock", "pairs/x.lock", "empty/.keep"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    os.utime(folder / "a.json", ns=(0, 0))
    assert input_digest(str(folder)) == first


def test_a_folder_that_holds_a_link_to_itself_has_an_end(folder):
    first = input_digest(str(folder))
    (folder / "pairs" / "again").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")
    assert input_digest(str(folder)) == first
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "x.jpg").write_text("x")
    (folder / "images").symlink_to(folder.parent / "elsewhere")
    assert input_digest(str(folder)) != first


def test_a_large_folder_is_looked_at_in_part(folder, monkeypatch):
    """Sizes of those nearest to the top, names of many more."""
    monkeypatch.setattr(digests, "SIZED", 1)
    monkeypatch.setattr(digests, "LISTED", 2)
    first = input_digest(str(folder))
    (folder / "pairs" / "trn" / "1.json").write_text("longer than it was")
    (folder / "pairs" / "val" / "2.json").unlink()
    assert input_digest(str(folder)) == first
    (folder / "a.json").write_text("longer than it was")
    second = input_digest(str(folder))
    assert second != first
    (folder / "pairs" / "trn" / "1.json").unlink()
    assert input_digest(str(folder)) != second


def test_a_folder_of_many_files_takes_seconds(tmp_path):
    for one in range(20):
        (tmp_path / str(one)).mkdir()
        for two in range(500):
            (tmp_path / str(one) / f"{two}.jpg").touch()
    start = time.process_time()
    input_digest(str(tmp_path))
    assert time.process_time() - start < 5  # a tenth of a second where nothing else runs


@pytest.fixture
def unreadable(monkeypatch):
    """Makes a path one that may not be read; a test may run as root, who may read all."""
    refused: list = []

    def unless_refused(real):
        def act(path, *rest, **named):
            if any(str(path) == str(one) for one in refused):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **named)

        return act

    monkeypatch.setattr(os, "scandir", unless_refused(os.scandir))
    monkeypatch.setattr(digests, "state_of", unless_refused(state_of))
    monkeypatch.setattr(digests, "_content", unless_refused(digests._content))
    return refused


def test_what_cannot_be_read_is_said(folder, unreadable):
    unreadable += [folder, folder / "a.json"]
    for path in unreadable:
        with pytest.raises(LawError, match=f"{path}: cannot be read: Permission denied"):
            input_digest(str(path))


def test_a_folder_inside_that_cannot_be_read_counts_by_its_name(folder, unreadable):
    (folder / "lost+found").mkdir()
    unreadable.append(folder / "lost+found")
    first = input_digest(str(folder))
    assert input_digest(str(folder)) == first


def test_an_output_that_cannot_be_read_is_not_taken_for_damaged(folder, unreadable):
    recorded = states_of(folder, ["a.json"])
    unreadable.append(folder / "a.json")
    with pytest.raises(LawError, match=r"a\.json: cannot be read: Permission denied"):
        compare(folder, recorded, thorough=False)


def test_outputs_are_compared_with_what_they_were(folder):
    recorded = states_of(folder, ["a.json", "pairs/trn/1.json", "pairs/val/2.json"])
    assert compare(folder, recorded, thorough=False) == {}
    (folder / "a.json").write_text("A.json")
    (folder / "pairs/trn/1.json").unlink()
    (folder / "pairs/val/2.json").write_text("short")
    assert compare(folder, recorded, thorough=False) == {
        "a.json": "changed",
        "pairs/trn/1.json": "missing",
        "pairs/val/2.json": "changed",
    }


def test_a_copied_output_is_read_once(folder, monkeypatch):
    """Its time is new, so it is read; then it has the old time, so that it is not read again."""
    monkeypatch.setattr(digests, "ALWAYS_READ", 3)
    recorded = states_of(folder, ["a.json"])
    os.utime(folder / "a.json", ns=(5, 5))
    reads = []
    monkeypatch.setattr(digests, "state_of", lambda path: reads.append(path) or state_of(path))
    for _ in range(3):
        assert compare(folder, recorded, thorough=False) == {}
    assert len(reads) == 1
    assert compare(folder, recorded, thorough=True) == {}
    assert len(reads) == 2


def test_a_damaged_output_keeps_its_time(folder, monkeypatch):
    monkeypatch.setattr(digests, "ALWAYS_READ", 3)
    recorded = states_of(folder, ["a.json"])
    (folder / "a.json").write_text("A.json")
    os.utime(folder / "a.json", ns=(5, 5))
    for _ in range(2):
        assert compare(folder, recorded, thorough=False) == {"a.json": "changed"}
