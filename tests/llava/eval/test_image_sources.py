"""Where benchmark images come from, and the seeded draw among them."""

import io
import itertools
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from tiny import picture

from llava import catalog
from llava.errors import LawError, UsageError
from llava.eval import image_sources
from llava.eval.image_sources import (
    FileImages,
    ImageSource,
    Picture,
    TaskImages,
    draw,
    file_names,
    find_sources,
)
from llava.features import image_key
from llava.model.multimodal_encoder.preprocess import to_rgb

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function shown.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 0.0}}
"""
SHOWN = """\
from PIL import Image


def images(doc):
    return [Image.open(path).convert("RGB") for path in doc["files"]]
"""


@pytest.fixture
def photos(tmp_path):
    """A folder of nine pictures in two folders, the first of them twice."""
    folder = tmp_path / "photos"
    for i in range(8):
        path = folder / f"set{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(24 + i, 20, seed=i).save(path)
    (folder / "again.png").write_bytes((folder / "set0" / "0.png").read_bytes())
    return folder


def one_source(*images, name="mine", **options) -> ImageSource:
    """The source of a benchmark whose images are at a path."""
    (source,) = find_sources([name], list(map(str, images)), **options).values()
    return source


def ids(source, n, seed=0):
    return [drawn.id for drawn in draw(source, n, seed)]


# ---------------------------------------------------------------- the draw


class Numbered(ImageSource):
    """Images by number; remembers which were opened."""

    kind, where = "numbered", "numbers"

    def __init__(self, count, of=1):
        self.numbers, self.of, self.opened = list(range(count)), of, []

    @property
    def names(self):
        return list(map(str, self.numbers))

    def pictures(self, name):
        self.opened.append(name)
        return [Picture(Image.new("RGB", (1 + int(name) // self.of, 2)))]

    def facts(self):
        return {"kind": self.kind}


def test_a_short_draw_begins_a_long_one():
    """In the order of a hash, so the order of the data does not count, nor what is not drawn."""
    source = Numbered(1000)
    long = draw(source, 60, seed=7)
    source.numbers.reverse()
    assert draw(source, 20, seed=7) == long[:20]
    assert len({drawn.id for drawn in long}) == 60
    assert [drawn.id for drawn in long] != sorted(drawn.id for drawn in long)
    other = draw(source, 60, seed=8)
    assert 0 < len({d.id for d in other} & {d.id for d in long}) < 20  # 3.6 expected


def test_only_what_is_drawn_is_opened():
    """Of 20,000 images with four questions each; no image twice."""
    source = Numbered(20_000, of=4)
    drawn = draw(source, 100, seed=0)
    assert len({one.content for one in drawn}) == 100
    assert 100 <= len(source.opened) < 110


def test_too_few():
    with pytest.raises(LawError, match="numbers: 6 images are to be drawn and 5 different ones"):
        draw(Numbered(20, of=4), 6, seed=0)


def test_an_image_that_changed():
    """Between the draw and its use."""
    source = Numbered(3)
    (first,) = draw(source, 1, seed=0)
    assert first.picture(source).content == first.content
    source.of = 9
    source.pictures = lambda name: [Picture(Image.new("RGB", (77, 7)))]
    with pytest.raises(LawError, match="of numbers: the image changed"):
        first.picture(source)


def test_names_of_files():
    """Safe as they are stay so; others, and those that a file system may confuse, get a hash."""
    names = ["a/b.png", "x~1", "Same", "same", "", "..", "ü.png", "é.png", "9" * 300, "-f", "q=1"]
    found = file_names(names)
    assert found[0] == "a--b.png"
    assert found[-1] == "q=1"
    assert len({name.casefold() for name in found}) == len(names)
    assert all(not set(name) & set("/~ ü") and name[0] not in ".-" for name in found)
    assert all(len(name) < 140 for name in found)
    assert file_names(names) == found
    assert file_names(["same"]) == ["same"]


# ---------------------------------------------------------------- folders and JSON


def test_folder(photos):
    """Ids are paths inside of it; the copy counts once."""
    source = one_source(photos)
    found = ids(source, 8)
    assert set(found) - {"again.png"} <= {f"set{i % 2}--{i}.png" for i in range(8)}
    assert source.facts() == {"kind": "folder", "path": str(photos), "candidates": 9}
    assert ("again.png" in found) != ("set0--0.png" in found)
    drawn = draw(source, 1, 0)[0]
    path = photos / drawn.name
    assert drawn.content == image_key(path)
    assert drawn.picture(source).image.size == Image.open(path).size
    with pytest.raises(LawError, match=r"9 images are to be drawn and 8 different ones .*--n"):
        draw(source, 9, 0)


@pytest.mark.parametrize("damage", ["cut short", "no image", "gone"])
def test_damaged_files(photos, damage):
    """Named, as soon as the draw reaches them."""
    source = one_source(photos)
    path = photos / "set1" / "3.png"
    if damage == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "cut short" else b"text")
    with pytest.raises(LawError, match=r"image set1/3.png of .*photos: .*(decode|cannot be read)"):
        draw(source, 8, 0)


def records(tmp_path, values, suffix=".json"):
    path = tmp_path / f"data{suffix}"
    lines = suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, values)) if lines else json.dumps(values))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json(tmp_path, photos, suffix):
    """Records with one image, several, none; a path that comes twice is one candidate."""
    values = [
        {"id": 1, "image": "set0/0.png", "conversations": []},
        {"id": 2, "image": ["set1/1.png", "set0/2.png"]},
        {"id": 3, "image": "set0/0.png", "question": "Again?"},
        {"id": 4, "image": None},
        {"id": 5, "question": "What?"},
    ]
    path = records(tmp_path, values, suffix)
    source = one_source(path, image_folder=photos)
    assert set(ids(source, 3)) == {"set0--0.png", "set1--1.png", "set0--2.png"}
    assert source.facts() == {"kind": "json", "path": str(path), "candidates": 3}
    beside = records(photos, values, suffix)
    assert draw(one_source(beside), 3, 0) == draw(source, 3, 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "photos"]  # no index


WRONG = {
    "no image": ([{"id": 1}], "no record has an image"),
    "number": ([{"image": "set0/0.png"}, {"image": 5}], "record 1: `image`: expected a path"),
    "empty": ([{"image": ""}], "record 0: `image`: expected a path"),
    "in a list": ([{"image": ["set0/0.png", None]}], "record 0: `image`: expected a path"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_records(tmp_path, photos, kind):
    values, message = WRONG[kind]
    with pytest.raises(LawError, match=rf"data\.json: {message}"):
        one_source(records(tmp_path, values), image_folder=photos)


@pytest.mark.parametrize("name", ["../out.png", "set0/../../out.png", "{0}/out.png", "", "set0/.."])
def test_paths_that_lead_out(tmp_path, photos, name):
    """Of the folder of images; one that is written whole and leads into it will do."""
    picture(9, 9).save(tmp_path / "out.png")
    inside = str(photos / "set0" / "0.png")
    path = records(tmp_path, [{"image": inside}])
    assert [drawn.name for drawn in draw(one_source(path, image_folder=photos), 1, 0)] == [inside]
    path = records(tmp_path, [{"image": inside}, {"image": name.format(tmp_path) or "."}])
    with pytest.raises(LawError, match=r"json: record 1: image .*: is no file inside of .*photos"):
        one_source(path, image_folder=photos)


def test_pipes(photos):
    """Reading one would wait for ever."""
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(LawError, match=r"pipe\.png of .*: .*pipe\.png is no file"):
        draw(FileImages("folder", "here", {"pipe.png": photos / "pipe.png"}), 1, 0)


def test_missing_image_of_a_record(tmp_path, photos):
    source = one_source(records(tmp_path, [{"image": "set0/9.png"}]), image_folder=photos)
    with pytest.raises(LawError, match=r"image set0/9\.png of .*data\.json: .*set0/9\.png cannot"):
        draw(source, 1, 0)


# ---------------------------------------------------------------- how it is spelled


def test_several_benchmarks(photos, tmp_path):
    """Each with its path; aliases are the ids that results tables have."""
    path = records(tmp_path, [{"image": "set0/2.png"}])
    found = find_sources(["MME", "mine"], [f"mine={path}", f"mme={photos}"], image_folder=photos)
    assert [(name, source.kind) for name, source in found.items()] == [
        ("mme", "folder"),
        ("mine", "json"),
    ]
    (photos / "a=b").mkdir()
    picture(9, 9).save(photos / "a=b" / "c.png")
    assert ids(one_source(photos / "a=b"), 1) == ["c.png"]


SPELLED = {
    "which": (["a", "b"], ["{0}"], UsageError, "expected BENCHMARK=PATH, since there are 2"),
    "name": (["abcd", "b"], ["abce={0}"], UsageError, r"did you mean abcd=.*photos\?"),
    "twice": (["a"], ["{0}", "a={0}"], UsageError, "two paths for a"),
    "nowhere": (["a"], ["{0}/none"], LawError, "no such file or folder"),
    "kind": (["a"], ["{0}/set0/0.png"], UsageError, "a folder of images, a .json or a .jsonl"),
    "no images": (["a"], ["{0}/empty"], LawError, "no image there"),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_what_cannot_be_meant(photos, kind):
    (photos / "empty").mkdir()
    names, images, error, message = SPELLED[kind]
    with pytest.raises(error, match=message):
        find_sources(names, [text.format(photos) for text in images])


def test_image_folder_that_is_none(tmp_path):
    with pytest.raises(LawError, match=r"--image_folder .*nowhere: no such folder"):
        one_source(records(tmp_path, [{"image": "a"}]), image_folder=tmp_path / "nowhere")


class _Task:
    """As much of a task as is looked at before a draw."""

    class config:  # noqa: N801
        doc_to_visual = "image"


@pytest.fixture
def asked(monkeypatch):
    """Tasks that were asked of lmms-eval, which is not there."""
    names = []
    monkeypatch.setattr(image_sources, "task_manager", lambda tasks, include: names.extend(tasks))
    monkeypatch.setattr(image_sources, "load_tasks", lambda tasks, _: {tasks[0]: _Task()})
    return names


def test_tasks_of_the_catalog(asked):
    """A set of benchmarks, an alias, `task:metric`; the task may be called otherwise."""
    found = find_sources(["paper8", "MMBench", "vqa:score"])
    assert list(found) == [*catalog.benchmark_sets()["paper8"], "vqa:score"]
    assert found["seedbench"].name == "seedbench_img"
    assert found["mmbench_en_dev"].name == "mmbench_en_dev"
    assert found["vqa:score"].name == "vqa"
    assert len(asked) == 9


def test_groups_and_tasks_without_images(asked, monkeypatch):
    monkeypatch.setattr(image_sources, "load_tasks", lambda *_: {"a_val": _Task(), "a_test": 0})
    with pytest.raises(UsageError, match="--benchmark a is a group of a_val, a_test; name"):
        find_sources(["a"])
    monkeypatch.setattr(image_sources, "load_tasks", lambda *_: {"a": _Task()})
    monkeypatch.setattr(_Task.config, "doc_to_visual", None)
    with pytest.raises(UsageError, match="task a shows no images"):
        find_sources(["a"])


# ---------------------------------------------------------------- lmms-eval's tasks


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Makes a task of documents, each with its files; gives its source."""
    pytest.importorskip("lmms_eval")

    def make(name, docs, files) -> ImageSource:
        folder = tmp_path_factory.mktemp(name)
        for i in range(4):
            picture(20 + i, 20, seed=i).save(folder / f"{i}.png")
        paths = [[str(folder / f"{i}.png") for i in numbers] for numbers in files]
        lines = [
            {"question": "What?", "answer": "x", "files": shown} | doc
            for doc, shown in zip(docs, paths, strict=True)
        ]
        records(folder, lines, ".jsonl")
        (folder / "shown.py").write_text(SHOWN)
        data = folder / "data.jsonl"
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
        source = find_sources([name], include=[folder])[name]
        source.folder = folder
        return source

    return make


def test_task(task):
    """Ids of the questions; an image of two counts once; a question may show several or none."""
    docs = [{"question_id": name} for name in ("a/0.png", "a/0.png", "b", "c", "d")]
    source = task("law_named", docs, [[0], [0], [1, 2], [], [2, 3]])
    assert sorted(source.names) == ["a/0.png", "a/0.png+2", "b", "c", "d"]
    drawn = draw(source, 4, 0)
    found = {one.id for one in drawn}
    assert len({"a--0.png", "a--0.png+2"} & found) == 1
    assert {"b", "d~2"} <= found
    assert len({"b~2", "d"} & found) == 1
    for one in drawn:
        assert one.content == one.picture(source).content == image_key(one.picture(source).image)
    facts = source.facts()
    assert (facts["kind"], facts["task"], facts["split"]) == ("task", "law_named", "test")
    assert (facts["dataset"], facts["candidates"]) == ("json", 5)
    assert facts["lmms_eval"]
    with pytest.raises(LawError, match=r"task law_named: 5 images .* 4 different"):
        draw(source, 5, 0)


class _Documents(list):
    """As much of a data set as is asked for names."""

    column_names = ("id", "question")

    def __getitem__(self, which):
        return (
            [doc[which] for doc in self] if isinstance(which, str) else super().__getitem__(which)
        )


def questions(*docs):
    """A task's source over documents, without lmms-eval."""
    task = _Task()
    task.eval_docs_no_media = _Documents({"id": name, "question": text} for name, text in docs)
    return TaskImages("law_told", task)


def test_names_of_equal_ids():
    """Told by what is asked, in any order of the data; a name that is there is not given again."""
    docs = [("a", "How?"), ("a", "Why?"), ("a", "What?"), ("a+2", "Who?"), ("a+2", "Which?")]
    expected = {"a": "How?", "a+3": "What?", "a+4": "Why?", "a+2": "Which?", "a+2+2": "Who?"}
    for order in itertools.permutations(docs):
        source = questions(*order)
        assert {name: order[row][1] for name, row in source._rows.items()} == expected


def test_many_equal_ids_are_quick():
    """Linear in the questions: 40,000 take a blink, and took minutes."""
    began = time.process_time()
    assert len(set(questions(*[("a", str(i)) for i in range(40_000)]).names)) == 40_000
    assert time.process_time() - began < 10


def test_task_without_names(task):
    """The number of the question; a field that some question lacks is none."""
    source = task("law_numbered", [{"id": "x"}, {"id": None}], [[0], [1]])
    assert set(ids(source, 2)) == {"0", "1"}


def test_damaged_image_of_a_task(task):
    """lmms-eval would let PIL fill it up with grey."""
    source = task("law_damaged", [{"id": 7}], [[0]])
    path = source.folder / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(LawError, match="question 7 of task law_damaged: its images cannot be had"):
        draw(source, 1, 0)
    path.unlink()
    with pytest.raises(LawError, match=r"question 7 of .*FileNotFoundError: .*0\.png"):
        draw(source, 1, 0)


COLUMN = """\
def images(doc):
    return [doc["image"].convert("RGB")]


def smaller(docs):
    return docs.map(lambda doc: {"image": doc["image"].resize((9, 9))})
"""


@pytest.mark.parametrize("decoded", ["when shown", "when loaded"])
def test_truncated_image_in_a_column(tmp_path, monkeypatch, decoded):
    """Decoded by `datasets`, after lmms-eval has switched on that PIL fills up what is missing."""
    pytest.importorskip("lmms_eval.evaluator")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)  # lmms-eval tries again
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = io.BytesIO()
    picture(64, 64).save(data, "JPEG", quality=95)
    for name, cut in (("whole", None), ("cut", len(data.getvalue()) * 2 // 3)):
        columns = {"id": [7], "image": [{"bytes": data.getvalue()[:cut], "path": None}]}
        columns |= {"question": ["What?"], "answer": ["x"]}
        features = {key: datasets.Value("string") for key in ("question", "answer")}
        features |= {"id": datasets.Value("int64"), "image": datasets.Image()}
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        made.to_parquet(tmp_path / f"{name}.parquet")
        task = TASK.format(name=f"law_{name}", data=tmp_path / f"{name}.parquet")
        if decoded == "when loaded":
            task += "process_docs: !function shown.smaller\n"
        path = tmp_path / f"law_{name}.yaml"
        path.write_text(task.replace("dataset_path: json", "dataset_path: parquet"))
    (tmp_path / "shown.py").write_text(COLUMN)

    def drawn(name):
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        return draw(find_sources([name], include=[tmp_path])[name], 1, 0)

    assert len(drawn("law_whole")) == 1
    with pytest.raises(LawError, match=r"law_cut.*truncated"):
        drawn("law_cut")


def test_unknown_task(task, tmp_path):
    """With the nearest name; a folder of tasks that is none."""
    source = task("law_known", [{"id": 7}], [[0]])
    with pytest.raises(UsageError, match=r"--include_path .*nowhere: no such folder"):
        find_sources(["law_known"], include=[tmp_path / "nowhere"])
    assert source.folder.is_dir()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16"])
def test_shown_images_are_known_by_their_rgb_pixels(mode):
    """As `law_llava` stores their features."""
    image = Image.new(mode, (3, 2), 7) if mode == "I;16" else picture(9, 7).convert(mode)
    shown = image_sources._shown(image, "here")
    assert shown.image.mode == "RGB"
    assert shown.content == image_key(to_rgb(image))


def test_shown_images_without_a_known_range():
    with pytest.raises(LawError, match="here: holds floating-point pixels"):
        image_sources._shown(Image.new("F", (3, 2)), "here")


def test_paths_are_shown_images(photos):
    """A task may show the path of a file, and nothing that is no image."""
    path = Path(photos) / "set0" / "0.png"
    assert image_sources._shown(str(path), "here").content == image_key(path)
    for other in (None, {"audio": 1}, str(photos / "none.png")):
        with pytest.raises(LawError, match=r"here: it shows .*, expected an image"):
            image_sources._shown(other, "here")
