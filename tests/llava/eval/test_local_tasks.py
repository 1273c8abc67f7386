"""Local tasks: what lmms-eval reads of them, what it makes of answers, what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import picture

from llava.errors import LawError, UsageError
from llava.eval.harness import harness, load_tasks, task_manager
from llava.eval.local_tasks import likeliest, main, normalised, write_local_task
from llava.exits import run_command

RECORDS = [
    {"id": "2024-01-01", "image": "a.png", "question": "What is it?", "answer": "A red fox."},
    {"id": 7, "image": ["b.png", "sub/c.png"], "question": "Alike?", "answer": ["no", "nope"]},
    {"id": "t", "question": "Say 01:02:03", "answer": "01:02:03", "type": "text"},
    {"id": "n", "image": None, "question": "How many?", "answer": 4},
    {"id": "m", "image": "a.png", "question": "In <image>: what?", "answer": "2024-01-01"},
]
CHOICES = [
    {
        "id": "1",
        "image": "a.png",
        "question": "Colour?",
        "choices": ["red", "blue"],
        "answer": "red",
    },
    {"id": "2", "question": "2 + 2?", "choices": [3, 4, 5], "answer": 4},
    {"id": "3", "image": ["a.png", "b.png"], "question": "?", "choices": ["x", "y"], "answer": "y"},
]


@pytest.fixture
def photos(tmp_path):
    """A folder of three images, of which one is no RGB."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture(40, 30, seed=1).save(folder / "a.png")
    picture(20, 30, seed=2).convert("L").save(folder / "b.png")
    picture(30, 30, seed=3).save(folder / "sub" / "c.png")
    return folder


@pytest.fixture
def write(tmp_path, photos):
    """Writes a task `mine` to a folder and returns that."""

    def run(records, kind="generate", **options):
        write_local_task(tmp_path / "tasks", "mine", records, photos, kind, **options)
        return tmp_path / "tasks"

    return run


def load(folder, name="mine"):
    """lmms-eval's task and its documents."""
    task = load_tasks([name], task_manager([name], [folder]))[name]
    return task, list(task.test_docs())


def answering(answer=None, nll=None):
    """A model that says `answer(doc)`; `nll(doc, choice)` is a choice's mean NLL."""

    class Model(harness("api.model").lmms):
        def generate_until(self, requests):
            return [answer(self.document(request)) for request in requests]

        def loglikelihood(self, requests):
            return [(nll(self.document(request), request.args[1]), False) for request in requests]

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

        def document(self, request):
            visuals, document, task, split = request.args[-4:]
            doc = self.task_dict[task][split][document]
            self.seen[doc["id"]] = (request.args[0], visuals(doc))
            return doc

    model = Model()
    model.seen = {}
    return model


def evaluate(model, folder, name="mine"):
    """lmms-eval's results of one task."""
    results = harness("evaluator").simple_evaluate(
        model=model, tasks=[name], task_manager=task_manager([name], [folder])
    )
    return results["results"][name], results["samples"][name]


def test_documents(write, photos):
    """Texts stay texts, dates among them; a list of images, or none; what may be left out."""
    task, docs = load(write(RECORDS, post_prompt="\nAnswer shortly."))
    assert [doc["id"] for doc in docs] == ["2024-01-01", "7", "t", "n", "m"]
    assert docs[1]["images"] == [str(photos / "b.png"), str(photos / "sub" / "c.png")]
    assert [doc["answers"] for doc in docs][1:] == [
        ["no", "nope"],
        ["01:02:03"],
        ["4"],
        ["2024-01-01"],
    ]
    assert [doc["type"] for doc in docs] == ["", "", "text", "", ""]
    assert [len(task.doc_to_visual(doc)) for doc in docs] == [1, 2, 0, 0, 1]
    grey = task.doc_to_visual(docs[1])[0]
    assert np.array_equal(grey, Image.open(photos / "b.png").convert("RGB"))
    assert task.doc_to_text(docs[0]) == "What is it?\nAnswer shortly."


def test_generate(write):
    """The mean of right answers with its standard error; samples have documents and images."""
    said = {"2024-01-01": " a red  FOX", "7": "Nope.", "t": "1", "n": "4", "m": "2024-01-01 00:00"}
    model = answering(lambda doc: said[doc["id"]])
    results, samples = evaluate(model, write(RECORDS))
    right = [1, 1, 0, 1, 0]
    assert results["exact_match,none"] == 0.6
    assert math.isclose(results["exact_match_stderr,none"], np.std(right, ddof=1) / 5**0.5)
    assert len(samples) == 5
    assert [sample["exact_match"] for sample in samples] == right
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2, 3, 4]
    assert model.seen["7"][0] == "Alike?"
    assert [image.size for image in model.seen["7"][1]] == [(20, 30), (30, 30)]


def test_choice(write):
    """The smallest mean NLL is taken; a choice is handed over as it is written."""
    chosen = {"1": "red", "2": "4", "3": "x"}
    model = answering(nll=lambda doc, choice: 1.0 if choice == chosen[doc["id"]] else 1.5)
    results, samples = evaluate(model, write(CHOICES, "choice"))
    assert results["acc,none"] == 2 / 3
    assert math.isclose(results["acc_stderr,none"], np.std([1, 1, 0], ddof=1) / 3**0.5)
    assert [sample["target"] for sample in samples] == [0, 1, 1]
    assert samples[1]["doc"]["choices"] == ["3", "4", "5"]


@pytest.mark.parametrize("pairs", [[(1e-7, False), (2.5, True)], ["(1e-07, False)", "(2.5, True)"]])
def test_likeliest(pairs):
    """Pairs as they are, and as lmms-eval 0.7.3 hands them over."""
    assert likeliest({"id": "a", "answer": 0}, pairs) == {"acc": 1.0}
    assert likeliest({"id": "a", "answer": 1}, pairs) == {"acc": 0.0}
    with pytest.raises(LawError, match=r"record 'a': likelihoods .* no numbers"):
        likeliest({"id": "a", "answer": 1}, [*pairs, "(nan, False)"])


def test_many_text_only_documents_first(write):
    """The kind of a column does not depend on what the first documents have in it."""
    records = [{"id": i, "question": "?", "answer": i} for i in range(50)]
    _, docs = load(write([*records, RECORDS[0]]))
    assert docs[0]["images"] == []
    assert len(docs[50]["images"]) == 1


def test_an_image_that_was_replaced(write, photos):
    """Is told when the task is read; written again, the task is another one."""
    folder = write(RECORDS)
    before = load(folder)[0].dump_config()["metadata"]
    picture(20, 30, seed=9).convert("L").save(photos / "b.png")
    with pytest.raises(LawError, match=r"record '7': image .*b\.png is not the one"):
        load(folder)
    after = load(write(RECORDS))[0].dump_config()["metadata"]
    assert (after["version"], after != before) == (before["version"], True)


def test_moved_with_its_images(write, tmp_path):
    """Images are found from the task's folder, whatever the working directory."""
    folder = write(RECORDS)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(folder, moved / "tasks")
    shutil.move(tmp_path / "photos", moved / "photos")
    _, docs = load(moved / "tasks")
    assert docs[0]["images"] == [str(moved / "photos" / "a.png")]


def test_images_named_by_absolute_paths(write, photos, tmp_path):
    """They stay where they are; a task moved alone finds them."""
    folder = write([RECORDS[0] | {"image": str(photos / "a.png")}])
    shutil.move(folder, tmp_path / "x" / "y")
    assert load(tmp_path / "x" / "y")[1][0]["images"] == [str(photos / "a.png")]


def test_folder_behind_a_link(photos, tmp_path):
    """`..` is seen from where a folder is, not from where a link to it is."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    link = tmp_path / "tasks"
    link.symlink_to(tmp_path / "deep" / "er")
    write_local_task(link, "mine", RECORDS, photos)
    assert load(link)[1][0]["images"] == [str(photos / "a.png")]


def test_relative_include_path(write, monkeypatch):
    """A folder may be named from the working directory."""
    folder = write(RECORDS)
    monkeypatch.chdir(folder.parent)
    assert load("tasks")[1][0]["images"] == [str(folder.parent / "photos" / "a.png")]


def test_two_tasks_in_one_folder(write, photos):
    """They share the helper file, and are found together."""
    folder = write(RECORDS)
    write_local_task(folder, "yours", CHOICES, photos, "choice")
    names = ["mine", "yours"]
    tasks = load_tasks(names, task_manager(names, [folder]))
    assert [len(tasks[name].test_docs()) for name in names] == [5, 3]


def test_written_again(write):
    """The new data are read, not those of a cache."""
    folder = write(RECORDS)
    assert len(load(folder)[1]) == 5
    write(RECORDS[:2])
    assert len(load(folder)[1]) == 2


def test_image_gone_later(write, photos, monkeypatch):
    """Said when the task is loaded, with the record's id."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    folder = write(RECORDS)
    (photos / "sub" / "c.png").unlink()
    with pytest.raises(LawError, match=r"record '7': image \S*photos/sub/c.png is not there"):
        load(folder)


@pytest.mark.parametrize("length", [0, 20, 500])
def test_image_damaged(length, write, photos):
    """Said when it is opened, however little is missing."""
    task, docs = load(write(RECORDS))
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(whole[:length])
    assert len(whole) > 500
    with pytest.raises(LawError, match=r"record '2024-01-01': image .*a.png: does not decode"):
        task.doc_to_visual(docs[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [("Red fox", " red\tfox. "), ("STRASSE", "straße"), ("5", "5 ."), ("e.g.", "e.g")],
)
def test_same_answer(one, other):
    """But for case, blanks and a full stop at the end."""
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"), [("red", "a red"), ("5", "5.0"), ("", "no"), ("yes", "yes!")]
)
def test_other_answer(one, other):
    """Nothing else is left out."""
    assert normalised(one) != normalised(other)


GOOD, CHOICE = RECORDS[0], CHOICES[0]
BROKEN = {
    "no object": ("generate", ["text"], "record 1: expected an object, got str"),
    "no records": ("generate", [], "there are none"),
    "no id": ("generate", [GOOD | {"id": None}], "record 1: id: expected text, got nothing"),
    "id twice": ("generate", [GOOD, GOOD], r"record 2 \('2024-01-01'\): an earlier record"),
    "id twice, as text": ("generate", [RECORDS[1], GOOD | {"id": "7"}], "an earlier record"),
    "misspelt": ("generate", [GOOD | {"images": "a.png"}], "key 'images'; did you mean 'image'"),
    "no question": ("generate", [GOOD | {"question": " "}], "question: is empty"),
    "no answer": ("generate", [GOOD | {"answer": []}], "answer: expected at least one"),
    "null answer": ("generate", [GOOD | {"answer": None}], "answer: expected text, got nothing"),
    "true answer": ("generate", [GOOD | {"answer": True}], "answer: expected text, got bool"),
    "empty image": ("generate", [GOOD | {"image": ""}], "image: is empty"),
    "no image": ("generate", [RECORDS[1] | {"image": "x.png"}], r"\('7'\): image x.png is not in"),
    "no picture": ("generate", [GOOD | {"image": "notes.txt"}], "no image format"),
    "a folder": ("generate", [GOOD | {"image": "sub"}], "cannot be read"),
    "marks": ("generate", [GOOD | {"question": "<image><image>"}], "2 <image> .* and 1 images"),
    "marks without image": ("generate", [RECORDS[2] | {"question": "<image>"}], "and 0 images"),
    "choices": ("generate", [CHOICE], "choices are for kind choice"),
    "no choices": ("choice", [GOOD], "choices: expected two or more"),
    "one choice": ("choice", [CHOICE | {"choices": ["red"]}], "expected two or more"),
    "same choices": ("choice", [CHOICE | {"choices": ["red", "red "]}], "all different"),
    "no choice": ("choice", [CHOICE | {"answer": "green"}], "'green' is none of its choices"),
    "many answers": ("choice", [CHOICE | {"answer": ["red"]}], "answer: expected text, got list"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refused(case, write, photos, tmp_path):
    """Before anything is written, by the record that is wrong."""
    (photos / "notes.txt").write_text("no image")
    kind, records, message = BROKEN[case]
    with pytest.raises(LawError, match=message):
        write(records, kind)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a b", "generate", "task 'a b': expected letters"),
        ("a,b", "generate", "expected letters"),
        ("", "generate", "expected letters"),
        ("MME", "generate", "a published benchmark has this name"),
        ("paper8", "generate", "a published benchmark has this name"),
        ("mine", "chioce", "did you mean 'choice'"),
    ],
)
def test_refused_names(name, kind, message, tmp_path, photos):
    """What could not be named to lmms-eval, or would be taken for something else in a table."""
    with pytest.raises(UsageError, match=message):
        write_local_task(tmp_path, name, RECORDS, photos, kind)


@pytest.mark.parametrize("form", ["list", "lines"])
def test_command(form, photos, tmp_path):
    """JSON or JSON lines; images beside them unless a folder is named."""
    lines = [json.dumps(record) for record in RECORDS]
    text = json.dumps(RECORDS) if form == "list" else "\n".join(lines) + "\n\n"
    file = photos / "mine.json"
    file.write_text(text, encoding="utf-8-sig")
    out = tmp_path / "out"
    main(
        ["--out", str(out), "--name", "mine", "--records", str(file), "--post_prompt", r"\nShort."]
    )
    task, docs = load(out)
    assert len(docs) == 5
    assert task.doc_to_text(docs[3]) == "How many?\nShort."
    shutil.move(file, tmp_path / "mine.json")
    flags = ["--out", str(out), "--name", "two", "--records", str(tmp_path / "mine.json")]
    with pytest.raises(
        LawError, match=r"mine.json: record 1 \('2024-01-01'\): image a.png is not in"
    ):
        main(flags)
    main([*flags, "--images", str(photos)])
    assert load(out, "two")[1][0]["images"] == [str(photos / "a.png")]


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ('{"id": 1,\n', "neither a JSON list nor")]
)
def test_unreadable_records(text, message, tmp_path, capsys):
    """A line that names the file, and exit code 1."""
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        run_command(main, ["--out", "x", "--name", "mine", "--records", str(file)], "local_tasks")
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "mine.json" in said
    assert message in said
