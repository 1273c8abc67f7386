"""`law evaluate` on local tasks, a stub in the model's place: what is asked, written and kept."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
from stub_lmms import Stub, register

from llava.errors import LawError, MissingPackageError, UsageError
from llava.eval.evaluate import main
from llava.eval.evaluation import answers as evaluation_answers
from llava.eval.evaluation import files as evaluation_files
from llava.eval.evaluation import run as evaluation_run
from llava.eval.evaluation.fingerprint import PIECE, fingerprint
from llava.eval.evaluation.jobs import Job
from llava.eval.evaluation.subject import subject
from llava.eval.harness import harness
from llava.launch import Launch
from llava.model.multimodal_encoder import known, registry
from llava.model.multimodal_encoder.spec import Family, TowerSpec

CONFIG = {
    "model_type": "llava_llama",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "conversation_version": "v1",
}
PACKAGES = {"torch": "2"}
"""In place of all that are installed, which takes half a second to list."""
DOCUMENTS = 10
VQA = "lmms-eval-0.7.3/vqa/exact_match/vicuna_v1/greedy/stub"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
doc_to_text: question
doc_to_target: answer
metadata: {{version: 1.0}}
"""
KINDS = {
    "vqa": """\
output_type: generate_until
generation_kwargs: {max_new_tokens: 32, temperature: 0, do_sample: false}
process_results: !function own.score
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "choice": """\
output_type: multiple_choice
doc_to_choice: ["no", "yes"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
}
OWN = """\
def score(doc, results):
    said = results[0].lower().strip(".")
    return {"exact_match": float(said == doc["answer"]), "length": len(results[0])}


def longest(items):
    return max(items)
"""


class Killed(BaseException):
    """What no handler of errors may catch: stands for a kill."""


def write_task(folder, name, answers, kind="vqa"):
    """A task `name` with a question for every answer."""
    asked = [{"question": f"Is {i} even?", "answer": said} for i, said in enumerate(answers)]
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name) + KINDS[kind])
    (folder / "own.py").write_text(OWN)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Tasks `vqa` (right but for two documents) and `choice` (all right), and a run's folder."""
    register()
    root = tmp_path_factory.mktemp("evaluate")
    (root / "tasks").mkdir()
    right = ["no" if i % 2 else "yes" for i in range(DOCUMENTS)]
    write_task(root / "tasks", "choice", right, "choice")
    write_task(root / "tasks", "vqa", [*right[:3], "cat", "cat", *right[5:]])
    (root / "run").mkdir()
    (root / "run" / "config.json").write_text(json.dumps(CONFIG))
    (root / "run" / "model.safetensors").write_bytes(b"weights")
    (root / "run" / "run.json").write_text(json.dumps({"flags": {"seed": 5}}))
    return root


@pytest.fixture
def world(source, tmp_path, monkeypatch):
    """The same for one test to change; nothing has been asked of the stub."""
    for name in ("tasks", "run"):
        shutil.copytree(source / name, tmp_path / name)
    monkeypatch.setattr(Stub, "made", [])
    monkeypatch.setattr(Stub, "asked", [])
    monkeypatch.setattr(Stub, "rule", None)
    monkeypatch.setattr(evaluation_run, "environment", lambda: {"packages": PACKAGES})
    return tmp_path


def evaluate(world, *flags, tasks="vqa", model="stub"):
    """Calls the command; returns (task, document) of what it asked."""
    before = len(Stub.asked)
    given = {"--run": world / "run", "--include_path": world / "tasks", "--model": model}
    words = [str(word) for pair in given.items() for word in pair]
    main([*words, "--tasks", *tasks.split(), *map(str, flags)])
    return Stub.asked[before:]


def read(path):
    """A JSON file."""
    return json.loads(path.read_text())


def lines(path):
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(world):
    """The rows of the results table."""
    with open(world / "results.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_what_is_written(world, capsys):
    """A summary with what the number rests on, every answer, a row; the table alone on stdout."""
    evaluate(world, "--results", world / "results.csv", tasks="vqa choice")
    out = world / "run" / "eval"
    found = read(out / "vqa.json")
    number = found["metrics"]["exact_match"]
    assert number["value"] == pytest.approx(0.8)
    assert number["stderr"] == pytest.approx((0.8 * 0.2 / 9) ** 0.5)
    assert (number["n"], number["protocol"], found["documents"]) == (DOCUMENTS, VQA, DOCUMENTS)
    assert found["versions"]["lmms_eval"] == "0.7.3"
    assert found["settings"] == {"conv_template": "vicuna_v1", "dtype": "float32"}
    assert found["task"]["generation_kwargs"]["max_new_tokens"] == 32
    assert found["subject"]["seed"] == 5
    answers = lines(out / "vqa_samples.jsonl")
    assert [one["answer"] for one in answers] == ["Yes.", "no"] * 5
    assert answers[3] == {
        "doc_id": 3,
        "prompt": "Is 3 even?",
        "target": "cat",
        "answer": "no",
        "scores": {"exact_match": 0.0},
    }
    assert read(out / "environment.json")["packages"] == PACKAGES
    assert not list((out / ".answers").iterdir())
    rows = table(world)
    assert [row["benchmark"] for row in rows] == ["vqa", "choice"]
    assert {key: rows[0][key] for key in ("representation", "quantity", "unit", "n", "seed")} == {
        "representation": CONFIG["mm_vision_tower"],
        "quantity": "performance",
        "unit": "fraction",
        "n": "10",
        "seed": "5",
    }
    assert float(rows[0]["stderr"]) == number["stderr"]
    assert rows[1]["protocol"].endswith("choice/acc/vicuna_v1/likelihood/stub")
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["benchmark", "vqa", "choice"]


def test_numbers_are_lmms_evals_own(world):
    """Value and standard error as `simple_evaluate` gives them when it is called plainly."""
    evaluate(world, tasks="vqa choice")
    manager = harness("tasks").TaskManager(
        include_path=str(world / "tasks"), include_defaults=False
    )
    plain = harness("evaluator").simple_evaluate(
        model=Stub(str(world / "run")), tasks=["vqa", "choice"], task_manager=manager
    )
    for task, metric in (("vqa", "exact_match"), ("choice", "acc")):
        number = read(world / "run" / "eval" / f"{task}.json")["metrics"][metric]
        theirs = plain["results"][task]
        assert number["value"] == theirs[f"{metric},none"]
        error = theirs[f"{metric}_stderr,none"]
        assert number["stderr"] == (pytest.approx(error, rel=1e-12) if error else None)


def test_one_model_for_all_tasks(world):
    """Made once, with the template of training and the batch size, and not cleaned in between."""
    asked = evaluate(world, "--batch_size", 4, "--model_args", "word=a", tasks="vqa,choice")
    expected = {"pretrained": str(world / "run"), "batch_size": 4, "conv_template": "vicuna_v1"}
    assert Stub.made == [expected | {"word": "a"}]
    assert ("cleaned", -1) not in asked
    assert "generate_until" not in vars(Stub(str(world / "run")))


def test_a_second_call_asks_nothing(world, capsys):
    """No model is made; the table is printed again, and no row comes twice."""
    evaluate(world, "--results", world / "results.csv", tasks="vqa choice")
    first, rows = capsys.readouterr().out, table(world)
    before = {path: path.stat().st_mtime_ns for path in (world / "run" / "eval").glob("*.json*")}
    assert evaluate(world, "--results", world / "results.csv", tasks="vqa choice") == []
    assert len(Stub.made) == 1
    assert capsys.readouterr().out == first
    assert table(world) == rows
    del before[world / "run" / "eval" / "environment.json"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (world / "results.csv").unlink()  # or killed before it was written
    assert evaluate(world, "--results", world / "results.csv", tasks="vqa choice") == []
    assert table(world) == rows


def test_batch_size_and_device_are_no_other_evaluation(world):
    """Nor is a folder that was moved, whose files were touched."""
    evaluate(world)
    assert evaluate(world, "--batch_size", 1, "--device", "cpu") == []
    (world / "run" / "config.json").touch()
    moved = (world / "run").rename(world / "moved")
    (world / "run").symlink_to(moved)
    assert evaluate(world) == []


@pytest.mark.parametrize(
    ("change", "flags", "told"),
    [
        (lambda w: (w / "run" / "model.safetensors").write_bytes(b"WEIGHTS"), [], "fingerprint"),
        (lambda w: None, ["--conv_template", "llama_2"], "template .was vicuna_v1, is llama_2"),
        (lambda w: None, ["--model_args", "word=b"], "model_args"),
        (
            lambda w: (w / "tasks" / "vqa.jsonl").write_text(
                (w / "tasks" / "vqa.jsonl").read_text().replace("Is 3", "Was 3")
            ),
            [],
            "questions",
        ),
        (
            lambda w: (w / "tasks" / "vqa.yaml").write_text(
                (w / "tasks" / "vqa.yaml").read_text().replace("32", "8")
            ),
            [],
            "the task's config",
        ),
        (
            lambda w: (w / "tasks" / "own.py").write_text(OWN.replace('strip(".")', 'strip(".!")')),
            [],
            "the task's code",
        ),
    ],
    ids=["weights", "template", "arguments", "questions", "task", "code"],
)
def test_results_of_another_evaluation(world, change, flags, told):
    """Are refused before a model is made, naming the difference; --overwrite replaces them."""
    evaluate(world)
    change(world)
    with pytest.raises(UsageError, match=f"{told}.*--overwrite"):
        evaluate(world, *flags)
    assert len(Stub.made) == 1
    assert len(evaluate(world, *flags, "--overwrite")) == DOCUMENTS
    assert evaluate(world, *flags, "--overwrite") == []
    assert evaluate(world, *flags) == []


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--model_args whole=False,word=", ""),
        ("--batch_size 1 --device cpu", ""),
        ("--model_args whole=True", "/whole-True"),
        ("--model_args whole=1,word=b", "/whole-True/word-b"),
        ("--dtype float16", "/dtype-float16"),
        ("--dtype torch.half", "/dtype-float16"),
        ("--model_args word=a/b", "/word-c14cddc0"),
        ("--model_args open_api_key=hunter2", ""),
    ],
)
def test_arguments_in_the_protocol(world, capsys, flags, part):
    """What may change answers, in one order and spelling; another model's class; no secrets."""
    evaluate(world, "--check", *flags.split(" "))
    said = capsys.readouterr().out
    assert said == f"vqa: {DOCUMENTS} documents, {VQA}{part}\n"


def test_the_usual_class_is_not_named(world, capsys):
    """Rows of `law_llava` have the protocol that they always had; its own defaults are none."""
    given = "any_template=True,stop_at_until=False,cache_gb=1,tower_alias="
    evaluate(world, "--check", "--model_args", given, model="law_llava")
    assert capsys.readouterr().out.endswith(f"{VQA.removesuffix('/stub')}\n")
    evaluate(world, "--check", "--model_args", "stop_at_until=True", model="law_llava")
    assert capsys.readouterr().out.endswith(f"{VQA.removesuffix('/stub')}/stop_at_until-True\n")


def test_secrets_are_not_written(world):
    """Nor told; another key is another evaluation all the same."""
    evaluate(world, "--model_args", "open_api_key=hunter2,word=hf_" + "x" * 30)
    assert Stub.made[0]["word"] == "hf_" + "x" * 30
    text = (world / "run" / "eval" / "vqa.json").read_text()
    assert "hunter2" not in text
    assert "hf_xxx" not in text
    assert evaluate(world, "--model_args", "open_api_key=hunter2,word=hf_" + "x" * 30) == []
    with pytest.raises(UsageError, match="model_args") as caught:
        evaluate(world, "--model_args", "open_api_key=hunter3,word=hf_" + "x" * 30)
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"identity": 3}', "{}", "[]", "{", '{"metrics": {"a": 1}}'])
def test_a_summary_that_is_none(world, text):
    """Says what to do, before a model is made."""
    evaluate(world)
    found = read(world / "run" / "eval" / "vqa.json")
    made = text if text[0] != "{" or len(text) < 3 else json.dumps(found | json.loads(text))
    (world / "run" / "eval" / "vqa.json").write_text(made)
    with pytest.raises(LawError, match=r"vqa\.json.*delete it, and the task is evaluated again"):
        evaluate(world)
    assert len(Stub.made) == 1


def test_a_summary_of_another_version(world):
    """What it did not record is told as such, not as a fact about the task."""
    evaluate(world)
    path = world / "run" / "eval" / "vqa.json"
    found = read(path)
    del found["identity"]["judge"]
    path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"evaluation: judge \(was not recorded, is \)\."):
        evaluate(world)


def test_a_corrected_unit_is_in_the_table(world, capsys):
    """What is printed is what the table says."""
    for unit in ("points", "percent"):
        given = ["--results", world / "results.csv"]
        evaluate(world, *given, tasks=f"vqa:exact_match:{unit}")
        evaluate(world, *given, tasks=f"vqa:exact_match:{unit}")
    assert [row["unit"] for row in table(world)] == ["points", "percent"]


def test_limits_stand_beside_the_whole(world):
    """Another file, another protocol."""
    assert evaluate(world, "--limit", 4, "--results", world / "results.csv") == [
        ("vqa", i) for i in range(4)
    ]
    assert len(evaluate(world, "--results", world / "results.csv")) == DOCUMENTS
    assert [(row["n"], row["protocol"]) for row in table(world)] == [
        ("4", f"{VQA}/limit-4"),
        ("10", VQA),
    ]
    found = read(world / "run" / "eval" / "vqa-limit4.json")
    assert found["identity"]["limit"] == found["documents"] == 4


def test_a_task_that_fails(world, capsys, law_log):
    """Is told at the end with exit code 1; the others are done, and a second call asks it alone."""

    def rule(request, _):
        if request.task_name == "vqa":
            raise RuntimeError("out of memory")
        return "yes"

    Stub.rule = staticmethod(rule)
    write_task(world / "tasks", "other", ["yes"] * 4)
    with pytest.raises(LawError, match=r"1 task\(s\) failed.*\n  vqa: RuntimeError: out of memory"):
        evaluate(world, tasks="vqa other")
    assert any("Traceback" in line for line in law_log)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][1:] == ["other"]
    assert not (world / "run" / "eval" / "vqa.json").exists()
    Stub.rule = None
    assert evaluate(world, tasks="vqa other") == [("vqa", i) for i in range(DOCUMENTS)]


def test_a_failure_among_several_processes(world, monkeypatch):
    """Ends the run, since the others wait; what was finished before is kept."""
    monkeypatch.setattr(evaluation_run, "launch", lambda: Launch(0, 2, 0))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)

    def rule(request, _):
        if request.task_name == "vqa":
            raise RuntimeError("out of memory")
        return "yes"

    Stub.rule = staticmethod(rule)
    with pytest.raises(LawError, match=r"^vqa: RuntimeError: out of memory"):
        evaluate(world, tasks="choice vqa")
    assert (world / "run" / "eval" / "choice.json").is_file()


def test_processes_ask_together(monkeypatch):
    """A task that one of them has no data for fails for all, so that none waits for another."""
    monkeypatch.setattr(evaluation_run, "launch", lambda: Launch(0, 2, 0))
    for name, function in {
        "is_initialized": lambda: True,
        "all_gather_object": lambda found, own: found.__setitem__(slice(None), [own, ["choice"]]),
    }.items():
        monkeypatch.setattr(evaluation_run.distributed, name, function)
    ready = [evaluation_run.Ready(Job(name), None, None, {}) for name in ("vqa", "choice")]
    failed = {}
    assert [one.job.task for one in evaluation_run._agreed(ready, failed)] == ["choice"]
    assert list(failed) == ["vqa"]


def test_data_that_are_missing(world, monkeypatch):
    """Fail their task before the model is made; the others go on."""
    again = harness("api.task").ConfigurableTask.download.retry
    monkeypatch.setattr(again, "sleep", lambda _: None)  # it tries five times
    path = world / "tasks" / "gone.yaml"
    path.write_text((world / "tasks" / "vqa.yaml").read_text().replace("vqa", "gone"))
    with pytest.raises(LawError, match="gone: the data cannot be had"):
        evaluate(world, tasks="gone vqa")
    assert (world / "run" / "eval" / "vqa.json").is_file()
    with pytest.raises(LawError, match="gone: the data cannot be had"):
        evaluate(world, tasks="gone vqa")
    assert len(Stub.made) == 1


@pytest.mark.parametrize("task", ["vqa", "choice"])
def test_killed_inside_of_a_task(world, monkeypatch, task):
    """What was answered is not asked again, and the result is that of an undisturbed run."""
    evaluate(world, "--out", world / "undisturbed", tasks=task)
    monkeypatch.setattr(evaluation_answers, "AT_ONCE", 4)
    answer = Stub._answer if task == "vqa" else Stub.loglikelihood
    name = "_answer" if task == "vqa" else "loglikelihood"
    calls = []

    def killing(self, given):
        calls.append(given)
        if len(calls) == (7 if task == "vqa" else 3):
            raise Killed
        return answer(self, given)

    monkeypatch.setattr(Stub, name, killing)
    with pytest.raises(Killed):
        evaluate(world, tasks=task)
    monkeypatch.setattr(Stub, name, answer)
    (folder,) = (world / "run" / "eval" / ".answers").iterdir()
    (kept,) = folder.iterdir()
    assert len(lines(kept)) == (4 if task == "vqa" else 8)
    with open(kept, "a") as handle:
        handle.write('{"key": "cut')
    asked = evaluate(world, tasks=task)
    expected = range(4, DOCUMENTS)
    assert sorted({document for _, document in asked}) == list(expected)
    for left in (f"{task}_samples.jsonl",):
        whole = (world / "undisturbed" / left).read_text()
        assert (world / "run" / "eval" / left).read_text() == whole
    for name in ("metrics", "task", "identity"):
        whole = read(world / "undisturbed" / f"{task}.json")[name]
        assert read(world / "run" / "eval" / f"{task}.json")[name] == whole
    assert not folder.exists()


def test_answers_of_another_model_are_not_taken(world, monkeypatch):
    """A checkpoint that changed after a kill is asked everything; the old answers go."""
    monkeypatch.setattr(evaluation_answers, "AT_ONCE", 4)

    def killing(request, _):
        if request.doc_id == 6:
            raise Killed
        return "old"

    Stub.rule = staticmethod(killing)
    with pytest.raises(Killed):
        evaluate(world)
    Stub.rule = None
    (world / "run" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert len(evaluate(world)) == DOCUMENTS
    assert "old" not in (world / "run" / "eval" / "vqa_samples.jsonl").read_text()
    assert not list((world / "run" / "eval" / ".answers").iterdir())


@pytest.mark.parametrize(("temperature", "first"), [("0.5", 0), ("0", 4)])
def test_drawn_answers_are_not_kept(world, monkeypatch, temperature, first):
    """A draw that was cut short is drawn anew, and its protocol says so; `do_sample` at temperature
    0 draws nothing, and what was answered is kept."""
    path = world / "tasks" / "vqa.yaml"
    text = path.read_text().replace("temperature: 0", f"temperature: {temperature}")
    path.write_text(text.replace("do_sample: false", "do_sample: true"))
    monkeypatch.setattr(evaluation_answers, "AT_ONCE", 4)

    def killing(request, _):
        if request.doc_id == 6:
            raise Killed
        return "no"

    Stub.rule = staticmethod(killing)
    with pytest.raises(Killed):
        evaluate(world)
    Stub.rule = None
    assert evaluate(world) == [("vqa", i) for i in range(first, DOCUMENTS)]
    found = read(world / "run" / "eval" / "vqa.json")["metrics"]["exact_match"]
    assert found["protocol"].endswith("/greedy/stub" if first else "/sampled0.5/stub")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        pytest.param(["--tasks", "vqq"], "did you mean 'vqa'", marks=pytest.mark.slow),
        (["--tasks", "vqa:exact"], "did you mean 'exact_match'"),
        (["--tasks", "vqa:acc:percents"], "did you mean 'percent'"),
        (["--model", "stubb"], "did you mean 'stub'"),
        (["--model_args", "wrod=a"], "did you mean 'word'"),
        (["--model_args", "word"], "k=v"),
        (["--model_args", "device=cpu", "--device", "cpu"], "--device alone"),
        (["--model_args", "pretrained=x"], "--run alone"),
        (["--model_base", "x"], "unknown argument 'model_base'"),
        (["--conv_template", "v11"], "did you mean 'v1'"),
        (["--include_path", "nowhere"], "no such folder"),
        (["--limit", "0"], "--limit 0"),
        (["--batch_size", "0"], "--batch-size 0"),
        (["--processes", "0"], "--processes 0"),
        (["--ocr"], "--ocr"),
        (["--tasks", ","], "names no task"),
    ],
)
def test_flags_that_cannot_be_meant(world, flags, told):
    """Exit code 2 before a model is made or a file is written."""
    known = [] if "--include_path" in flags else ["--include_path", str(world / "tasks")]
    given = ["--run", str(world / "run"), "--model", "stub", "--tasks", "vqa", *known, *flags]
    with pytest.raises(UsageError, match=told):
        main(given)
    assert Stub.made == []
    assert not (world / "run" / "eval").exists()


def test_another_version_of_lmms_eval(world, monkeypatch, law_log):
    """Is said, and stands in the protocol; results of one do not stand for those of the other."""
    evaluate(world)
    monkeypatch.setattr(evaluation_files, "version", lambda package: "0.7.9")
    with pytest.raises(UsageError, match=r"lmms_eval \(was 0.7.3, is 0.7.9\)"):
        evaluate(world)
    evaluate(world, "--overwrite")
    assert any("lmms-eval 0.7.9 is installed" in line for line in law_log)
    found = read(world / "run" / "eval" / "vqa.json")["metrics"]["exact_match"]
    assert found["protocol"].startswith("lmms-eval-0.7.9/")


def test_a_missing_harness(world, monkeypatch):
    """Says the line that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "lmms_eval.models", None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps lmms-eval"):
        evaluate(world)


@pytest.mark.parametrize(
    ("files", "config", "told"),
    [
        (["mm_projector.bin"], {}, "stage 1.*--model-base LANGUAGE_MODEL"),
        (
            ["adapter_config.json"],
            {"_name_or_path": "vicuna"},
            "adapters and no language model.*--model-base vicuna",
        ),
        (["model.safetensors"], {"mm_vision_tower": None}, "without a vision tower"),
        ([], {}, "no weights"),
    ],
)
def test_folders_that_cannot_be_asked(world, files, config, told):
    """Say what is in them and what to pass."""
    shutil.rmtree(world / "run")
    (world / "run").mkdir()
    (world / "run" / "config.json").write_text(json.dumps(CONFIG | config))
    for name in files:
        (world / "run" / name).write_bytes(b"{}")
    with pytest.raises(LawError, match=told):
        evaluate(world)
    assert Stub.made == []


def test_a_run_that_is_not_finished(world):
    """Its newest checkpoint is named; a folder that is not there is called so."""
    (world / "run" / "config.json").unlink()
    (world / "run" / "checkpoint-20").mkdir()
    with pytest.raises(UsageError, match=r"not finished.*checkpoint-20"):
        evaluate(world)
    shutil.rmtree(world / "run")
    with pytest.raises(LawError, match="no such folder"):
        evaluate(world)


def test_a_table_that_cannot_be_written(world):
    """Is found before anything is asked, as one that is another kind of table."""
    with pytest.raises(LawError, match=r"cannot be (read|written)"):
        evaluate(world, "--results", world / "tasks")
    other = world / "other.csv"
    other.write_text("name,score\na,1\n")
    with pytest.raises(LawError, match="missing"):
        evaluate(world, "--results", other)
    assert Stub.made == []


def test_documents_that_cannot_be_read(world):
    """A task whose prompt fails is told before the model is made; the others go on."""
    path = world / "tasks" / "choice.yaml"
    path.write_text(path.read_text().replace("doc_to_text: question", 'doc_to_text: "{{ wrod }}"'))
    with pytest.raises(LawError, match=r"choice: .*'wrod' is undefined"):
        evaluate(world, tasks="choice vqa")
    assert (world / "run" / "eval" / "vqa.json").is_file()


def test_shares_that_nobody_gave(world, monkeypatch):
    """Tasks of srun without torchrun's variables would each do everything, so they are refused."""
    given = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun inside of srun"):
        evaluate(world)


def test_check_loads_nothing(world, capsys):
    """It says what would be asked, under which protocol, and writes nothing."""
    assert evaluate(world, "--check", tasks="vqa choice") == []
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"vqa: {DOCUMENTS} documents, {VQA}"
    assert (len(said), Stub.made) == (2, [])
    assert not (world / "run" / "eval").exists()
    evaluate(world)
    capsys.readouterr()
    evaluate(world, "--check", tasks="vqa choice")
    assert "vqa: is done" in capsys.readouterr().out


def test_several_numbers_of_own_tasks(world, capsys):
    """All of them unless one is named; a unit may be given; a later call finds the others, too."""
    path = world / "tasks" / "vqa.yaml"
    more = "  - metric: length\n    aggregation: !function own.longest\n"
    path.write_text(path.read_text() + more + "    higher_is_better: false\n")
    evaluate(world, "--results", world / "results.csv")
    rows = {row["benchmark"]: row for row in table(world)}
    assert set(rows) == {"vqa:exact_match", "vqa:length"}
    assert (rows["vqa:length"]["value"], rows["vqa:length"]["stderr"]) == ("4.0", "")
    assert (rows["vqa:length"]["unit"], rows["vqa:length"]["higher_is_better"]) == (
        "points",
        "false",
    )
    assert "no mean" in read(world / "run/eval/vqa.json")["metrics"]["length"]["stderr_of"]
    asked = evaluate(world, "--results", world / "results.csv", tasks="vqa:length:count")
    assert asked == []
    assert [(row["benchmark"], row["unit"]) for row in table(world)][2:] == [("vqa", "count")]


def test_groups_are_taken_apart(world):
    """Each of their tasks has a result of its own."""
    (world / "tasks" / "both.yaml").write_text("group: both\ntask: [vqa, choice]\n")
    evaluate(world, tasks="both")
    assert {path.stem for path in (world / "run" / "eval").glob("*[ae].json")} == {"vqa", "choice"}


def test_fingerprint(tmp_path):
    """Of contents: the same for a copy, another for other weights wherever they changed."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "config.json").write_text("{}")
    weights = bytearray(PIECE * 100)
    (one / "model.safetensors").write_bytes(weights)
    shutil.copytree(one, other)
    (other / "log.jsonl").write_text("more")
    assert fingerprint(str(one)) == fingerprint(str(other))
    for place in (0, len(weights) - 1):
        changed = bytearray(weights)
        changed[place] = 1
        (other / "model.safetensors").write_bytes(changed)
        assert fingerprint(str(one)) != fingerprint(str(other))
    (other / "model.safetensors").write_bytes(weights)
    (other / "config.json").write_text("{ }")
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_seed_of_a_checkpoint_inside_of_a_run(world):
    """run.json stands above it."""
    inner = world / "run" / "checkpoint-4"
    inner.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world / "run" / name, inner / name)
    assert subject(str(inner)).seed == 5


def test_towers_of_other_packages(world, monkeypatch):
    """One that is known by its name alone is there, without a slash or with a digest, too."""
    spec = {"family": "example", "size": 32, "patch": 8, "dim": 6, "depth": 1, "layer": 1}
    spec |= {"mean": (0, 0, 0), "std": (1, 1, 1), "resize": "squash"}
    towers = [TowerSpec(id="colours", **spec), TowerSpec(id="net/block1", digest="1f", **spec)]
    family = Family(name="example", tower="example:Tower", summary="", towers=towers)
    points = [SimpleNamespace(name="example", value="", load=lambda: [family])]
    caches = (known.families, known.towers, registry._known)
    monkeypatch.setattr(known, "entry_points", lambda group: points)
    for cache in caches:
        cache.cache_clear()
    try:
        for name in ("colours", "net/block1"):
            config = CONFIG | {"mm_vision_tower": name}
            (world / "run" / "config.json").write_text(json.dumps(config))
            assert subject(str(world / "run")).representation == name
    finally:
        for cache in caches:
            cache.cache_clear()
