"""Published formats become items; whatever is not as published is named with its row."""

import json
import logging

import pair_files
import pytest

from llava.config import read_yaml
from llava.errors import ConfigError, LawError, UsageError
from llava.eval.pairs.config import KINDS, read_benchmarks, size_difference
from llava.eval.pairs.readers.grid import Grid
from llava.eval.pairs.readers.mmvp import MMVP
from llava.eval.pairs.readers.mmvp_vlm import MMVPVLM
from llava.eval.pairs.readers.spatial import Spatial
from llava.eval.pairs.readers.whatsup import WhatsUp
from llava.eval.pairs.sources import sources
from llava.eval.pairs.synthetic import make_synthetic


def changed(path, change) -> None:
    """Rewrites a JSON file by a function of its content."""
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


@pytest.fixture
def a(tmp_path):
    """What'sUp A: (JSON, images), below a folder whose name holds other sets' names."""
    return pair_files.whatsup(tmp_path / "coco_one_two_b", "controlled_images")


def test_whatsup_sets(a):
    benchmark = WhatsUp("whatsup_a", *a).read()
    assert benchmark.protocol == "two-way" and benchmark.chooses == "captions"
    assert [item.id for item in benchmark.items] == [
        "beer-bottle_armchair",
        "mug_coffee-table",
        "one-coco-can_on-switch",
    ]
    item = benchmark.items[0]
    assert [path.name for path in item.images] == [
        "beer-bottle_left_of_armchair.jpeg",
        "beer-bottle_right_of_armchair.jpeg",
        "beer-bottle_on_armchair.jpeg",
        "beer-bottle_under_armchair.jpeg",
    ]
    said = [item.captions[right] for right in item.right]
    assert said == [
        f"A beer bottle {words} a armchair"
        for words in ("to the left of", "to the right of", "on", "under")
    ]
    assert item.pairs == ((0, 1), (2, 3))
    assert item.axes == ("left/right",) * 2 + ("on/under",) * 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_way_goes_by_the_axis(a, number):
    """Also where the objects are called `on switch`: `on` is then in every caption."""
    item = WhatsUp("whatsup_a", *a, choices="two").read().items[number]
    for choices in item.choices[:2]:
        assert {" left " in item.captions[c] or " right " in item.captions[c] for c in choices} == {
            True
        }
    for choices in item.choices[2:]:
        objects = item.captions[choices[0]].split(" a ")
        assert {item.captions[c].split(" a ")[1] for c in choices} == {objects[1]}
        assert sorted(item.captions[c].split(" a ")[0].split()[-1] for c in choices) == [
            "on",
            "under",
        ]


def test_four_way_takes_all_captions(a):
    benchmark = WhatsUp("whatsup_a", *a, choices="four").read()
    assert benchmark.protocol == "four-way"
    for item in benchmark.items:
        assert all(sorted(choices) == [0, 1, 2, 3] for choices in item.choices)


def test_whatsup_b_has_front_and_behind(tmp_path):
    item = WhatsUp("b", *pair_files.whatsup(tmp_path, "clevr", pair_files.B)).read().items[1]
    assert item.axes == ("left/right",) * 2 + ("front/behind",) * 2
    assert item.captions[item.right[2]] == "A mug in front of a coffee table"
    assert item.images[3].name == "mug_behind_coffee-table.jpeg"
    data, images = pair_files.whatsup(tmp_path / "other", "clevr", pair_files.B)
    data.write_text(data.read_text().replace("in front of", "in-front of"))
    axes = [one.axes for one in WhatsUp("b", data, images).read().items]
    assert axes == [item.axes] * 3


def drop(records):
    """Takes the third image of the first set out."""
    del records[2]


def misname(records):
    records[0]["image_path"] = "data/x/beer-bottle_beside_armchair.jpeg"


def number(records):
    records[0]["image_path"] = "data/x/beer-bottle_left_of_armchair_2.jpeg"


def mislabel(records):
    options = records[0]["caption_options"]
    options[0], options[1] = options[1], options[0]


def three(records):
    records[1]["caption_options"].pop()


def twice(records):
    records.append(records[0])


def other_words(records):
    options = records[0]["caption_options"]
    options[1] = options[1].replace("to the right of", "beside")


WRONG = {
    drop: r"record 0: the set of beer-bottle and armchair has left, right, under and lacks on;",
    misname: r"record 0: image 'beer-bottle_beside_armchair': expected <object>_<relation>_",
    number: r"record 0: image 'beer-bottle_left_of_armchair_2': expected <object>_<relation>_",
    mislabel: r"record 0: the first caption, which is the right one, says 'right' and .* 'left'",
    three: r"record 1: expected `image_path` and `caption_options`, a list of four",
    twice: r"record 12: a second image of 'left' for beer-bottle and armchair",
    other_words: r"record 0: .* differs from the other captions in 'beside'",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_records_that_are_not_as_published(a, change):
    changed(a[0], change)
    with pytest.raises(LawError, match=WRONG[change]):
        WhatsUp("whatsup_a", *a).read()


def test_images_that_are_missing(a):
    for name in ("left_of", "on"):
        (a[1] / f"mug_{name}_coffee-table.jpeg").unlink()
    with pytest.raises(LawError, match=r"2 of 12 images are not there: .*mug_left_of.*law pairs"):
        WhatsUp("whatsup_a", *a).read()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "expected a JSON list of records, got dict"),
        ("[]", "an empty list"),
        ("[", "as JSON"),
    ],
)
def test_files_that_are_no_list(tmp_path, text, why):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(LawError, match=why):
        WhatsUp("a", tmp_path / "x.json", tmp_path).read()
    with pytest.raises(LawError, match="no such file"):
        WhatsUp("a", tmp_path / "y.json", tmp_path).read()


def spatial(folder, records) -> Spatial:
    (folder / "qa.json").write_text(json.dumps(records))
    return Spatial("coco", folder / "qa.json", folder / "val", "coco")


def test_spatial(tmp_path):
    """The kind of names comes from the configuration, whatever the folder is called."""
    folder = tmp_path / "gqa_two"
    pair_files.picture(folder / "val" / "000000000139.jpg")
    records = [
        [139, "A photo of a dog on the left", "A photo of a dog on the right"],
        [139, "A photo of a dog below a cat", "A photo of a dog above a cat"],
    ]
    benchmark = spatial(folder, records).read()
    assert [item.axes for item in benchmark.items] == [("left/right",), ("above/below",)]
    assert benchmark.items[0].id == "0_139" and not benchmark.items[0].pairs
    assert benchmark.items[1].captions[benchmark.items[1].right[0]] == records[1][1]
    pair_files.picture(tmp_path / "vg" / "2350.jpg")
    ids = ["2350", 2350, 2350.0]
    records = [[image, "A photo of x", "A photo of y"] for image in ids]
    (tmp_path / "vg.json").write_text(json.dumps(records))
    for item in Spatial("g", tmp_path / "vg.json", tmp_path / "vg", "gqa").read().items:
        assert item.images[0].name == "2350.jpg" and item.axes == ("",)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ([1, "x"], "record 0: expected .image id, true caption, false caption"),
        ([1, "x", "x"], "record 0: both captions are 'x'"),
        (["dog", "x", "y"], "record 0: image id 'dog'; expected a number"),
        ([None, "x", "y"], "record 0: image id None; expected a number"),
        ([139.5, "x", "y"], "record 0: image id 139.5; expected a number"),
        ([True, "x", "y"], "record 0: image id True; expected a number"),
        ([-1, "x", "y"], "record 0: image id -1; expected a number"),
    ],
)
def test_spatial_records_that_are_wrong(tmp_path, record, why):
    with pytest.raises(LawError, match=why):
        spatial(tmp_path, [record]).read()


def test_names_do_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "qa.json").write_text(json.dumps([["../../etc/x", "a", "b"]]))
    with pytest.raises(LawError, match=r"record 0: image .* is no file inside of"):
        Spatial("g", tmp_path / "qa.json", tmp_path, "gqa").read()


def test_mmvp_asks_one_question_of_two_images(tmp_path):
    data, images = pair_files.mmvp(tmp_path, 3)
    benchmark = MMVP("mmvp", images, data).read()
    assert benchmark.protocol == "questions/labels=original"
    first, second, _ = benchmark.items
    assert first.question == "Is door 0 open or closed?"
    assert first.captions == ("Open", "Closed")
    assert (first.right, second.right) == ((0, 1), (1, 0))
    assert [path.name for path in second.images] == ["3.jpg", "4.jpg"]


@pytest.mark.parametrize("form", ["data", "statements"])
def test_corrected_labels_change_four_rows(tmp_path, form):
    data, images = pair_files.mmvp(tmp_path, 150)
    given = {
        "data": {"data": data},
        "statements": {"statements": pair_files.statements(tmp_path / "s.csv", 150)},
    }[form]
    original = MMVP("mmvp", images, **given).read()
    corrected = MMVP("mmvp", images, **given, labels="corrected").read()
    assert original.protocol != corrected.protocol
    assert size_difference(original) == ""
    changed = [
        one.images[i].stem
        for one, other in zip(original.items, corrected.items, strict=True)
        for i in (0, 1)
        if one.captions[one.right[i]] != other.captions[other.right[i]]
    ]
    assert changed == ["99", "100", "279", "280"]


def test_statements_of_mmvp(tmp_path):
    _, images = pair_files.mmvp(tmp_path, 2)
    table = pair_files.statements(tmp_path / "Questions-clip.csv", 2)
    item = MMVP("mmvp", images, statements=table).read().items[1]
    assert item.captions == ("a photo of door 1 that is open", "a photo of door 1 that is closed")
    assert item.right == (0, 1) and not item.question and not item.axes
    with pytest.raises(LawError, match=r"rows \(99, 100\) are not there"):
        MMVP("mmvp", images, statements=table, labels="corrected").read()


HEAD = ("lndex", "Question", "Options", "Correct Answer")
ROWS = ([1, "Q?", "(a) x (b) y", "(a)"], [2, "Q?", "(a) x (b) y", "(b)"])


@pytest.mark.parametrize(
    ("row", "cells", "why"),
    [
        (0, [1, "Q?", "x or y", "(a)"], r"row 1: Options 'x or y'; expected '\(a\) \.\.\. \(b\)"),
        (1, [2, "Q?", "(a) x (b) y", "(c)"], r"row 2: Correct Answer '\(c\)'; expected"),
        (1, [2, "Q?", "(a) x (b) y", "(a)"], "row 2: has the same answer as its pair"),
        (1, [2, "R?", "(a) x (b) y", "(b)"], "row 2: asks 'R\\?'"),
        (1, [4, "Q?", "(a) x (b) y", "(b)"], "row 1: 1 and 4 are no pair"),
        (1, ["b", "Q?", "(a) x (b) y", "(b)"], "row 2: lndex is 'b'; expected a whole number"),
        (1, [2, "Q?", "(a) x (b) y"], "row 2: 3 cells, expected 4"),
    ],
)
def test_mmvp_rows_that_are_wrong(tmp_path, row, cells, why):
    rows = list(ROWS)
    rows[row] = cells
    table = pair_files.table(tmp_path / "Questions.csv", HEAD, rows)
    with pytest.raises(LawError, match=why):
        MMVP("mmvp", tmp_path, table).read()


def test_mmvp_columns_that_are_missing(tmp_path):
    table = pair_files.table(tmp_path / "Q.csv", ("id", *HEAD[1:]), ROWS)
    with pytest.raises(LawError, match=r"column\(s\) lndex missing; found id, Question"):
        MMVP("mmvp", tmp_path, table).read()
    table = pair_files.table(tmp_path / "Q.csv", HEAD, [ROWS[0]])
    with pytest.raises(LawError, match="row 1: 1 are no pair"):
        MMVP("mmvp", tmp_path, table).read()


def test_a_table_as_other_programs_write_it(tmp_path):
    """Byte order mark, CRLF, the column's right spelling, quotes doubled where none are around."""
    pair_files.mmvp(tmp_path, 1)
    text = (
        "Index,Question,Options,Correct Answer\r\n"
        '1,What is it?," (a) ""OK"" (b) No",(a)\r\n'
        '2,What is it?,(a) ""OK"" (b) No,(b)\r\n'
    )
    (tmp_path / "Q.csv").write_bytes(text.encode("utf-8-sig"))
    item = MMVP("mmvp", tmp_path / "MMVP Images", tmp_path / "Q.csv").read().items[0]
    assert item.captions == ('"OK"', "No") and item.right == (0, 1)
    (tmp_path / "Q.csv").write_bytes(text.encode() + b'3,"' + b"x" * 200_000)
    with pytest.raises(LawError, match=r"Q\.csv: cannot be read as CSV: field larger"):
        MMVP("mmvp", tmp_path / "MMVP Images", tmp_path / "Q.csv").read()


def test_questions_of_mmvp_vlm_that_are_misnumbered(tmp_path, law_log):
    """As the paper's file has 277 and 278 in the places of 225 and 226."""
    data, images = pair_files.mmvp_vlm(tmp_path)
    questions = pair_files.mmvp_questions(tmp_path / "Questions-llava.csv", 4)
    right = MMVPVLM("mmvp_vlm", data, images, questions).read()
    assert not law_log
    text = questions.read_text()
    questions.write_text(text.replace("\n3,", "\n277,").replace("\n4,", "\n278,"))
    assert MMVPVLM("mmvp_vlm", data, images, questions).read() == right
    assert [line.partition("csv: ")[2] for line in law_log] == [
        "row 3: is numbered 277; taken for 3 by its place",
        "row 4: is numbered 278; taken for 4 by its place",
    ]
    questions.write_text(text.replace("\n3,", "\n1,"))
    with pytest.raises(LawError, match="row 3: 1 and 4 are no pair"):
        MMVPVLM("mmvp_vlm", data, images, questions).read()


def test_mmvp_vlm_chooses_images(tmp_path):
    data, images = pair_files.mmvp_vlm(tmp_path)
    benchmark = MMVPVLM("mmvp_vlm", data, images).read()
    assert benchmark.chooses == "images"
    assert [item.axes[0] for item in benchmark.items] == [
        kind for kind in pair_files.TYPES for _ in (0, 1)
    ]
    assert benchmark.items[2].captions[1] == "a photo of door 2 that is closed"
    assert benchmark.items[2].images[1].parts[-2:] == ("Color and Appearance", "6.jpg")
    questions = pair_files.mmvp_questions(tmp_path / "Questions-llava.csv", 4)
    asked = MMVPVLM("mmvp_vlm", data, images, questions).read()
    assert asked.chooses == "captions" and asked.protocol == "questions"
    assert asked.items[3].question == "Is door 3 open or closed?"
    assert asked.items[3].axes == ("Color and Appearance",) * 2
    pair_files.mmvp_questions(questions, 3)
    with pytest.raises(LawError, match="no question 7"):
        MMVPVLM("mmvp_vlm", data, images, questions).read()


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Grid("grid", path)


def test_grid_shapes(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        pair_files.picture(tmp_path / name)
    benchmark = lines(
        tmp_path / "x.jsonl",
        {"images": ["a.png", "b.png"], "captions": ["x", "y"], "axis": "colour"},
        {"id": 7, "images": ["a.png"], "captions": ["true", "false"]},
        {
            "id": "all",
            "images": ["a.png", "b.png", "c.png"],
            "captions": ["x", "y", "z"],
            "right": [2, 0, 1],
            "choices": [[2, 0], [0, 1], [1, 2]],
            "pairs": [[0, 1], [1, 2]],
            "axis": ["p", "q", "r"],
            "question": "What?",
        },
    ).read()
    pair, single, everything = benchmark.items
    assert (pair.id, pair.right, pair.pairs, pair.axes) == (
        "0",
        (0, 1),
        ((0, 1),),
        ("colour", "colour"),
    )
    assert (single.id, single.right, single.pairs, single.choices) == ("7", (0,), (), ((0, 1),))
    assert everything.pairs == ((0, 1), (1, 2)) and everything.choices[2] == (1, 2)
    assert everything.question == "What?" and everything.axis(1) == "q"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"images": ["a.png"]}, "line 1: captions: this key is required"),
        ({"images": ["a.png"], "captions": ["x", "y"], "wright": [0]}, "did you mean 'right'"),
        ({"images": ["a.png"], "captions": ["x", "y"], "right": [2]}, "line 1: item 0:"),
        ({"images": ["a.png"], "captions": ["x"]}, "line 1: item 0: an image chooses among"),
        ({"images": ["../a.png"], "captions": ["x", "y"]}, "is no file inside of"),
        ({"images": ["b.png"], "captions": ["x", "y"]}, "1 of 1 images are not there"),
        ({"images": ["a.png"], "captions": ["x", "y"], "pairs": [[0, 1]]}, "are no pair"),
        ({"images": ["a.png"], "captions": ["x", "y"], "pairs": [[0]]}, "pairs.*expected 2 items"),
    ],
)
def test_grid_lines_that_are_wrong(tmp_path, record, why):
    pair_files.picture(tmp_path / "a.png")
    with pytest.raises(LawError, match=why):
        lines(tmp_path / "x.jsonl", record).read()


def test_a_grid_file_as_a_whole(tmp_path):
    pair_files.picture(tmp_path / "a.png")
    line = {"id": "x", "images": ["a.png"], "captions": ["x", "y"]}
    with pytest.raises(LawError, match="line 2: id x stands there twice"):
        lines(tmp_path / "x.jsonl", line, line).read()
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(LawError, match="holds no items"):
        Grid("g", tmp_path / "x.jsonl").read()
    (tmp_path / "x.jsonl").write_text("[1]\n")
    with pytest.raises(LawError, match="line 1: expected a JSON object"):
        Grid("g", tmp_path / "x.jsonl").read()


def test_the_synthetic_set_reads_as_it_was_made(tmp_path):
    made = make_synthetic(tmp_path / "s", 4, seed=0)
    assert Grid("synthetic", tmp_path / "s" / "pairs.jsonl").read() == made
    asked = Grid("asked", tmp_path / "s" / "questions.jsonl").read()
    for item, other in zip(asked.items, made.items, strict=True):
        assert item.images == other.images and item.right == other.right
        assert item.question.startswith("Where is the ")
        for image in (0, 1):
            answer = item.captions[item.right[image]].lower()
            words = answer if answer in ("above", "below") else f"to the {answer} of"
            assert f" {words} a " in other.captions[other.right[image]]


def config(folder, *entries):
    path = folder / "config.yaml"
    path.write_text("benchmarks:\n" + "".join(f"- {json.dumps(entry)}\n" for entry in entries))
    return path


def test_a_configuration_of_several(a, tmp_path, caplog):
    entry = {"name": "whatsup_a", "kind": "whatsup", "data": str(a[0]), "images": str(a[1])}
    four = entry | {"name": "mine", "choices": "four"}
    path = config(tmp_path, entry, four)
    logging.getLogger("law").propagate = True
    try:
        one, other = read_benchmarks(path)
    finally:
        logging.getLogger("law").propagate = False
    assert "whatsup_a: 12 images, published 412; 3 items, published 103" in caplog.text
    assert "mine" not in caplog.text
    assert (one.name, one.protocol, other.protocol) == ("whatsup_a", "two-way", "four-way")
    (limited,) = read_benchmarks(path, only=["mine"], limit=2)
    assert len(limited.items) == 2 and limited.protocol == "four-way/limit=2"
    with pytest.raises(UsageError, match="did you mean 'whatsup_a'"):
        read_benchmarks(path, only=["whatsup_b"])
    with pytest.raises(LawError, match="412; 3 items, published 103; take the published"):
        read_benchmarks(config(tmp_path, entry | {"expect": "published"}))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"name": "x"}, r"benchmarks\[0\].kind: unknown kind 'None'"),
        ({"name": "x", "kind": "whatsupp"}, "did you mean 'whatsup'"),
        ({"name": "x", "kind": "grid"}, r"benchmarks\[0\].data: this key is required"),
        ({"name": "x", "kind": "grid", "data": "x", "choices": 2}, "unknown key 'choices'"),
        ({"name": "x", "kind": "grid", "data": "x", "expect": 3}, "expect: '3'; expected"),
        ({"name": "x", "kind": "mmvp", "images": "x"}, "give `data`.*or `statements`"),
    ],
)
def test_configurations_that_are_wrong(tmp_path, entry, why):
    with pytest.raises(ConfigError, match=why):
        read_benchmarks(config(tmp_path, entry))


def test_names_stand_once(tmp_path):
    entry = {"name": "x", "kind": "grid", "data": "x"}
    with pytest.raises(ConfigError, match=r"benchmarks\[1\]: 'x' stands there twice"):
        read_benchmarks(config(tmp_path, entry, entry))
    (tmp_path / "empty.yaml").write_text("benchmarks: []\n")
    with pytest.raises(ConfigError, match="expected at least one"):
        read_benchmarks(tmp_path / "empty.yaml")


def test_every_shipped_configuration_is_meant(tmp_path):
    """Its keys are right: what is wrong is only that the data is not there."""
    from repository import ROOT

    files = sorted((ROOT / "configs" / "pairs").glob("*.yaml"))
    assert {f"configs/pairs/{path.name}" for path in files} > {
        one.config for one in sources().values()
    }
    kinds, names = set(), set()
    for path in files:
        entries = read_yaml(path)["benchmarks"]
        kinds |= {entry["kind"] for entry in entries}
        names |= {entry["name"] for entry in entries}
        with pytest.raises(LawError, match="no such file"):
            read_benchmarks(path)
    assert kinds == set(KINDS)
    counted = {name for one in sources().values() for name in one.counts}
    assert counted - names == {"mmvp_corrected"}


def test_published_sizes_add_up():
    """820 photos of What'sUp, 2,687 of COCO and 1,451 of GQA: 4,958 questions in all."""
    counts = sources()["whatsup"].counts
    assert sum(one["images"] for one in counts.values()) == 4958
    assert all(counts[name]["images"] == 4 * counts[name]["items"] for name in list(counts)[:2])
