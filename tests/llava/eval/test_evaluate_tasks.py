"""The benchmarks of the catalog against lmms-eval's own tasks, on stand-ins for their data."""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import paper_tasks
import pytest
from stub_lmms import Stub, register

from AC_policy.cli import main as policy
from llava import catalog, results
from llava.errors import LawError, UsageError
from llava.eval.evaluate import main
from llava.eval.evaluation import run as evaluation_run
from llava.eval.harness import harness, load_tasks, task_manager

pytestmark = pytest.mark.slow
TOWERS = {
    "openai/clip-vit-large-patch14-336": 0.65,
    "openai/clip-vit-large-patch14": 0.6,
    "google/siglip-base-patch16-224": 0.5,
    "facebook/dinov2-large": 0.4,
    "openai/clip-vit-large-patch14-336.facebook/dinov2-large": 0.7,
}
"""Representation -> the share of questions that its stub answers rightly."""


@pytest.fixture(scope="module")
def manager():
    """lmms-eval's index of all that it ships, and ours."""
    return task_manager(["mme", "seedbench_img"])


@pytest.fixture
def data(monkeypatch, tmp_path, manager):
    """Stand-ins for the data sets; nobody's key for a grader; a stub that is asked."""
    monkeypatch.setattr(evaluation_run, "task_manager", lambda *_: manager)  # 7 s, once
    module = harness("api.task")
    stand_in = {name: getattr(module.datasets, name) for name in dir(module.datasets)}
    stand_in["load_dataset"] = paper_tasks.load_dataset
    monkeypatch.setattr(module, "datasets", SimpleNamespace(**stand_in))
    for name in ("OPENAI_API_KEY", "AZURE_API_KEY", "API_TYPE", "MODEL_VERSION"):
        monkeypatch.delenv(name, raising=False)
    register()
    monkeypatch.setattr(Stub, "made", [])
    monkeypatch.setattr(Stub, "asked", [])
    monkeypatch.setattr(Stub, "rule", staticmethod(rule(0.6)))
    return tmp_path


def rule(skill):
    """Answers of a model that is right about `skill` of the questions; of MMBench in all orders."""

    def answer(request, doc):
        question = int(doc.get("index", request.doc_id)) % 1_000_000
        drawn = zlib.crc32(f"{request.task_name} {question}".encode()) % 100 / 100
        gold = doc["answers"][0] if "answers" in doc else doc["answer"]
        return ("ABC"[gold] if isinstance(gold, int) else gold) if drawn < skill else "E"

    return answer


def a_run(folder, tower="openai/clip-vit-large-patch14-336"):
    """A checkpoint's folder that the stub will do with."""
    folder.mkdir()
    config = {"model_type": "llava_llama", "mm_vision_tower": tower, "conversation_version": "v1"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def evaluate(run, tasks, *flags):
    """Calls the command; the summaries by the name of their file."""
    main(["--run", str(run), "--model", "stub", "--tasks", tasks, *map(str, flags)])
    found = {path.stem: json.loads(path.read_text()) for path in (run / "eval").glob("*.json")}
    found.pop("environment")
    return found


def samples(run, name):
    """The lines of a task's answers."""
    text = (run / "eval" / f"{name}_samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("entry", catalog.benchmarks().values(), ids=lambda entry: entry.id)
def test_the_catalog_against_lmms_eval(manager, entry):
    """Every task is there, gives the metric, and asks by default as the catalog says."""
    for task in entry.tasks:
        if manager.task_index[task]["type"] == "group":
            assert entry.id == "scienceqa_full"
            continue
        config = harness("utils").load_yaml_config(manager.task_index[task]["yaml_path"])
        scored = "whatsup" in entry.sets  # by likelihoods
        assert config["output_type"] == ("multiple_choice" if scored else "generate_until")
        metrics = {one["metric"]: one for one in config["metric_list"]}
        assert metrics[entry.metric]["higher_is_better"] is True
        averaged = metrics[entry.metric]["aggregation"] == "mean"
        assert averaged == (entry.spread == "mean")
        words = config.get("lmms_eval_specific_kwargs", {})
        assert not {"llava", "law_llava"} & set(words)  # both classes are asked the same
        usual = next(iter(entry.prompts.values()), {})
        assert {name: words["default"][name] for name in usual} == usual
        for prompt in entry.prompts.values():
            assert set(prompt) <= set(words["default"])


def test_other_tasks_have_no_ocr_tokens(manager):
    """Where a prompt can have OCR tokens, the catalog has both of them."""
    for entry in catalog.benchmarks().values():
        if entry.pairs:
            continue
        path = manager.task_index[entry.tasks[-1]]["yaml_path"]
        words = harness("utils").load_yaml_config(path).get("lmms_eval_specific_kwargs", {})
        assert ("ocr" in words.get("default", {})) == ("ocr" in entry.prompts)


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [
        ("seedbench_img", "seedbench", {"task", "process_docs", "metric_list"}),
        ("mmbench_en_dev_graded", "mmbench_en_dev", {"task", "metric_list", "tag"}),
    ],
)
def test_our_tasks_are_the_shipped_ones(manager, ours, theirs, differing):
    """But for what they are there for; where functions are named they are the shipped ones."""

    def config(task):
        found = harness("utils").load_yaml_config(manager.task_index[task]["yaml_path"])
        return {
            name: f"{value.__code__.co_filename} {value.__qualname__}" if callable(value) else value
            for name, value in found.items()
        }

    one, other = config(ours), config(theirs)
    assert {name for name in one | other if one.get(name) != other.get(name)} == differing
    shipped = {metric["metric"] for metric in other["metric_list"]}
    assert {metric["metric"] for metric in one["metric_list"]} < shipped


def test_the_graders_defaults():
    """The catalog's variables and model are those of lmms-eval's code."""
    shipped = harness("tasks.mmbench.en_utils")
    (grader,) = [entry.grader for entry in catalog.benchmarks().values() if entry.grader]
    assert grader.model == shipped.GPT_EVAL_MODEL_NAME
    with open(shipped.__file__, encoding="utf-8") as handle:
        text = handle.read()
    assert all(f'os.getenv("{name}"' in text for name in (*grader.keys.values(), "MODEL_VERSION"))


def test_the_papers_eight(data, manager, law_log):
    """Values as lmms-eval gives them for the shipped tasks; errors as of the same questions."""
    run = a_run(data / "run")
    found = evaluate(run, "paper8")
    assert len(found) == 8
    shipped = {
        "mmbench_en_dev_static": "mmbench_en_dev_static",
        "seedbench_img": "seedbench",
    } | {name: name for name in found if name not in ("mmbench_en_dev_static", "seedbench_img")}
    stub = Stub(str(run))
    for ours, theirs in shipped.items():
        tasks = load_tasks([theirs], manager)
        tasks[theirs].aggregation().pop("submission", None)
        Stub.rule = staticmethod(renamed(rule(0.6), ours))
        plain = harness("evaluator").simple_evaluate(
            model=stub,
            tasks=list(tasks.values()),
            task_manager=manager,
            process_docs_parallel=1,
            cli_args=SimpleNamespace(output_path=str(data), process_with_media=False),
        )
        (entry,) = [e for e in catalog.benchmarks().values() if ours in e.tasks]
        number = found[ours]["metrics"][entry.metric]
        assert 0 < number["value"] == plain["results"][theirs][f"{entry.metric},none"]
        logged = [s[entry.metric] for s in plain["samples"][theirs] if entry.metric in s]
        scored = SCORES[entry.spread](tasks[theirs].aggregation()[entry.metric], logged, data)
        assert number["n"] == sum(map(len, scored))
        expected = np.sqrt(sum(np.var(one, ddof=1) / len(one) for one in scored))
        assert number["stderr"] == pytest.approx(expected, rel=1e-4)
        assert expected > 0
    warned = [line for line in law_log if "documents, where" in line]
    assert len(warned) == 8


def renamed(answer, task):
    """The same answers although the task has another name."""

    def under(request, doc):
        return answer(SimpleNamespace(task_name=task, doc_id=request.doc_id), doc)

    if task != "seedbench_img":
        return under
    images = [i for i, doc in enumerate(paper_tasks.seed()) if doc["data_type"] == "image"]

    def among_videos(request, doc):
        place = images.index(request.doc_id) if request.doc_id in images else 99
        return answer(SimpleNamespace(task_name=task, doc_id=place), doc)

    return among_videos


def one_by_one(aggregate, logged, folder):
    """What every document scores: the task's own aggregation of it alone."""
    return [[aggregate([one]) for one in logged]]


def by_question(aggregate, logged, folder):
    """What every question of MMBench scores, all orders of its options together."""
    questions = {}
    for one in logged:
        questions.setdefault(one["index"] % 1_000_000, []).append(one)
    files = SimpleNamespace(output_path=str(folder))
    return [[aggregate(orders, files) for orders in questions.values()]]


def by_image(aggregate, logged, folder):
    """What every image of MME scores, category by category."""
    images = {}
    for one in logged:
        both = images.setdefault(one["category"], {}).setdefault(one["question_id"], [])
        both.append(one)
    return [[aggregate(both) for both in asked.values()] for asked in images.values()]


SCORES = {"mean": one_by_one, "share": one_by_one, "circular": by_question, "mme": by_image}


def test_videos_are_not_asked_about(data):
    """SEED-Bench's own task asks about all; of the images both ask the same."""
    run = a_run(data / "run")
    evaluate(run, "seedbench")
    evaluate(run, "seedbench:seed_all,seedbench:seed_video")
    ours, all_of_them = samples(run, "seedbench_img"), samples(run, "seedbench")
    assert [one["prompt"] for one in ours] == [
        one["prompt"] for one in all_of_them if "seed_image" in one["scores"]
    ]
    assert len(ours) == 8 < len(all_of_them) == paper_tasks.COUNT


@pytest.mark.parametrize(
    ("first", "then"),
    [("mme", "mme:mme_cognition_score"), ("seedbench:seed_all", "seedbench:seed_video")],
)
def test_another_number_is_found(data, first, then):
    """Nothing is asked again, and its error is there, as if it had been asked for at once."""
    run, table = a_run(data / "run"), data / "results.csv"
    evaluate(run, first, "--results", table)
    asked = len(Stub.asked)
    evaluate(run, then, "--results", table)
    assert len(Stub.asked) == asked
    evaluate(run, f"{first},{then}", "--results", data / "both.csv", "--out", data / "both")
    read, both = results.read(table), results.read(data / "both.csv")
    assert read.names["benchmark"] == both.names["benchmark"] == [first, then]
    assert read.stderr.tolist() == both.stderr.tolist()
    assert (read.stderr > 0).all()


def test_ocr_tokens(data):
    """Stand in the question and in the protocol; both results stand beside each other."""
    run = a_run(data / "run")
    evaluate(run, "textvqa")
    found = evaluate(run, "textvqa", "--ocr")
    assert set(found) == {"textvqa_val", "textvqa_val-ocr"}
    for name, having in (("textvqa_val", False), ("textvqa_val-ocr", True)):
        assert found[name]["task"]["prompt_kwargs"]["ocr"] is having
        prompts = [one["prompt"] for one in samples(run, name)]
        assert all(("Reference OCR token: word" in prompt) == having for prompt in prompts)
        part = "/ocr/" if having else "/no-ocr/"
        assert part in found[name]["metrics"]["exact_match"]["protocol"]
    assert len(Stub.asked) == 2 * paper_tasks.COUNT


def test_half_of_a_pair(data):
    """MME scores two questions together, so an odd limit is refused before the model is made."""
    run = a_run(data / "run")
    with pytest.raises(UsageError, match="multiple of 2"):
        evaluate(run, "mme", "--limit", 3)
    assert Stub.made == []
    found = evaluate(run, "mme", "--limit", 4)["mme-limit4"]
    assert found["metrics"]["mme_perception_score"]["n"] == 2


def test_a_silent_grader(data, monkeypatch):
    """Fails the task instead of drawing options; asked again, the model has answered already."""
    run = a_run(data / "run")
    evaluator = harness("tasks.mmbench.mmbench_evals").MMBench_Evaluator
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr(
        evaluator, "get_chat_response", lambda *_, **__: "Failed to obtain answer via API"
    )
    Stub.rule = staticmethod(lambda request, doc: "I cannot tell.")
    with pytest.raises(LawError, match=r"did not answer.*mmbench_en_dev_static"):
        evaluate(run, "mmbench")
    answered = len(Stub.asked)
    assert not (run / "eval" / "mmbench_en_dev_graded.json").exists()
    monkeypatch.setattr(evaluator, "get_chat_response", lambda *_, **__: "A")
    found = evaluate(run, "mmbench")["mmbench_en_dev_graded"]["metrics"]["gpt_eval_score"]
    assert len(Stub.asked) == answered
    assert "/gpt-4o-2024-11-20/" in found["protocol"]
    logged = [one["scores"]["gpt_eval_score"] for one in samples(run, "mmbench_en_dev_graded")]
    files = SimpleNamespace(output_path=str(data))
    shipped = harness("tasks.mmbench.en_utils").mmbench_aggregate_dev_results_eval
    assert found["value"] == shipped(logged, files)


def test_the_law_from_a_table_filled_this_way(data, capsys, monkeypatch):
    """Results of five models with A and C beside them: fit and recommend run; another protocol of
    one benchmark is told apart."""
    table = data / "results.csv"
    for place, (tower, skill) in enumerate(TOWERS.items()):
        Stub.rule = staticmethod(rule(skill))
        evaluate(a_run(data / f"run{place}", tower), "paper8", "--results", table)
        made = [
            results.ResultRow(tower, "A_cosine", entry.id, skill * 0.8 + 0.01 * place, "fraction")
            for entry in catalog.benchmarks().values()
            if entry.in_law
        ]
        made.append(results.ResultRow(tower, "C_pck", "spair71k", 10 + 5.0 * place, "percent"))
        results.append(table, made)
    read = results.read(table)
    performance = read.rows_of("quantity", "performance")
    assert performance.sum() == 8 * len(TOWERS)
    known = np.isfinite(read.stderr[performance])  # where all of 12 questions are alike, not
    assert known.sum() > 6 * len(TOWERS)
    assert (read.stderr[performance][known] > 0).all()
    capsys.readouterr()
    policy(["fit", "--table", str(table)])
    assert "MMBench" in capsys.readouterr().out
    policy(["recommend", "--table", str(table), "--benchmark", "TextVQA"])
    assert "TextVQA" in capsys.readouterr().out
    evaluate(data / "run0", "textvqa", "--ocr", "--results", table)
    with pytest.raises(LawError, match=r"no-ocr.* and .*/ocr/"):
        policy(["fit", "--table", str(table)])
