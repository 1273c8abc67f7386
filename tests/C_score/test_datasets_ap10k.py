"""AP-10K on a stand-in: its reader, and the pairs made from its COCO files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from C_score.datasets import read_pairs
from C_score.datasets.ap10k_pairs import PER_FAMILY, PER_TWO_FAMILIES, Animal, draw_pairs
from C_score.datasets.prepare_ap10k import RECORD, main, prepare
from llava.errors import LawError

SPECIES = {"Felidae": {"cat": 60, "lion": 35}, "Canidae": {"dog": 52}}
"""Family -> species -> images."""


def keypoints(number: int) -> list[int]:
    """17 points, 14 of them labelled; of these every third is hidden (v = 1)."""
    points = [(2 * i + 1, 3 * i + number % 5, 1 if i % 3 == 0 else 2) for i in range(14)]
    return [value for point in points + [(0, 0, 0)] * 3 for value in point]


def build(root: Path, families: dict[str, dict[str, int]]) -> Path:
    """ap-10k as it comes: three COCO files, images in one folder."""
    (root / "data").mkdir(parents=True)
    (root / "annotations").mkdir()
    kinds, images, animals = [], [], []
    for family, members in families.items():
        for species, count in members.items():
            kinds.append({"id": len(kinds) + 1, "name": species, "supercategory": family})
            for _ in range(count):
                number = len(images) + 1
                name = f"{number:012d}.jpg"
                images.append({"id": number, "file_name": name, "width": 100, "height": 80})
                animals.append(
                    {
                        "id": number,
                        "image_id": number,
                        "category_id": len(kinds),
                        "bbox": [10, 20, 30, 40],
                        "keypoints": keypoints(number),
                        "num_keypoints": 14,
                        "iscrowd": 0,
                    }
                )
                (root / "data" / name).write_bytes(b"image")
    for i, part in enumerate(("train", "val", "test")):
        coco = {"images": images[i::3], "annotations": animals[i::3], "categories": kinds}
        (root / f"annotations/ap10k-{part}-split1.json").write_text(json.dumps(coco))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three species with their pairs; not to be changed."""
    root = build(tmp_path_factory.mktemp("made") / "ap-10k", SPECIES)
    prepare(root)
    return root


@pytest.fixture
def raw(tmp_path) -> Path:
    """Images 1 to 17 of one species, which all go to test: 136 pairs."""
    return build(tmp_path / "ap-10k", {"Felidae": {"cat": 17}})


@pytest.fixture
def small(raw) -> Path:
    """The same with its pairs."""
    prepare(raw)
    return raw


def edit(path: Path, change) -> None:
    """Rewrites a JSON file."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_first(raw: Path, **values) -> None:
    """Other values in the annotation of image 1."""
    edit(
        raw / "annotations/ap10k-train-split1.json",
        lambda coco: coco["annotations"][0].update(values),
    )


def test_sizes_of_the_splits(made):
    """Last 30 test, 20 before val, rest trn; all pairs, but at most 900, 400, 30 and 20 of some."""
    pairs = json.loads((made / RECORD).read_text())["pairs"]
    assert pairs == {
        "trn": 10 * 9 // 2 + 1,
        "val": 190 + 10 + 190,
        "test": 3 * 435,
        "val_cross_species": 20 * 5,
        "test_cross_species": 900,
        "val_cross_family": 20,
        "test_cross_family": 30,
    }
    assert (PER_FAMILY, PER_TWO_FAMILIES) == ({"val": 400, "test": 900}, {"val": 20, "test": 30})
    for split, count in pairs.items():
        assert len(list((made / "PairAnnotation" / split).iterdir())) == count
    test = {p.name.split(":")[0] for p in (made / "PairAnnotation/test").glob("*:cat.json")}
    assert {image for pair in test for image in pair.split("-")} == {
        f"{number:012d}" for number in range(31, 61)
    }


def test_limit_of_training_pairs():
    """52 images left for trn have 1,326 pairs, fewer than 50 each; 120 have 7,140, more."""
    for images, expected in ((102, 52 * 51 // 2), (170, 120 * 50)):
        animals = [Animal(f"{i:012d}", "F", "s", 7, {}) for i in range(images)]
        assert sum(split == "trn" for split, *_ in draw_pairs(animals)) == expected


def test_pairs_have_common_points():
    """Three at least."""
    animals = [Animal("1", "F", "s", 0b0111, {}), Animal("2", "F", "s", 0b1110, {})]
    assert list(draw_pairs(animals)) == []
    animals.append(Animal("3", "F", "s", 0b1111, {}))
    found = {frozenset((a.image, b.image)) for _, _, a, b in draw_pairs(animals)}
    assert found == {frozenset("13"), frozenset("23")}


def test_every_machine_makes_the_same(made):
    """The first drawn pairs, as found when this was written; and both directions occur."""
    names = sorted(path.name for path in (made / "PairAnnotation/test_cross_family").iterdir())
    assert names[:2] == [
        "000000000031-000000000130:all.json",
        "000000000031-000000000147:all.json",
    ]
    sources = {int(name[:12]) for name in names}
    assert min(sources) <= 95 < max(sources)


def test_what_the_reader_makes_of_it(made):
    """Species as categories; a hidden point counts and keeps its place."""
    found = read_pairs("ap10k", made)
    assert (found.name, found.split) == ("ap10k", "test")
    assert [c.name for c in found.categories] == ["cat", "dog", "lion"]
    cat = found.categories[0]
    assert cat.slots == tuple(range(14))
    picture = found.pictures[cat.source[0]]
    number = int(Path(picture.name).name)
    assert picture.name == f"Felidae/cat/{number:012d}"
    assert picture.path == made / f"JPEGImages/{picture.name}.jpg"
    expected = np.array(keypoints(number), float).reshape(17, 3)[:14] * [8.4, 8.4, 0] + [0, 84, 1]
    assert np.allclose(cat.source_kps[0], expected)
    assert cat.threshold_px == pytest.approx([40 * 8.4] * len(cat))
    assert cat.target_box[0].tolist() == [10, 20, 40, 60]
    assert cat.groups == ((5, 8), (6, 9, 12, 15), (7, 10, 13, 16), (11, 14))
    assert cat.flip_groups[0] == (0, 1)
    assert found.missing_images() == []


@pytest.mark.parametrize(
    ("split", "categories"),
    [
        ("val", ["cat", "dog", "lion"]),
        ("trn", ["cat", "dog"]),  # lion has 35 images: none is left for it
        ("test_cross_species", ["Felidae"]),
        ("val_cross_species", ["Felidae"]),
        ("test_cross_family", ["all"]),
        ("val_cross_family", ["all"]),
    ],
)
def test_other_splits(made, split, categories):
    """Thresholds too, which the reference lacks in val."""
    found = read_pairs("ap10k", made, split)
    assert [c.name for c in found.categories] == categories
    for category in found.categories:
        assert (category.threshold_px > 0).all()
        assert len(category.threshold_px) == len(category)


def test_pairs_as_the_reference_writes_them(small):
    """Paths from the folder in which it was called."""
    for pair in (small / "PairAnnotation/test").iterdir():
        edit(pair, lambda r: r.update({k: f"data/ap-10k/{v}" for k, v in r.items()}))
    assert len(read_pairs("ap10k", small)) == 136


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "key 'src_json_path' is missing"),
        (7, "expected the path of an image's annotation"),
        ("Felidae/cat/000000000017.json", "expected a path .../ImageAnnotation/"),
        ("ImageAnnotation/Felidae/cat/000000000017.jpg", "expected a path .../ImageAnnotation/"),
        ("ImageAnnotation/../ImageAnnotation/../x.json", "is no plain path"),
        ("ImageAnnotation//x.json", "is no plain path"),
        ("ImageAnnotation/Felidae/cat/gone.json", "gone.json: no such file"),
    ],
)
def test_paths_that_are_not_as_meant(small, path, message):
    """None of them leaves the folder."""
    pair = min((small / "PairAnnotation/test").iterdir())
    edit(pair, lambda r: r.update(src_json_path=path) if path else r.pop("src_json_path"))
    with pytest.raises(LawError) as error:
        read_pairs("ap10k", small)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": [1, 2, 0, 3]}, "a box with an area"),
        ({"width": 0}, "pixels above 0"),
        ({"height": None}, "pixels above 0"),
        ({"keypoints": [1, 2, 2]}, "17 times x, y, v"),
        ({"keypoints": [1, 2, 3] * 17}, "17 times x, y, v"),
        ({"keypoints": [float("nan"), 2, 2] * 17}, "17 times x, y, v"),
    ],
)
def test_annotations_that_are_not_as_meant(small, change, message):
    """The message names the file and the command."""
    image = small / "ImageAnnotation/Felidae/cat/000000000017.json"
    edit(image, lambda record: record.update(change))
    with pytest.raises(LawError) as error:
        read_pairs("ap10k", small)
    assert message in str(error.value)
    assert str(image) in str(error.value)
    assert "prepare_ap10k.sh" in str(error.value)


def test_images_that_are_left_out(raw, tmp_path):
    """Several animals, a crowd, too few points, no box, a list; each with its reason."""
    path = raw / "annotations/ap10k-train-split1.json"

    def change(coco: dict) -> None:
        first, second, third, fourth = coco["annotations"][:4]
        coco["annotations"].append({**first, "id": 1000})
        second["iscrowd"] = 1
        third["keypoints"] = [1, 1, 2] * 2 + [0] * 45
        fourth["bbox"] = [1, 1, 0, 5]

    edit(path, change)
    crowd = tmp_path / "crowd.txt"
    crowd.write_text("000000000013.jpg\n16\n")
    assert main([str(raw), "--crowd", str(crowd)]) == 0
    left_out = json.loads((raw / RECORD).read_text())["left_out"]
    assert {int(name[:12]): why for name, why in left_out.items()} == {
        1: "2 animals",
        4: "crowd",
        7: "2 keypoints",
        10: "a box without area",
        13: "crowd",
        16: "crowd",
    }
    assert not (raw / "ImageAnnotation/Felidae/cat/000000000001.json").exists()
    assert not (raw / "JPEGImages/Felidae/cat/000000000001.jpg").exists()


def state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_a_second_call_does_nothing(small):
    """Not even where what it would read is gone."""
    before = state(small)
    for path in (small / "annotations").iterdir():
        path.unlink()
    prepare(small)
    assert state(small) == {k: v for k, v in before.items() if not k.startswith("annotations")}


@pytest.mark.parametrize("moved", [(), ("JPEGImages",), ("JPEGImages", "ImageAnnotation")])
def test_a_killed_call_is_taken_up(raw, moved):
    """Killed while it made the pairs (no record), or while it moved what was made."""
    aside = raw / ".prepare.partial"
    (aside / "PairAnnotation/test").mkdir(parents=True)
    (aside / "PairAnnotation/test/half").touch()
    prepare(raw)
    whole = state(raw)
    assert not aside.exists()
    aside.mkdir()
    for name in ("JPEGImages", "ImageAnnotation", "PairAnnotation", RECORD):
        if name not in moved:
            (raw / name).replace(aside / name)
    prepare(raw)
    assert state(raw) == whole
    assert not aside.exists()


def test_anothers_pairs_are_kept(raw):
    """Made by the reference's notebook, say."""
    (raw / "PairAnnotation/test").mkdir(parents=True)
    (raw / "PairAnnotation/test/a-b:cat.json").write_text("{}")
    with pytest.raises(LawError, match="PairAnnotation: is there already and was not made by this"):
        prepare(raw)
    assert (raw / "PairAnnotation/test/a-b:cat.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": [1, 2]}, "17 times x, y, v"),
        ({"category_id": 99}, "the id of one of the file's categories"),
        ({"category_id": "cat"}, "ids as whole numbers"),
        ({"bbox": None}, "four numbers"),
    ],
)
def test_coco_files_that_are_not_as_meant(raw, change, message):
    """Nothing is left behind."""
    edit_first(raw, **change)
    with pytest.raises(LawError) as error:
        prepare(raw)
    assert message in str(error.value)
    assert not (raw / "ImageAnnotation").exists()


def test_what_is_not_there(raw, capsys):
    """A COCO file, an image, a list of crowds, a COCO file that is none; the command says so."""
    (raw / "data/000000000007.jpg").unlink()
    with pytest.raises(LawError, match=r"000000000007.jpg: no such image"):
        prepare(raw)
    with pytest.raises(LawError, match="expected a list of image numbers"):
        prepare(raw, raw / "gone.txt")
    edit(raw / "annotations/ap10k-val-split1.json", lambda coco: coco.update(images={}))
    with pytest.raises(LawError, match=r"'images' is \{\}; expected a list"):
        prepare(raw)
    (raw / "annotations/ap10k-test-split1.json").unlink()
    (raw / "annotations/ap10k-val-split1.json").unlink()
    assert main([str(raw)]) == 1
    assert "ap10k-val-split1.json: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil", ".hidden", "a/b", "a\\b"])
def test_names_stay_in_their_folder(raw, name):
    """Family, species and file come from a download."""
    for path in (raw / "annotations").iterdir():
        edit(path, lambda coco: coco["categories"][0].update(name=name))
    with pytest.raises(LawError, match="is no plain name"):
        prepare(raw)


def test_a_whole_way_from_images(raw):
    """Real image files: their place is that of the features."""
    Image.new("RGB", (100, 80)).save(raw / "data/000000000017.jpg")
    prepare(raw)
    with Image.open(raw / "JPEGImages/Felidae/cat/000000000017.jpg") as image:
        assert image.size == (100, 80)
