"""What is left out is known before training, is the same for any number of workers, and is kept."""

import dataclasses
import json
import multiprocessing
from collections import Counter

import numpy as np
import pytest
from repository import ROOT
from texts import byte_level_folder, llama_folder
from tiny import picture

from llava.data import survey as survey_module
from llava.data.digest import digest
from llava.data.images import ImageSource
from llava.data.masks import Labeller
from llava.data.records import Records
from llava.data.survey import Survey, survey
from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import resolve
from llava.tokenization import load_tokenizer

TOKENS = 16


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Three that differ."""
    root = tmp_path_factory.mktemp("tokenizers")
    names = ("tiny_legacy_false", "tiny_legacy_true")
    folders = {name: llama_folder(name, root / name) for name in names}
    folders["byte_level"] = byte_level_folder(root / "byte_level")
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def labeller(tokenizers):
    """Of the first one."""
    return Labeller(tokenizers["tiny_legacy_false"], "v1")


def turn(who: str, text: str) -> dict:
    """One turn."""
    return {"from": who, "value": text}


@pytest.fixture
def world(tmp_path):
    """30 records: good ones, others of every kind that is left out, two with bad images."""
    folder = tmp_path / "images"
    folder.mkdir()
    picture(40, 30).save(folder / "good.png")
    picture(64, 64).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    values = []
    for i in range(30):
        turns = [turn("human", f"<image>\nWhat is {i}?"), turn("gpt", "a fox " * (1 + i % 7))]
        values.append({"image": "good.png", "conversations": turns})
    values[2]["image"] = "gone.png"
    values[4]["image"] = "cut.jpg"
    values[5]["conversations"][1]["from"] = "system"
    values[9]["conversations"][0]["from"] = "gpt"
    values[11]["conversations"][1]["value"] = ""
    values[17]["conversations"][0]["value"] = "word " * 400
    values[23]["conversations"][0]["value"] = "Nothing to see."
    values[24] = {"conversations": [turn("human", "Text only."), turn("gpt", "Yes. " * 200)]}
    (tmp_path / "data.json").write_text(json.dumps(values))
    return tmp_path


def source(world, policy: str = "skip", name: str = "clip", mode: str = "square", **also):
    """The world's images."""
    processor = ImageProcessor(resolve(name)).for_aspect_ratio(mode)
    return ImageSource(world / "images", processor, mode, policy=policy, **also)


def look(world, labeller, images=None, tokens: int = TOKENS, limit: int | None = 300, **also):
    """A survey of the world."""
    records = Records(world / "data.json")
    return survey(records, labeller, images or source(world), tokens, limit, **also)


def same(a: Survey, b: Survey) -> bool:
    """Whether two surveys say the same."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Survey)]
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def test_what_is_left_out(world, labeller):
    """By number and reason; the rest is kept with its exact length."""
    found = look(world, labeller)
    dropped = dict(found.dropped)
    assert sorted(dropped) == [2, 5, 9, 11, 17]
    assert dropped[2] == "image gone.png: cannot be read: No such file or directory"
    assert "turn 1 is from 'system'" in dropped[5]
    assert "nothing is supervised: within the maximum length of 300" in dropped[17]
    assert found.keep.tolist() == [i for i in range(30) if i not in dropped]
    assert found.cut == 1  # the long text
    assert found.unseen == 1
    assert found.tokens.max() == 300
    assert found.share_dropped == 5 / 30
    assert sum(found.counts.values()) == 5
    assert "25 of 30 records" in str(found)
    plain = found.plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["records_left_out"][0] == {"record": 2, "why": dropped[2]}


def test_reasons_are_counted(world, labeller):
    """Names and numbers of single records are left out of a reason."""
    values = json.loads((world / "data.json").read_text())
    for i in range(12, 17):
        values[i]["image"] = f"gone_{i}.png"
    (world / "data.json").write_text(json.dumps(values))
    counts = look(world, labeller).counts
    assert next(iter(counts.items())) == ("image: cannot be read: No such file or directory", 6)


@pytest.mark.parametrize("verify", ["exist", "decode", "none"])
def test_bad_images_are_an_error(world, labeller, verify):
    """Under the policy `error`, counted, with the first one's record."""
    images = source(world, "error")
    if verify == "none":
        assert len(look(world, labeller, images, verify_images=verify).keep) == 26
        return
    count = {"exist": 1, "decode": 2}[verify]
    message = rf"^{count} records have an image.*record 2: image gone\.png.*--image_policy skip"
    with pytest.raises(LawError, match=message):
        look(world, labeller, images, verify_images=verify)


def test_decoding(world, labeller):
    """Finds half an image, which existence does not."""
    dropped = dict(look(world, labeller, verify_images="decode").dropped)
    assert "truncated" in dropped[4]
    assert 4 not in dict(look(world, labeller).dropped)
    with pytest.raises(UsageError, match="unknown verify_images 'exists'; did you mean 'exist'"):
        look(world, labeller, verify_images="exists")


def test_anyres_reads_sizes(world, labeller):
    """Which decide the tokens."""
    images = source(world, mode="anyres", pinpoints=[(448, 448), (448, 224)])
    found = look(world, labeller, images, tokens=10, limit=None)
    plain = look(world, labeller, tokens=10, limit=None)
    assert found.tokens[0] == plain.tokens[0] + 10 * 2  # 40 x 30 px: an overview and two tiles


def test_nothing_is_left(world, labeller):
    """Is an error that says why."""
    with pytest.raises(LawError, match=r"no record can be used: 0 of 30 records.*too many image"):
        look(world, labeller, limit=5)


def test_workers(world, labeller, monkeypatch):
    """Any number of processes finds the same in the same order."""
    monkeypatch.setattr(survey_module, "CHUNK", 4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    expected = look(world, labeller)
    assert same(look(world, labeller, workers=3), expected)
    assert multiprocessing.active_children() == []


def test_workers_find_errors(world, labeller, monkeypatch):
    """And the same error."""
    monkeypatch.setattr(survey_module, "CHUNK", 4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said = []
    for workers in (0, 2):
        with pytest.raises(LawError) as raised:
            look(world, labeller, source(world, "error"), verify_images="decode", workers=workers)
        said.append(str(raised.value))
    assert said[0] == said[1]


# ------------------------------------------------------------------------------- kept on disk


def refuse(self, stretch):
    """Stands for the work where what is kept has to be enough."""
    raise AssertionError("the data were surveyed again")


def test_is_kept(world, labeller, monkeypatch, tmp_path):
    """And read by the next process that asks the same."""
    first = look(world, labeller, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(survey_module._Work, "run", refuse)
    again = Labeller(labeller_tokenizer(tmp_path), "v1")
    assert same(look(world, again, cache_dir=tmp_path / "cache"), first)


def labeller_tokenizer(folder):
    """The first tokenizer, loaded from another folder."""
    return load_tokenizer(llama_folder("tiny_legacy_false", folder / "moved"))


def test_what_it_depends_on(world, tokenizers, labeller, tmp_path):
    """Anything else is another survey: data, tokenizer, template, lengths, tower, policy."""
    cache = tmp_path / "cache"
    llama, legacy, chat = (tokenizers[name] for name in tokenizers)
    tiles = source(world, mode="anyres", pinpoints=[(448, 448)])
    others = {
        "template": {"labeller": Labeller(llama, "llama_2")},
        "legacy": {"labeller": Labeller(legacy, "v1")},
        "tokenizer": {"labeller": Labeller(chat, "v1")},
        "chat": {"labeller": Labeller(chat, "chat")},
        "start and end": {"labeller": Labeller(llama, "v1", use_start_end=True)},
        "limit": {"limit": 1999},
        "tokens": {"tokens": 17},
        "verify": {"verify_images": "decode"},
        "tower": {"images": source(world, name="dinov2")},
        "anyres": {"images": tiles},
    }
    given = {"labeller": labeller, "limit": 2000, "cache_dir": cache}
    look(world, **given)
    for count, (name, other) in enumerate(others.items(), 2):
        look(world, **given | other)
        assert len(list(cache.iterdir())) == count, name
    data = world / "data.json"
    data.write_text(data.read_text() + "\n")
    look(world, **given)
    assert len(list(cache.iterdir())) == 2 + len(others)


@pytest.mark.parametrize("damage", ["short", "empty", "other key", "other length", "record gone"])
def test_damage_is_seen(world, labeller, law_log, tmp_path, damage):
    """What is kept is checked when it is read, and made anew."""
    first = look(world, labeller, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    if damage in ("short", "empty"):
        path.write_bytes(path.read_bytes()[: -60 if damage == "short" else 0])
    else:
        with np.load(path) as stored:
            values = dict(stored)
        if damage == "other key":
            values["key"] = np.array("0" * 64)
        elif damage == "other length":
            values["tokens"] = values["tokens"][1:]
        else:
            values["keep"] = values["keep"] + 1
        np.savez(path, **values)
    law_log.clear()
    assert same(look(world, labeller, cache_dir=tmp_path / "cache"), first)
    assert any("surveyed anew" in line for line in law_log)
    law_log.clear()
    assert same(look(world, labeller, cache_dir=tmp_path / "cache"), first)
    assert not any("anew" in line for line in law_log)


# ------------------------------------------------------------------------------- digest


def digest_elsewhere(value, queue) -> None:
    """In a process whose strings hash otherwise."""
    queue.put(digest(value))


def test_digest_is_the_same_elsewhere(labeller, tokenizers, monkeypatch):
    """Sets come in another order in another process; the digest does not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    value = [labeller, Labeller(tokenizers["byte_level"], "chat"), {"a", "b", "c"}, {1: 2}]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    process = context.Process(target=digest_elsewhere, args=(value, queue))
    process.start()
    assert queue.get(timeout=60) == digest(value)
    process.join()


@pytest.mark.parametrize(
    "values",
    [
        (1, "1", 1.0, True, None, b"1", (1,), [1], {1}, {1: 1}),
        ("", (), [], {}, set(), b""),
        (["a", "bc"], ["ab", "c"], ["abc"], [["a"], "bc"]),
        ({1: 2, 3: 4}, {1: 4, 3: 2}, {1: 2}),
        (np.arange(4), np.arange(4).reshape(2, 2), np.arange(4.0), [0, 1, 2, 3]),
    ],
)
def test_digest_tells_apart(values):
    """What differs, also in where one value ends and the next begins."""
    assert max(Counter(map(digest, values)).values()) == 1


def test_digest_of_equals():
    """Order of entries and identity do not count; an object that holds itself ends."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"x", "y", "z"}) == digest({"z", "y", "x"})
    ring: list = [1]
    ring.append(ring)
    assert digest(ring) == digest(ring)
    twice = [1, 2]
    assert digest([twice, twice]) == digest([[1, 2], [1, 2]])
