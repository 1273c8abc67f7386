"""Whole or nothing: a write that fails leaves the old file, and nothing else beside it."""

import errno
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava import files
from llava.errors import LawError, UsageError
from llava.files import folder_name, read_json, write_json, write_text


def strict(text: str):
    """JSON that holds no NaN and no infinity, as most readers want it."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def fail_with(error):
    """A stand-in for os.fsync that raises `error` when the text is written, not yet in place."""

    def fsync(_):
        raise error

    return fsync


def test_writes_utf8(tmp_path):
    """The bytes are the text in UTF-8."""
    write_text(tmp_path / "a.txt", "grün → 0.5\n")
    assert (tmp_path / "a.txt").read_bytes() == "grün → 0.5\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_makes_the_folders_above(tmp_path):
    """A run folder need not be there."""
    write_text(str(tmp_path / "runs" / "1" / "a.txt"), "x")
    assert (tmp_path / "runs" / "1" / "a.txt").read_text() == "x"


def test_replaces_a_longer_file(tmp_path):
    """Nothing of the old text stays behind the new."""
    path = tmp_path / "a.txt"
    write_text(path, "long" * 1000)
    write_text(path, "short")
    assert path.read_text() == "short"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    """While the new text is being written, a reader still gets the old one."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.append(path.read_text()))
    write_text(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """The message names the file and why; the folder is as before."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, "fsync", fail_with(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(LawError, match=r"a\.txt: cannot be written: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_interrupt_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    """Ctrl-C in the middle is passed on, and no temporary file stays."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, "fsync", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_utf8_cannot_hold(tmp_path):
    """A lone surrogate (a file name in another encoding) leaves no temporary file either."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises((UnicodeEncodeError, LawError)):
        write_text(path, "\udcff")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_target_is_a_folder(tmp_path):
    """A folder is not replaced."""
    (tmp_path / "a").mkdir()
    with pytest.raises(LawError, match="a: cannot be written"):
        write_text(tmp_path / "a", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_above_is_a_file(tmp_path):
    """The path that cannot be is named."""
    (tmp_path / "a").write_text("old")
    with pytest.raises(LawError, match="b: cannot be written"):
        write_text(tmp_path / "a" / "b", "x")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (-float("inf"), None),
        (np.float64("nan"), None),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (True, True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array(3.0), 3.0),
        (np.array(["a"]), ["a"]),
        ((1, (2, [np.inf])), [1, [2, [None]]]),
        ({"a": {"b": (np.nan, "x", None)}}, {"a": {"b": [None, "x", None]}}),
        ({1: 2}, {"1": 2}),
        ("grün", "grün"),
        ([], []),
        ({}, {}),
    ],
)
def test_json_values(tmp_path, value, plain):
    """What is read back, alone and inside of other values."""
    path = tmp_path / "a.json"
    for wrapped, expected in ((value, plain), ({"k": [value]}, {"k": [plain]})):
        write_json(path, wrapped)
        found = strict(path.read_text(encoding="utf-8"))
        assert found == expected
        assert repr(found) == repr(expected)  # True is not 1


def test_json_is_readable_text(tmp_path):
    """Letters stay letters, and the last line ends."""
    write_json(tmp_path / "a.json", {"name": "grün", "b": 1})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "grün",\n  "b": 1\n}\n'


def test_json_of_something_else_leaves_the_old_file(tmp_path):
    """An object that JSON cannot hold is an error before the file is touched."""
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert strict((tmp_path / "a.json").read_text()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(value=JSON)
def test_json_round_trip(tmp_path_factory, value):
    """Finite plain values come back as they were, to the last digit."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert repr(strict(path.read_text(encoding="utf-8"))) == repr(value)


def test_a_json_object(tmp_path):
    """Comes back as it was written."""
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a.json: cannot be read: No such file or directory"),
        (b"{", "a.json: cannot be read as JSON: Expecting property name"),
        (b"\xff", "a.json: cannot be read as JSON: 'utf-8' codec"),
        (b"[1]", "a.json: expected a JSON object, got list"),
    ],
)
def test_no_json_object(tmp_path, content, said):
    """The file is named, and what to do about it."""
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LawError, match=said) as error:
        read_json(tmp_path / "a.json", "build it again")
    assert str(error.value).endswith("; build it again")


def test_a_name_as_that_of_a_folder():
    """Names of ordinary length stay as they are; long ones that differ at their end do not meet."""
    assert folder_name("./models/a[1]+b c") == "models--a[1]+b c"
    long = [folder_name("é" * 300 + end) for end in "ab"]
    assert long[0] != long[1]
    assert all(len(name.encode()) <= files.LONGEST_FOLDER for name in long)
    for name in ("", "../", "a\0b"):
        with pytest.raises(UsageError, match="makes no name of a folder"):
            folder_name(name)
