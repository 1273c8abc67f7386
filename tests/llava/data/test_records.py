"""Records come out of a file as they went in, whatever its form, and broken files say where."""

import json
import multiprocessing
import os
import pickle
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from llava.data import records as records_module
from llava.data import scan as scan_module
from llava.data.records import Records, images_of
from llava.data.scan import scan
from llava.errors import LawError

GOLDEN = ROOT / "tests" / "golden" / "llava"
BATCHES = np.load(GOLDEN / "stage_batches.npz")


def talk(*texts: str, **also) -> dict:
    """A record of these turns, human first."""
    turns = [
        {"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)
    ]
    return {**also, "conversations": turns}


SAMPLE = [
    talk("<image>\nWhat is it?", "A fox.", id=1, image="a.jpg"),
    talk("Grüße, 你好　世界 \u00a0 \U0001f98a", 'naïve [\\] {,} "quoted" \n\t'),
    talk("a\u2028b", "", image=["x.png", "y.png"], extra={"deep": [1, 2.5, None, True]}),
    talk("ends", "here", image=None),
]


def forms(values: list[dict]) -> dict[str, bytes]:
    """The same records in every way that data sets are written in."""
    lines = [json.dumps(value) for value in values]
    plain = [json.dumps(value, ensure_ascii=False) for value in values]
    return {
        "list": json.dumps(values).encode(),
        "indented": json.dumps(values, indent=4, ensure_ascii=False).encode(),
        "tight": json.dumps(values, separators=(",", ":")).encode(),
        "windows": json.dumps(values, indent=1).replace("\n", "\r\n").encode(),
        "bom": b"\xef\xbb\xbf" + json.dumps(values, ensure_ascii=False).encode(),
        "lines": "\n".join(lines).encode() + b"\n",
        "plain lines": "\n".join(plain).encode(),
        "blank lines": ("\n\n" + "\r\n\n".join(lines) + "\n\n").encode(),
    }


@pytest.mark.parametrize("window", [1, 7, 64, 8 << 20])
@pytest.mark.parametrize("form", forms(SAMPLE))
def test_every_form(tmp_path, monkeypatch, form, window):
    """JSON and JSONL, with any window: the records are those that json itself reads."""
    monkeypatch.setattr(scan_module, "WINDOW", window)
    path = tmp_path / "data.json"
    path.write_bytes(forms(SAMPLE)[form])
    read = Records(path)
    assert len(read) == len(SAMPLE)
    assert [read[i] for i in range(len(read))] == SAMPLE
    assert read[-1] == SAMPLE[-1]
    words = [sum(len(t["value"].split()) for t in record["conversations"]) for record in SAMPLE]
    assert read.words.tolist() == words
    assert read.image_counts.tolist() == [1, 0, 2, 0]


text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
record = st.builds(talk, text, text, image=st.sampled_from(["a.png", None, ["b", "c"]]), note=text)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(record, min_size=1, max_size=6), window=st.integers(1, 200), data=st.data())
def test_any_text(tmp_path_factory, values, window, data):
    """Brackets, quotes, escapes and any script inside of texts do not move a boundary."""
    form = data.draw(st.sampled_from(sorted(forms(values))))
    path = tmp_path_factory.mktemp("any") / "data.json"
    path.write_bytes(forms(values)[form])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "WINDOW", window)
        found = list(scan(path))
        read = Records(path)
    assert [value for _, _, value in found] == values
    assert [json.loads(path.read_bytes()[start:end]) for start, end, _ in found] == values
    assert [read[i] for i in range(len(read))] == values


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_golden_lengths(tmp_path, stage):
    """Words as LLaVA counts them, with its 128 for an image and its sign of the modality."""
    read = Records(GOLDEN / f"{stage}_data.json", cache_dir=tmp_path)
    np.testing.assert_array_equal(read.lengths, BATCHES[f"{stage}.lengths"])
    np.testing.assert_array_equal(read.modality_lengths, BATCHES[f"{stage}.modality_lengths"])


def test_no_length_is_zero(tmp_path):
    """A record without a word still has a sign, which its modality is told by."""
    path = tmp_path / "d.json"
    path.write_text(json.dumps([talk("", "", image="a"), talk("", "")]))
    assert Records(path).modality_lengths.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "record 0, byte 0, line 1: is empty"),
        (b" \n\n ", "is empty"),
        (b"[]", "is an empty list"),
        (b"[ ", "the file ends: is it cut short"),
        (b"hello", "expected '\\[' or '{', found 'h'"),
        (b'"text"', "expected '\\[' or '{'"),
        (b"[1, 2]", "record 0, byte 1, line 1: expected a record.*found '1'"),
        (b"[GOOD,\n]", "record 1.*line 2: expected a record behind ','; take the last comma away"),
        (b"[GOOD,,GOOD]", "record 1.*expected a record"),
        (b"[GOOD GOOD]", "record 1.*expected ',' or ']' behind the record; found '{'"),
        (b"[GOOD", "record 1.*the file ends: is it cut short"),
        (b"[GOOD,", "record 1.*the file ends: is it cut short"),
        (b"[GOOD,\n GOO", "record 1.*line 2.*found 'G'"),
        (b'[GOOD,\n {"id": 3, "conv', r"record 1.*line 2.*is the file cut short\?"),
        (b'[GOOD,\n {"id": 3,', r"record 1.*line 2.*is the file cut short\?"),
        (b"[GOOD] x", "expected the end of the file behind the list, found 'x'"),
        (b"[GOOD][GOOD]", "expected the end of the file"),
        (b"GOOD,\nGOOD", "found ',' between lines"),
        (b"GOOD\n[GOOD]", "record 1.*line 2: expected a record.*found '\\['"),
        (b"[{'a': 1}]", "record 0.*Expecting property name"),
        (b'[GOOD, {"a" 1, "b": [' + b"0, " * 30 + b"0]}]", "record 1.*Expecting ':' delimiter"),
        (b'[GOOD, {"a": "\n"}, GOOD, GOOD]', "record 1.*Invalid control character"),
        (b'[GOOD, {"a": "\xff\xfe"}]', "record 1.*is not UTF-8"),
        (b"\xff\xfe[\0", "is not UTF-8"),
        (b"[\0{\0", "is not UTF-8"),
        (b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "record 0.*(recursion|RecursionE)"),
        (b'[{"a": ' + b"1" * 5000 + b"}]", "record 0.*(4300|digits)"),
        (b'[GOOD, {"id": 7}]', r"record 1, byte \d+: expected `conversations`.*keys \['id'\]"),
        (b"[{}]", r"record 0.*keys \[\]"),
        (b'[{"conversations": "x"}]', "expected `conversations`, a list"),
        (b'[{"conversations": []}]', "`conversations` is empty"),
        (b'[{"conversations": [{"role": "user"}]}]', "turn 0: expected {from, value}"),
        (b'[{"conversations": [{"from": "human", "value": 3}]}]', "turn 0: expected"),
        (b'[{"conversations": ["hi"]}]', 'turn 0: expected .* found "hi"'),
        (b'[{"image": 3, "conversations": [TURN]}]', "`image`: expected a path.*found 3"),
        (b'[{"image": "", "conversations": [TURN]}]', "`image`: expected a path"),
        (b'[{"image": [null], "conversations": [TURN]}]', "`image`: expected a path"),
        (b'{"data": [GOOD]}', r"record 0.*expected `conversations`.*keys \['data'\]"),
    ],
)
def test_broken_files(tmp_path, content, message):
    """File, record, place and what was expected."""
    turn = b'{"from": "human", "value": "a"}'
    good = b'{"conversations": [TURN]}'
    path = tmp_path / "data.json"
    path.write_bytes(content.replace(b"GOOD", good).replace(b"TURN", turn))
    with pytest.raises(LawError, match=r"data\.json: record \d, byte \d+.*: .*") as raised:
        Records(path)
    assert re.search(message, str(raised.value), re.DOTALL)
    assert not list(tmp_path.glob(".*"))


def test_a_quote_is_missing(tmp_path, monkeypatch):
    """A record never ends: said once it is larger than any conversation, not at the end of disk."""
    monkeypatch.setattr(scan_module, "WINDOW", 100)
    monkeypatch.setattr(scan_module, "LARGEST_RECORD", 2000)
    path = tmp_path / "data.json"
    path.write_text('[{"a": "' + "x" * 100_000)
    with pytest.raises(LawError, match="a quote is missing somewhere"):
        Records(path)


def test_duplicate_keys(tmp_path):
    """The last one counts, as in Python's json and in LLaVA."""
    path = tmp_path / "d.json"
    path.write_text(f'[{{"image": "a", "conversations": 3, {json.dumps(SAMPLE[0])[1:]}]')
    assert Records(path)[0] == SAMPLE[0]


def test_missing_files(tmp_path):
    """Of every file of a list; a folder is none."""
    (tmp_path / "a.json").write_text(json.dumps(SAMPLE))
    with pytest.raises(LawError, match=r"b\.json: no such file \(seen from"):
        Records(f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}")
    with pytest.raises(LawError, match="is a folder; expected a JSON or JSONL file"):
        Records(tmp_path)
    with pytest.raises(LawError, match="no data"):
        Records(" , ")


def test_several_files(tmp_path):
    """One after the other; a comma may also stand in a single file's name."""
    a, b = tmp_path / "a.json", tmp_path / "b,c.jsonl"
    a.write_bytes(forms(SAMPLE[:3])["list"])
    b.write_bytes(forms(SAMPLE[3:])["lines"])
    assert Records(b)[0] == SAMPLE[3]
    b = b.rename(tmp_path / "b.jsonl")
    read = Records(f"{a}, {b}")
    assert [read[i] for i in range(4)] == SAMPLE
    assert read.place(2).endswith("a.json: record 2")
    assert read.place(3).endswith("b.jsonl: record 0")
    with pytest.raises(IndexError):
        read[4]


@pytest.fixture
def path(tmp_path):
    """A file of SAMPLE."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps(SAMPLE))
    return path


def no_scan(path):
    """Stands for `scan` where an index has to be enough."""
    raise AssertionError("the file was read again")


def test_index_is_used(path, monkeypatch):
    """Written beside the file once, and read by the next."""
    first = Records(path)
    assert path.with_name(".data.json.index.npz").is_file()
    monkeypatch.setattr(records_module, "scan", no_scan)
    again = Records(path)
    assert [again[i] for i in range(4)] == SAMPLE
    assert np.array_equal(again.lengths, first.lengths)
    assert again.stamp == first.stamp


def test_index_is_checked(path):
    """Another size, time or end of the file: another index."""
    before = Records(path).stamp
    changed = json.dumps(SAMPLE).replace("fox", "dog")
    facts = path.stat()
    path.write_text(changed)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # size and time are the same
    again = Records(path)
    assert again[0]["conversations"][1]["value"] == "A dog."
    assert again.stamp != before


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 not a zip", None])
def test_damaged_index(path, law_log, damage):
    """Is said and made anew."""
    Records(path)
    index = path.with_name(".data.json.index.npz")
    index.write_bytes(index.read_bytes()[:-40] if damage is None else damage)
    assert [Records(path)[i] for i in range(4)] == SAMPLE
    assert any("made anew" in line for line in law_log)
    law_log.clear()
    Records(path)
    assert law_log == []


def test_index_without_pickles(path):
    """A planted object array is damage, and never loaded."""
    index = path.with_name(".data.json.index.npz")
    stamp = Records(path).stamp
    objects = np.array([print], dtype=object)
    np.savez(index, stamp=np.array(stamp), offsets=objects, words=objects, images=objects)
    assert Records(path)[0] == SAMPLE[0]


def test_index_elsewhere(path, tmp_path, monkeypatch, law_log):
    """In `cache_dir`, or in the user's cache where the folder of the data cannot be written."""
    Records(path, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("data.json.*.index.npz"))) == 1
    assert not path.with_name(".data.json.index.npz").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    written = records_module.write_bytes

    def refused(place, data):
        if place.parent == path.parent:
            raise LawError("read-only")
        written(place, data)

    monkeypatch.setattr(records_module, "write_bytes", refused)
    Records(path)
    assert len(list((tmp_path / "home" / "law-of-vision").glob("data.json.*"))) == 1
    monkeypatch.setattr(records_module, "scan", no_scan)
    assert len(Records(path)) == 4
    assert law_log == []


def test_index_nowhere(path, monkeypatch, law_log):
    """Then every process reads the file, and is told so."""

    def refused(place, data):
        raise LawError("read-only")

    monkeypatch.setattr(records_module, "write_bytes", refused)
    assert len(Records(path)) == 4
    assert any("every process will read the whole file" in line for line in law_log)


def test_changed_during_the_run(path):
    """A record that is no longer where it was is an error, not another record."""
    read = Records(path)
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    with pytest.raises(LawError, match=r"record 3 is not where it was.*changed during the run"):
        read[3]


def read_all(read: Records, queue) -> None:
    """In a process of its own."""
    queue.put([read[i] for i in range(len(read))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(path, method):
    """Any number of processes read at once, from a copy of an object that has its file open."""
    read = Records(path)
    assert read[0] == SAMPLE[0]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=read_all, args=(read, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [SAMPLE, SAMPLE]
    for worker in workers:
        worker.join()
    assert pickle.loads(pickle.dumps(read))[2] == SAMPLE[2]


def test_memory_is_bounded(tmp_path, monkeypatch):
    """A file of many windows is read with a few windows' memory."""
    monkeypatch.setattr(scan_module, "WINDOW", 1 << 16)
    path = tmp_path / "data.json"
    one = json.dumps(talk("word " * 100, "answer " * 100))
    path.write_text("[" + ",\n".join([one] * 8000) + "]")  # 10 MB
    tracemalloc.start()
    assert len(Records(path)) == 8000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_images_of():
    """A path, several, or none."""
    assert [images_of(record) for record in SAMPLE] == [["a.jpg"], [], ["x.png", "y.png"], []]


def test_digest_is_of_what_is_in_the_files(tmp_path):
    """Wherever they are and whenever they were written."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('[{"conversations": [{"from": "gpt", "value": "a"}]}]')
    other.write_bytes(one.read_bytes())
    os.utime(other, (0, 0))
    assert Records(one).digest == Records(other).digest
    other.write_text(one.read_text().replace('"a"', '"b"'))
    assert Records(one).digest != Records(other).digest
    assert Records(f"{one},{other}").digest not in (Records(one).digest, Records(other).digest)
