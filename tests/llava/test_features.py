"""The feature store: what is written is read back, what is damaged or foreign is seen."""

import dataclasses
import json
import multiprocessing

import pytest
import tiny
import torch

from llava.errors import LawError, UsageError
from llava.features import FeatureStore, Space, image_key
from llava.model.multimodal_encoder.registry import resolve

SPEC = dataclasses.replace(resolve("clip").parts[0], size=28, dim=6)
KEYS = [f"{i:064x}" for i in range(6)]


def tokens(seed: int = 0) -> torch.Tensor:
    """Features of one image of SPEC: 4 tokens of width 6."""
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def space(tmp_path) -> Space:
    """A space with two shards of two images each."""
    space = FeatureStore(tmp_path).space(SPEC, "pad", "float32")
    space.write({KEYS[0]: tokens(0), KEYS[1]: tokens(1)})
    space.write({KEYS[2]: tokens(2), KEYS[3]: tokens(3)})
    return space


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(tmp_path, dtype):
    """Through the file and a second opening, in the stored dtype."""
    store = FeatureStore(tmp_path / "new" / "store")
    written = store.space(SPEC, "own", dtype)
    written.write({KEYS[0]: tokens()})
    read = store.find(SPEC, "own")
    assert (read.spec, read.frame, read.dtype) == (SPEC, "own", dtype)
    assert len(read) == 1
    assert list(read) == [KEYS[0]]
    assert torch.equal(read.read(KEYS[0]), tokens().to(getattr(torch, dtype)))


def test_several_shards(space):
    """All images of all shards, each its own."""
    again = Space.open(space.folder)
    assert sorted(again) == KEYS[:4]
    assert all(torch.equal(again.read(KEYS[i]), tokens(i)) for i in range(4))
    assert KEYS[5] not in again
    with pytest.raises(LawError, match="no features of image"):
        again.read(KEYS[5])


def test_same_content_same_bytes(space, tmp_path):
    """The order of writing does not matter, and nothing of the time gets in."""
    other = FeatureStore(tmp_path / "other").space(SPEC, "pad", "float32")
    other.write({KEYS[3]: tokens(3), KEYS[2]: tokens(2)})
    other.write({KEYS[1]: tokens(1), KEYS[0]: tokens(0)})
    files = {p.name: p.read_bytes() for p in space.folder.iterdir()}
    assert files == {p.name: p.read_bytes() for p in other.folder.iterdir()}


@pytest.mark.parametrize("keep", [0, 5, 40, 300, -1])
def test_cut_short(space, keep):
    """A shard that lost its end is not read, whatever is left of it; the other one is."""
    path = max(space.folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:keep])
    again = Space.open(space.folder)
    assert len(again) == 2
    assert list(again.damaged) == [path.name]


def flip_a_bit(space: Space, key: str) -> str:
    """Alters the stored bytes of one image; the shard's name."""
    (name,) = space._where[key]
    data = bytearray((space.folder / name).read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])[key]["data_offsets"][0]
    data[start + 2] ^= 4
    (space.folder / name).write_bytes(data)
    return name


def test_a_changed_byte(space):
    """The checksum of that image finds it; the others stay readable, and it can be redone."""
    name = flip_a_bit(space, KEYS[0])
    again = Space.open(space.folder)
    assert again.verify(KEYS[:5]) == [KEYS[0], KEYS[1], KEYS[4]]
    assert list(again.damaged) == [name]
    assert torch.equal(again.read(KEYS[1]), tokens(1))
    assert KEYS[0] not in again
    again.refresh()
    assert KEYS[0] not in again
    again.write({KEYS[0]: tokens(0), KEYS[1]: tokens(1)})
    assert not again.damaged
    assert torch.equal(Space.open(space.folder).read(KEYS[0]), tokens(0))


def test_reading_damage_is_an_error(space):
    """It names the shard and what to do."""
    flip_a_bit(space, KEYS[0])
    fresh = Space.open(space.folder)
    with pytest.raises(LawError, match=r"safetensors: bytes of it.*extract again"):
        fresh.read(KEYS[0])


def test_a_second_copy_is_read(space):
    """Written again in another shard, an image outlives the damaged copy, whichever comes first."""
    flip_a_bit(space, KEYS[0])
    for other in (KEYS[4], KEYS[5]):
        space.write({KEYS[0]: tokens(0), other: tokens(9)})
    for _ in range(2):
        fresh = Space.open(space.folder)
        assert torch.equal(fresh.read(KEYS[0]), tokens(0))
        assert torch.equal(fresh.read(KEYS[1]), tokens(1))


def test_a_copy_for_a_worker(space):
    """A loader's process gets a space without open files."""
    import pickle

    space.read(KEYS[0])
    copy = pickle.loads(pickle.dumps(space))
    assert torch.equal(copy.read(KEYS[2]), tokens(2))


def test_a_broken_neighbour(tmp_path, space, law_log):
    """One folder that describes no space is said, and hides no other."""
    for name, text in (("zz", "{}"), ("yy", "["), ("xx", "null")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "space.json").write_text(text)
    store = FeatureStore(tmp_path)
    assert [found.folder for found in store.spaces()] == [space.folder]
    assert sum("describes no feature space" in line for line in law_log) == 3
    assert store.find(SPEC, "pad").folder == space.folder


def test_older_preprocessing_is_another_space(tmp_path, space, monkeypatch):
    """Pixels of another version are other features, for readers too."""
    monkeypatch.setattr("llava.features.VERSION", 2)
    store = FeatureStore(tmp_path)
    with pytest.raises(LawError, match="has no features of"):
        store.find(SPEC, "pad")
    assert len(store.space(SPEC, "pad", "float32")) == 0
    assert store.find(SPEC, "pad").folder != space.folder


def test_specs_come_back_as_they_went_in(tmp_path):
    """Whole numbers in a plugin's facts and options do not change the key on the way."""
    odd = dataclasses.replace(SPEC, mean=(0, 0, 0), std=(1, 1, 1), options={"c": 1.0, "d": 0.5})
    store = FeatureStore(tmp_path)
    assert store.space(odd, "own", "float32").spec.hash() == odd.hash()
    assert store.find(odd, "own").spec == odd


def test_foreign_files(space, tmp_path):
    """Other files are left alone; shards of another shape, dtype or naming are not read."""
    from safetensors.torch import save_file

    (space.folder / "notes.txt").write_text("mine")
    (space.folder / "model.safetensors").write_bytes(b"x")
    wrong = {
        "a" * 24: {KEYS[4]: torch.zeros(4, 7)},
        "b" * 24: {KEYS[4]: torch.zeros(4, 6, dtype=torch.float16)},
        "c" * 24: {"weight": torch.zeros(4, 6)},
    }
    for name, content in wrong.items():
        sums = dict.fromkeys(content, 0)
        save_file(content, space.folder / f"{name}.safetensors", {"crc32": json.dumps(sums)})
    save_file({KEYS[5]: tokens()}, space.folder / f"{'d' * 24}.safetensors")
    again = Space.open(space.folder)
    assert sorted(again) == KEYS[:4]
    assert len(again.damaged) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("spec"),
        lambda facts: facts.update(frame="own"),
        lambda facts: facts["spec"].update(layer=-1),
        lambda facts: facts["spec"].update(colour="red"),
        lambda facts: facts.update(key="0" * 64),
    ],
)
def test_a_space_that_is_another(space, change):
    """A description that does not fit its key is refused: the features are not what it says."""
    path = space.folder / "space.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(LawError, match="move the folder away"):
        Space.open(space.folder)


def test_nothing_bad_is_written(space):
    """NaN, infinity and wrong shapes are refused before a file exists."""
    before = sorted(space.folder.iterdir())
    for bad, message in (
        (torch.full((4, 6), float("nan")), "NaN or infinite"),
        (torch.full((4, 6), float("inf")), "NaN or infinite"),
        (torch.zeros(4, 7), r"gave tokens \(4, 7\), expected \(4, 6\)"),
    ):
        with pytest.raises(LawError, match=message):
            space.write({KEYS[4]: bad})
    assert sorted(space.folder.iterdir()) == before


def test_find(tmp_path, space):
    """By spec, frame and dtype; an error names what is here and the command."""
    store = FeatureStore(tmp_path)
    assert store.find(SPEC, "pad").folder == space.folder
    with pytest.raises(LawError, match=r"it holds openai/.*pad as float32 \(4 images\).*law feat"):
        store.find(SPEC, "stretch")
    store.space(SPEC, "pad", "float16")
    with pytest.raises(LawError, match="--dtype"):
        store.find(SPEC, "pad")
    assert store.find(SPEC, "pad", "float16").dtype == "float16"
    with pytest.raises(LawError, match="it holds nothing"):
        FeatureStore(tmp_path / "none").find(SPEC, "pad")
    with pytest.raises(UsageError, match="did you mean 'float32'"):
        store.space(SPEC, "pad", "float3")
    with pytest.raises(UsageError, match="unknown frame"):
        store.find(SPEC, "padd")


def test_other_versions_are_said(tmp_path, space, law_log):
    """Features begun with another torch are kept, with a warning."""
    path = space.folder / "space.json"
    facts = json.loads(path.read_text())
    facts["libraries"]["torch"] = "1.0"
    path.write_text(json.dumps(facts))
    assert len(FeatureStore(tmp_path).space(SPEC, "pad", "float32")) == 4
    assert "torch 1.0, now" in law_log[-1]


def test_image_keys(tmp_path):
    """A file's bytes, wherever it lies; of a picture in memory, what it shows."""
    image = tiny.picture(20, 10)
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert image_key(tmp_path / "a.png") == image_key(str(tmp_path / "b.png"))
    assert image_key(tmp_path / "a.png") == image_key((tmp_path / "a.png").read_bytes())
    assert image_key(image) == image_key(image.copy())
    keys = {image_key(i) for i in (image, image.rotate(180), image.convert("L"))}
    assert len(keys) == 3
    first = image.quantize(4)
    second = first.copy()
    second.putpalette([255 - value for value in first.getpalette()])
    assert image_key(first) != image_key(second)
    with pytest.raises(LawError, match=r"none\.png: cannot be read"):
        image_key(tmp_path / "none.png")


def _write_many(root, start):
    space = FeatureStore(root).space(SPEC, "pad", "float32")
    for i in range(start, start + 20):
        space.write({f"{i:064x}": tokens(i)})


def test_two_writers(tmp_path):
    """Two processes into one space, some images twice: everything is there, nothing is broken."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, start)) for start in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    space = FeatureStore(tmp_path).find(SPEC, "pad")
    assert space.verify(list(space)) == []
    assert len(space) == 30
    assert not space.damaged
    assert torch.equal(space.read(f"{15:064x}"), tokens(15))


def test_many_shards_stay_within_open_files(tmp_path):
    """More shards than may be open at once, read in turns."""
    space = FeatureStore(tmp_path).space(SPEC, "pad", "float32")
    keys = [f"{i:064x}" for i in range(150)]
    for i, key in enumerate(keys):
        space.write({key: tokens(i)})
    assert all(torch.equal(space.read(k), tokens(i)) for i, k in enumerate(keys))
    assert len(space._open) <= 64
