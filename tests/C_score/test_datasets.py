"""SPair-71k's reader against the reference's own data, and what holds for every reader."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from C_score.datasets import DATASETS, read_pairs
from C_score.datasets.groups import (
    flip_columns,
    geo_columns,
    groups_of,
    reference_columns,
    right_columns,
    table_categories,
    table_row,
)
from C_score.datasets.pairs import draw_sample
from llava.errors import LawError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "cscore"
SPAIR = GOLDEN / "SPair-71k"


@pytest.fixture(scope="module")
def expected() -> dict:
    """What the reference made of the golden set."""
    return json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def golden():
    """What we make of it."""
    return read_pairs("spair", SPAIR)


def test_keypoints_thresholds_and_files_are_the_references(golden, expected):
    """To the last bit: the reference works in the same precision."""
    assert [c.name for c in golden.categories] == sorted(expected["data"])
    for category in golden.categories:
        theirs = expected["data"][category.name]
        assert list(category.slots) == theirs["used_points"]
        assert len(category) == theirs["n_pairs"]
        kps = np.stack([category.source_kps, category.target_kps], 1)
        assert kps.dtype == np.float32
        assert np.array_equal(kps.reshape(-1, *kps.shape[2:]), np.float32(theirs["kps_840"]))
        assert category.threshold_px.dtype == np.float64
        assert category.threshold_px.tolist() == theirs["thresholds"]
        files = zip(category.source, category.target, strict=True)
        found = [golden.pictures[i].path.name for pair in files for i in pair]
        assert found == theirs["files"]


def test_pairs_are_named_and_ordered_as_the_files(golden, expected):
    """By category, then by file name."""
    names = [name for category in golden.categories for name in category.pairs]
    assert names == list(expected["results"]["modela16"]["argmax"]["pairs"])
    assert len(golden) == len(names) == 36


def test_pictures_boxes_and_name(golden):
    """One picture per image, sizes as stored, boxes in image pixels."""
    assert golden.name == "spair71k"
    assert (golden.split, golden.alphas, golden.skipped) == ("test", (0.10, 0.05, 0.01), {})
    assert len({picture.name for picture in golden.pictures}) == len(golden.pictures) == 18
    bus = golden.categories[0]
    source, target = (golden.pictures[i] for i in (bus.source[0], bus.target[0]))
    assert (source.name, source.width, source.height) == ("bus/2009_006962", 110, 110)
    assert source.path == SPAIR / "JPEGImages/bus/2009_006962.jpg"
    assert (target.width, target.height) == (64, 144)
    assert bus.source_box[0].tolist() == [41, 14, 96, 83]
    assert bus.target_box[0].tolist() == [12, 17, 56, 118]
    assert golden.missing_images() == []


def test_images_are_not_needed(copy, golden):
    """Annotations alone are enough to score stored features; what is missing is listed."""
    for image in (copy / "JPEGImages").rglob("*.jpg"):
        image.unlink()
    found = read_pairs("spair", copy)
    assert len(found) == len(golden)
    assert len(found.missing_images()) == len(found.pictures)


@pytest.mark.parametrize("split", ["trn", "val"])
def test_other_splits(split):
    """Each reads its own folder."""
    found = read_pairs("spair", SPAIR, split)
    files = (SPAIR / "PairAnnotation" / split).glob("*.json")
    names = [name for category in found.categories for name in category.pairs]
    assert sorted(names) == sorted(path.stem for path in files)


def test_chosen_categories(golden):
    """Only those; their numbers are the same."""
    found = read_pairs("spair", SPAIR, categories=["pottedplant", "bus"])
    assert [c.name for c in found.categories] == ["bus", "pottedplant"]
    assert np.array_equal(found.categories[1].source_kps, golden.categories[2].source_kps)
    assert len(found.pictures) == 12


def test_sample_is_the_references(golden):
    """Seed 42 anew for every category, with replacement: NumPy's first draws below 12."""
    found = read_pairs("spair", SPAIR, sample=5)
    for ours, whole in zip(found.categories, golden.categories, strict=True):
        assert ours.pairs == tuple(whole.pairs[i] for i in (6, 3, 10, 7, 4))
    assert draw_sample("abc", 8) == list("caccaacb")
    assert draw_sample("abc", 0) == ["a", "b", "c"]


def test_a_set_of_ones_own_in_this_layout(copy, tmp_path):
    """It goes by its folder's name, and SPair's keypoint groups are not put on its ids.

    What makes it one's own is a category that SPair-71k has not, not where it lies.
    """
    own = copy.rename(tmp_path / "Warps mini")
    assert read_pairs("spair", own).name == "spair71k"
    for path in sorted(own.rglob("*bus*")):
        path.rename(path.with_name(path.name.replace("bus", "tram")))
    for path in (own / "PairAnnotation" / "test").glob("*:tram.json"):
        edit(path, lambda record: record.update(category="tram"))
    found = read_pairs("spair", own)
    assert found.name == "warps-mini"
    assert {c.groups for c in found.categories} == {()}
    assert {c.flip_groups for c in found.categories} == {()}


def test_a_pair_without_common_points_stays(copy):
    """Whoever scores counts it."""
    (first, *_) = sorted((copy / "PairAnnotation/test").glob("*:bus.json"))
    image = copy / "ImageAnnotation/bus" / f"{first.name.split('-')[1]}.json"
    edit(image, lambda record: record.update(kps=dict.fromkeys(record["kps"])))
    bus = read_pairs("spair", copy).categories[0]
    assert len(bus) == 12
    assert bus.source_kps[0].sum() == 0
    assert bus.target_kps[0].sum() > 0


def test_a_category_without_any_point_has_no_columns(copy):
    """K is 0 then, and every array says so."""
    for image in (copy / "ImageAnnotation/bus").glob("*.json"):
        edit(image, lambda record: record.update(kps={}))
    bus = read_pairs("spair", copy).categories[0]
    assert bus.slots == ()
    assert bus.source_kps.shape == (12, 0, 3)


@pytest.mark.slow
def test_a_set_of_full_size_reads_in_seconds(tmp_path):
    """12,234 pairs of 504 images take 2 s of one core; the limit leaves room for a slow machine."""
    root = tmp_path / "SPair-71k"
    pairs = root / "PairAnnotation/test"
    pairs.mkdir(parents=True)
    golden = next((SPAIR / "PairAnnotation/test").glob("*:bus.json"))
    pair = json.loads(golden.read_text())
    annotation = (SPAIR / "ImageAnnotation/bus" / pair["src_imname"]).with_suffix(".json")
    size = json.loads(annotation.read_text())
    pair["src_imsize"] = pair["trg_imsize"] = [size["image_width"], size["image_height"], 3]
    names = table_categories("spair71k")
    for category in names:
        folder = root / "ImageAnnotation" / category
        folder.mkdir(parents=True)
        for i in range(28):
            (folder / f"{i}.json").write_bytes(annotation.read_bytes())
    for k in range(12_234):
        row, i = divmod(k // 18, 28)
        j = (i + 1 + row) % 28
        pair.update(src_imname=f"{i}.jpg", trg_imname=f"{j}.jpg", category=names[k % 18])
        (pairs / f"{k:06d}-{i}-{j}:{names[k % 18]}.json").write_text(json.dumps(pair))
    start = time.process_time()
    found = read_pairs("spair", root)
    assert time.process_time() - start < 15
    assert len(found) == 12_234
    assert len(found.pictures) == 18 * 28


def test_groups_of_the_golden_set(golden):
    """Groups hold ids, not columns, and only those with partners."""
    bus, cat, plant = golden.categories
    assert bus.groups[2:4] == ((4, 7), (10, 13, 20, 23))
    assert cat.groups == ((2, 3), (9, 10, 11, 12))
    assert plant.groups == ((0, 1, 2, 3), (4, 5), (6, 8))
    assert plant.flip_groups == ((0, 2), (4, 5), (6, 8))


@pytest.mark.parametrize("mapping", ["right", "reference"])
def test_geo_points_of_the_golden_set(golden, expected, mapping):
    """The reference's counts come out of its own mapping alone, where it is wrong."""
    theirs = expected["results"]["modela16"]["argmax"]["per_keypoint"]["geo_per_category"]
    for category in golden.categories:
        columns = geo_columns(golden.name, category.name, category.slots, mapping)
        found = 0
        for source, target in zip(category.source_kps, category.target_kps, strict=True):
            common = source[:, 2] * target[:, 2] > 0
            for group in map(list, columns):
                if (target[group, 2] > 0).sum() >= 2:
                    found += common[group].sum()
        same = found == theirs[category.name]["weight"]
        assert same == (mapping == "reference" or category.name == "cat")


def test_mappings_differ_where_they_are_known_to():
    """All ids used: only the rows that do not ascend, bus, car, pottedplant and tvmonitor."""
    wrong = []
    for category in table_categories("spair71k"):
        row = table_row("spair71k", "geo_aware", category)
        slots = sorted(i for item in row for i in (item if isinstance(item, tuple) else (item,)))
        if right_columns(row, slots) != reference_columns(row, slots):
            wrong.append(category)
    assert wrong == ["bus", "car", "pottedplant", "tvmonitor"]


def test_mappings_by_hand():
    """Id 4 is not used: its group shrinks to one column."""
    row = (0, (1, 5), (2, 4), 3)
    assert right_columns(row, (0, 1, 2, 3, 5)) == (0, (1, 4), 2, 3)
    assert reference_columns(row, (0, 1, 2, 3, 5)) == (0, (1, 2), 3, 4)
    assert groups_of(right_columns(row, (0, 1, 2, 3, 5))) == ((1, 4),)


def test_flip_columns_of_the_reference():
    """Its compact table as it stands where the count fits, else filtered by other ids."""
    bus = tuple(i for i in range(30) if i not in (8, 9))
    assert flip_columns("spair71k", "bus", bus, "right") == flip_columns(
        "spair71k", "bus", bus, "reference"
    )
    plant = (0, 1, 2, 4, 5, 6, 7, 8)
    assert flip_columns("spair71k", "pottedplant", plant, "right") == ((0, 2), 1, (3, 4), (5, 7), 6)
    theirs = flip_columns("spair71k", "pottedplant", plant, "reference")
    assert theirs == ((0, 1), 2, (3, 4), (5, 6), 7)


def test_tables_are_whole():
    """No id stands twice in a row, flips are pairs, AP-10K has one row for all animals."""
    assert len(table_categories("spair71k")) == 18
    for category in table_categories("spair71k"):
        for kind in ("geo_aware", "flip", "flip_compact"):
            row = table_row("spair71k", kind, category)
            ids = [i for item in row for i in (item if isinstance(item, tuple) else (item,))]
            assert len(set(ids)) == len(ids) > 8, (kind, category)
        assert {len(group) for group in groups_of(row)} == {2}
    assert table_row("ap10k", "geo_aware", "any animal") == table_row("ap10k", "geo_aware", "*")
    assert table_row("mine", "geo_aware", "cat") == table_row("spair71k", "flip", "sofa") == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("spairs", SPAIR), "unknown dataset 'spairs'; did you mean 'spair'?"),
        (("spair", SPAIR, "tests"), "unknown split 'tests'; did you mean 'test'?"),
        (("spair", SPAIR, "train"), "unknown split 'train'; did you mean 'trn'?"),
        (("ap10k", SPAIR, "test_cross_specie"), "did you mean 'test_cross_species'?"),
        (("pfpascal", SPAIR, "train"), "did you mean 'trn'?"),
        (("csv", SPAIR, "val"), "unknown split 'val'; known: test"),
    ],
)
def test_names_get_suggestions(call, message):
    """Dataset and split."""
    with pytest.raises(UsageError) as error:
        read_pairs(*call)
    assert message in str(error.value)


def test_categories_get_suggestions():
    """And none at all is refused, as is a sample below nothing."""
    with pytest.raises(UsageError, match="unknown category 'bsu'; did you mean 'bus'"):
        read_pairs("spair", SPAIR, categories=["bsu"])
    with pytest.raises(UsageError, match="no category is chosen"):
        read_pairs("spair", SPAIR, categories=[])
    with pytest.raises(UsageError, match="sample is -1"):
        read_pairs("spair", SPAIR, sample=-1)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_folder_that_is_not_there(dataset, tmp_path):
    """Whatever the set; the message says what to type or to read."""
    with pytest.raises(LawError) as error:
        read_pairs(dataset, tmp_path / "gone")
    assert str(tmp_path / "gone") in str(error.value)
    assert "prepare_" in str(error.value) or "docs/correspondence_data.md" in str(error.value)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A set to break: the golden one without features and masks."""
    root = tmp_path / "SPair-71k"
    for folder in ("JPEGImages", "ImageAnnotation", "PairAnnotation"):
        shutil.copytree(SPAIR / folder, root / folder)
    return root


def edit(path: Path, change) -> None:
    """Rewrites a JSON file."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


PAIR = "PairAnnotation/test/000006-2009_006962-2011_008904:bus.json"
IMAGE = "ImageAnnotation/bus/2009_006962.json"
NAN = float("nan")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (PAIR, lambda r: r.pop("trg_bndbox"), "key 'trg_bndbox' is missing"),
        (PAIR, lambda r: r.update(trg_bndbox=[1, 2, 3]), "expected four numbers"),
        (PAIR, lambda r: r.update(trg_bndbox=[1, 2, 3, NAN]), "expected four numbers"),
        (PAIR, lambda r: r.update(trg_bndbox=[1, 2, 3, True]), "expected four numbers"),
        (PAIR, lambda r: r.update(trg_bndbox="box"), "expected four numbers"),
        (PAIR, lambda r: r.update(trg_bndbox=[10, 10, 10, 30]), "a box with an area"),
        (PAIR, lambda r: r.update(src_bndbox=[10, 10, 5, 30]), "a box with an area"),
        (PAIR, lambda r: r.pop("src_imsize"), "key 'src_imsize' is missing"),
        (PAIR, lambda r: r.update(src_imsize=[110]), "[width, height, channels]"),
        (PAIR, lambda r: r.update(src_imsize=[110, 0, 3]), "pixels above 0"),
        (PAIR, lambda r: r.update(src_imsize=[110, 1.5, 3]), "pixels above 0"),
        (
            PAIR,
            lambda r: r.update(src_imsize=[111, 110, 3]),
            "111 x 110 pixels in one annotation and 110 x 110 in another",
        ),
        (PAIR, lambda r: r.pop("category"), "key 'category' is missing"),
        (PAIR, lambda r: r.update(category="cat"), "expected 'bus', as in the file's name"),
        (PAIR, lambda r: r.pop("src_imname"), "key 'src_imname' is missing"),
        (PAIR, lambda r: r.update(src_imname="../cat/2007_001986.jpg"), "no folders"),
        (PAIR, lambda r: r.update(src_imname="/etc/passwd.jpg"), "no folders"),
        (PAIR, lambda r: r.update(src_imname="..\\x.jpg"), "no folders"),
        (PAIR, lambda r: r.update(src_imname="gone.jpg"), "gone.json: no such file"),
        (PAIR, lambda r: r.update(src_imname=7), "expected the name of an image file"),
        (IMAGE, lambda r: r.pop("kps"), "key 'kps' is missing"),
        (IMAGE, lambda r: r.update(kpss=r.pop("kps")), "(there is 'kpss')"),
        (IMAGE, lambda r: r.update(kps=[[1, 2]]), "expected id -> [x, y] or null"),
        (IMAGE, lambda r: r["kps"].update({"0": [1]}), "for keypoint 0"),
        (IMAGE, lambda r: r["kps"].update({"0": [1, 2, 3]}), "for keypoint 0"),
        (IMAGE, lambda r: r["kps"].update({"0": [1, NAN]}), "for keypoint 0"),
        (IMAGE, lambda r: r["kps"].update({"0": [1, "2"]}), "for keypoint 0"),
        (IMAGE, lambda r: r["kps"].update({"0": [1, 1e300]}), "for keypoint 0"),
        (IMAGE, lambda r: r["kps"].update({"0": [1, 10**400]}), "for keypoint 0"),
        (PAIR, lambda r: r.update(src_imsize=[10**400, 110, 3]), "pixels above 0"),
        (IMAGE, lambda r: r["kps"].update({"eye": [1, 2]}), "only whole numbers"),
    ],
)
def test_annotations_that_are_not_as_meant(copy, file, change, message):
    """The message names the file and the command that mends it."""
    edit(copy / file, change)
    with pytest.raises(LawError) as error:
        read_pairs("spair", copy)
    assert message in str(error.value)
    if "in another" not in message:
        assert "prepare_spair.sh" in str(error.value)
        assert str(copy) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", "\xff", '{"a": ' * 100_000])
@pytest.mark.parametrize("file", [PAIR, IMAGE])
def test_files_that_are_no_json_object(copy, file, content):
    """Cut off, another type, no text, nested without end."""
    (copy / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(LawError, match=r"json: (not valid JSON|expected a JSON object)") as error:
        read_pairs("spair", copy)
    assert "prepare_spair.sh" in str(error.value)


def test_a_category_without_pairs(copy):
    """Eighteen announced, seventeen scored: refused, unless the others are named."""
    for pair in (copy / "PairAnnotation/test").glob("*:cat.json"):
        pair.unlink()
    with pytest.raises(LawError, match="no pair of category 'cat'"):
        read_pairs("spair", copy)
    assert len(read_pairs("spair", copy, categories=["bus", "pottedplant"])) == 24


def test_pairs_of_a_category_without_images(copy):
    """The other way round."""
    (copy / "ImageAnnotation/cat").rename(copy / "ImageAnnotation/cats")
    with pytest.raises(LawError, match="has pairs of 'cat'"):
        read_pairs("spair", copy)


def test_other_folders(copy, tmp_path):
    """One too high, a split that is missing or empty, names without a colon, hidden files."""
    with pytest.raises(LawError, match="SPair-71k has; give that one"):
        read_pairs("spair", tmp_path)
    with pytest.raises(LawError, match="expected a folder ImageAnnotation inside"):
        read_pairs("spair", copy / "PairAnnotation")
    (copy / "ImageAnnotation/.DS_Store").touch()
    (copy / "PairAnnotation/test/.DS_Store").touch()
    assert len(read_pairs("spair", copy)) == 36
    for pair in (copy / "PairAnnotation/val").iterdir():
        pair.rename(pair.with_name(pair.name.replace(":", "_")))
    with pytest.raises(LawError, match="some unpackers change the colon"):
        read_pairs("spair", copy, "val")
    for pair in (copy / "PairAnnotation/val").iterdir():
        pair.unlink()
    with pytest.raises(LawError, match="holds no pair"):
        read_pairs("spair", copy, "val")
    (copy / "PairAnnotation/val").rmdir()
    with pytest.raises(LawError, match="no such folder"):
        read_pairs("spair", copy, "val")
