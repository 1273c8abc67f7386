"""What'sUp through lmms-eval: documents, choices and counts; the numbers of `--scorer vqa`."""

import csv
import json
import math

import pytest
from pair_files import A, B, picture, whatsup
from PIL import Image
from world import make_world, stage1, stage2

from llava.errors import LawError, UsageError
from llava.eval.answering import Answering
from llava.eval.evaluate import main as evaluate
from llava.eval.evaluation.stderr import spread
from llava.eval.harness import load_tasks, task_manager
from llava.eval.pairs.metrics import measure
from llava.eval.pairs.readers.whatsup import WhatsUp
from llava.eval.pairs.vqa_score import VqaScorer
from llava.eval.tasks import whatsup as tasks
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train

OBJECTS = (("mug", "tray"), ("tin-can", "desk"), ("bowl", "big-chair"), ("hat", "bed"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stage 2 of a few steps."""
    root = make_world(tmp_path_factory.mktemp("whatsup"))
    train(stage1(root, root / "stage1"))
    projector = root / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "stage2", projector, max_steps=20, learning_rate=1e-2))
    return root / "stage2"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Both sets in the published layout; the variable names their folder."""
    folder = tmp_path / "data"
    for name, relations in (("controlled_images", A), ("controlled_clevr", B)):
        path, _ = whatsup(folder, name, relations, OBJECTS)
        records = json.loads(path.read_text())
        for number, record in enumerate(records):  # pictures that are not of one colour
            file = folder / name / record["image_path"].rpartition("/")[2]
            striped(file, number)
    monkeypatch.setenv(tasks.FOLDER, str(folder))
    return folder


def striped(path, number):
    """A picture whose halves differ by a number."""
    picture(path, number)
    with Image.open(path) as image:
        whole = image.convert("RGB")
    whole.paste(Image.new("RGB", (12, 24), (255 - number * 11, number * 13, 40)), (0, 0))
    whole.save(path)


def test_documents(data):
    """The captions of an image's axis, pairs and sets side by side, in the files' order."""
    docs = list(tasks.documents("whatsup_b"))
    assert len(docs) == 16
    assert [doc["set"] for doc in docs[:8]] == ["mug_tray"] * 4 + ["tin-can_desk"] * 4
    assert [doc["pair"] for doc in docs[:4]] == [f"mug_tray/{i}" for i in (0, 0, 1, 1)]
    assert [doc["axis"] for doc in docs[:4]] == ["left/right"] * 2 + ["front/behind"] * 2
    assert docs[6]["captions"] == ["A tin can in front of a desk", "A tin can behind a desk"]
    assert [doc["right"] for doc in docs[:4]] == [0, 1, 0, 1]
    assert docs[1]["questions"][1] == (
        'Does this figure show "A mug to the right of a tray"? Please answer yes or no.'
    )
    assert tasks.visuals(docs[0])[0].size == (24, 24)


def test_lmms_eval_asks_both_captions(data):
    """Two questions with one answer, by lmms-eval's own rule for several inputs."""
    names = ["whatsup_a", "whatsup_b"]
    found = load_tasks(names, task_manager(names))
    for task in found.values():
        assert (task.multiple_input, task.OUTPUT_TYPE) == (2, "multiple_choice")
        doc = task.test_docs()[1]
        metadata = {"split": "test", "task": task.config.task, "doc_id": 1, "repeats": 1}
        context = task.fewshot_context(doc, 0)
        requests = task.construct_requests(1, context, metadata=metadata)
        assert [request.args[0] for request in requests] == doc["questions"]
        assert [request.args[1] for request in requests] == ["Yes", "Yes"]


DOC = {"id": "a/0", "pair": "a/0", "set": "a", "right": 1}


@pytest.mark.parametrize(
    ("nlls", "right"), [((2.0, 1.0), True), ((1.0, 2.0), False), ((1.0, 1.0), False)]
)
def test_chosen(nlls, right):
    """The smaller one, and a tie is wrong; also as text, as lmms-eval hands it over."""
    found = tasks.chosen(DOC, [(nll, False) for nll in nlls])
    assert found == tasks.chosen(DOC, [f"({nll}, False)" for nll in nlls])
    assert found["individual"] == float(right)
    assert found["pair"] == {"group": "a/0", "size": 2, "right": right}
    with pytest.raises(LawError, match=r"a/0: likelihoods .* are no numbers"):
        tasks.chosen(DOC, [(1.0, False), (math.nan, False)])


def test_together():
    """Groups all right; one that is cut by a limit is no group, and that is said."""
    made = [
        {"group": f"{pair}", "size": 2, "right": right}
        for pair, both in enumerate([(1, 1), (1, 0), (0, 0), (1, 1), (1, 1)])
        for right in both
    ]
    assert tasks.together(made) == 0.6
    found = spread("groups", made, 0.6, "fraction")
    assert (found.n, found.stderr) == (5, pytest.approx(math.sqrt(0.6 * 0.4 / 4)))
    assert spread("groups", made, 0.5, "fraction").stderr is None
    with pytest.raises(LawError, match=r"4: 1 of 2 images .* multiple of 4"):
        tasks.together(made[:-1])


def test_as_scorer_vqa(run, data, tmp_path):
    """Through `law evaluate` into the results table: what the scorer of pairs counts."""
    table = tmp_path / "results.csv"
    out = tmp_path / "out"
    evaluate(["--run", str(run), "--tasks", "whatsup", "--results", str(table), "--out", str(out)])
    with open(table, newline="") as handle:
        rows = {row["benchmark"]: row for row in csv.DictReader(handle)}
    scorer = VqaScorer(Answering.of(*load_pretrained_model(str(run))[:3]), {})
    for name, (records, images) in tasks.FILES.items():
        benchmark = WhatsUp(name, data / records, data / images).read()
        found = measure(benchmark, scorer.scores(benchmark.items)).accuracies
        for metric in ("individual", "pair", "set"):
            row = rows.pop(f"{name}_{metric}")
            assert float(row["value"]) == found[metric].share
            assert (int(row["n"]), row["quantity"]) == (found[metric].of, "performance")
            assert row["unit"] == "fraction"
    assert not rows


def test_other_data_are_asked_again(run, data, tmp_path, capsys):
    """A picture that changed is a new question; what did not change is not asked again."""
    flags = [
        "--run",
        str(run),
        "--tasks",
        "whatsup_a",
        "--out",
        str(tmp_path / "out"),
        "--limit",
        "4",
    ]
    path = tmp_path / "out" / "whatsup_a-limit4.json"
    evaluate(flags)
    before = json.loads(path.read_text())
    evaluate(flags)
    assert json.loads(path.read_text()) == before
    assert "What'sUp A (pairs)" in capsys.readouterr().out
    striped(data / "controlled_images" / "mug_left_of_tray.jpeg", 17)
    with pytest.raises(UsageError, match=r"another evaluation: the task's questions\. Pass --over"):
        evaluate(flags)
    evaluate([*flags, "--overwrite"])
    assert json.loads(path.read_text())["task"]["questions"] != before["task"]["questions"]


def test_refused(run, data, monkeypatch, tmp_path):
    """A limit that cuts a set; a folder without the files, with what to set."""
    with pytest.raises(UsageError, match=r"--limit 6: whatsup_a .* multiple of 4"):
        evaluate(["--run", str(run), "--tasks", "whatsup_a", "--limit", "6"])
    monkeypatch.setenv(tasks.FOLDER, str(tmp_path / "none"))
    with pytest.raises(
        LawError, match=r"none/controlled_images_dataset\.json: no such file .* set"
    ):
        tasks.docs_a(None)
