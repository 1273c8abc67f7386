"""`--model law_llava`: the released class' answers, our likelihoods, and no silence."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageFile
from world import WORDS, make_world, stage1, stage2

pytest.importorskip("lmms_eval")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model

from llava.errors import LawError, UsageError
from llava.eval import law_llava
from llava.eval.answering import Answering, Question
from llava.eval.harness import task_manager
from llava.eval.law_llava import LawLlava
from llava.eval.local_tasks import write_local_task
from llava.launch import Launch
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train

CHOICES = ["a red fox.", "sits on the blue box.", "one green apple near two old trees."]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Stage 2 of a world, and two tasks over its images, two-image and text-only records too."""
    root = make_world(tmp_path_factory.mktemp("law_llava"))
    train(stage1(root, root / "stage1"))
    projector = root / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "stage2", projector, max_steps=60, learning_rate=2e-2))
    records = [
        {
            "id": str(i),
            "image": f"{i}.png",
            "question": "What is it?" if i % 3 else "What do you see in this image?",
            "answer": WORDS[i],
        }
        for i in range(10)
    ]
    write_local_task(root / "tasks", "single", records, root / "images", "generate")
    records += [
        {"id": "text", "question": "Say fox.", "answer": "fox"},
        {"id": "two", "image": ["1.png", "2.png"], "question": "Which?", "answer": "box"},
    ]
    write_local_task(root / "tasks", "mixed", records, root / "images", "generate")
    choices = [one | {"choices": CHOICES, "answer": CHOICES[1]} for one in records]
    task = write_local_task(root / "tasks", "choose", choices, root / "images", "choice")
    theirs = task.read_text().replace('"choose"', '"choose_theirs"', 1)
    lines = [line for line in theirs.splitlines() if not line.startswith("process_results")]
    task.with_stem("choose_theirs").write_text("\n".join(lines))
    return root


def evaluated(world, model, *tasks):
    """(results, task -> what was answered to every document) of lmms-eval."""
    manager = task_manager(tasks, [world / "tasks"])
    found = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager)
    answers = {
        task: {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
        for task, samples in found["samples"].items()
    }
    return found["results"], answers


@pytest.fixture(scope="module")
def model(world):
    """law_llava, four questions at a time."""
    return LawLlava(str(world / "stage2"), batch_size=4)


@pytest.fixture(scope="module")
def answered(world, model):
    """What it says to the mixed task and to the choices."""
    return evaluated(world, model, "mixed", "choose")


def test_is_registered():
    """By an entry point, under its name; nothing heavy is imported for that."""
    (entry,) = [e for e in entry_points(group="lmms_eval.models") if "llava" in e.value]
    assert [one.model_id for one in entry.load()()] == ["law_llava"]
    assert get_model("law_llava") is LawLlava


def test_answers_are_those_of_the_released_class(world, model):
    """lmms-eval's own `llava`, on one image a question; images come as float16 there."""
    released = get_model("llava")(
        pretrained=str(world / "stage2"),
        device="cpu",
        device_map="auto",
        conv_template="vicuna_v1",
        batch_size=1,
    )
    _, expected = evaluated(world, released, "single")
    _, found = evaluated(world, model, "single")
    assert found == expected
    assert len({tuple(answer) for answer in found["single"].values()}) > 2


@pytest.mark.parametrize("size", [1, 8])
def test_batches_change_nothing(world, answered, size):
    """Answers to the letter, likelihoods to rounding."""
    _, wanted = answered
    _, found = evaluated(world, LawLlava(str(world / "stage2"), batch_size=size), "mixed", "choose")
    assert found["mixed"] == wanted["mixed"]
    for doc, scores in wanted["choose"].items():
        assert [s[0] for s in found["choose"][doc]] == pytest.approx([s[0] for s in scores], 1e-6)


def test_likelihoods_and_choices(world, answered):
    """The mean over the answer's tokens as we compute it; lmms-eval then takes the smallest."""
    results, answers = answered
    answering = Answering.of(*load_pretrained_model(str(world / "stage2"))[:3], batch_size=1)
    right = []
    lines = (world / "tasks" / "choose.jsonl").read_text().splitlines()
    for doc, record in enumerate(map(json.loads, lines)):
        names = {"text": [], "two": ["1.png", "2.png"]}.get(record["id"], [f"{doc}.png"])
        images = [Image.open(world / "images" / name).convert("RGB") for name in names]
        marks = " ".join(["<image>"] * len(images)) + "\n" if images else ""
        asked = Question(lambda t=marks + record["question"], i=images: ([t], i), 1)
        scores = answering.scores([asked] * 3, CHOICES)
        assert [s[0] for s in answers["choose"][doc]] == pytest.approx(
            [score.mean_nll for score in scores], abs=1e-6
        )
        assert [s[1] for s in answers["choose"][doc]] == [score.greedy for score in scores]
        right.append(min(range(3), key=lambda k: scores[k].mean_nll) == 1)
    assert results["choose"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert 0 < len(right) == 12


def test_multiple_choice_of_lmms_eval_itself(world, model, answered):
    """Without a way of its own to score: the smallest mean wins, and the number is the same."""
    results, _ = evaluated(world, model, "choose_theirs")
    assert results["choose_theirs"]["acc,none"] == answered[0]["choose"]["acc,none"]


def test_several_tasks_with_one_model(world, model):
    """The model survives lmms-eval's cleaning up, and images seen before are not seen again."""
    tower = model.answering.model.get_vision_tower().load_model()
    evaluated(world, model, "single")
    seen, run = [], tower.forward
    tower.forward = lambda pixels: seen.append(len(pixels)) or run(pixels)
    try:
        evaluated(world, model, "mixed")
    finally:
        del tower.forward
    assert sum(seen) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"conv_template": "vicuna_v2"}, "did you mean 'vicuna_v"),
        ({"conv_template": "llama_2"}, "was trained with v1.*any_template=True"),
        ({"conv_tempalte": "v1"}, "conv_tempalte mean nothing to law_llava"),
        ({"batch_size": "auto"}, "expected a whole number"),
        ({"device": "cuda:0"}, "no CUDA device"),
        ({"dtype": "int8"}, "expected float32, bfloat16 or float16"),
        ({"tower_alias": "x=y"}, "unknown tower 'x'"),
    ],
)
def test_arguments_that_cannot_be_meant(world, given, says):
    """Refused by name."""
    if "cuda" in given.get("device", "") and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(UsageError, match=says):
        LawLlava(str(world / "stage2"), **given)


@pytest.mark.parametrize(("world_size", "place"), [(1, "cuda:3"), (4, "cuda:2")])
def test_devices(monkeypatch, world_size, place):
    """What was asked for, but a GPU each where there are several processes, as in theirs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(law_llava, "launch", lambda: Launch(2 % world_size, world_size, 2))
    assert law_llava._device("cuda:3") == place
    assert law_llava._device(None) == law_llava._device("cuda") == "cuda:2"
    assert law_llava._device("cpu") == "cpu"


def test_templates(world):
    """Another name of the same; another one if it is meant; that of stage 1 has no questions."""
    assert LawLlava(str(world / "stage2"), conv_template="vicuna_v1").settings["conv_template"]
    other = LawLlava(str(world / "stage2"), conv_template="llama_2", any_template=True)
    assert other.prompts.prompt(["Hi"]).startswith("[INST]")
    with pytest.raises(UsageError, match="would be asked in plain, the template of captions"):
        LawLlava(str(world / "stage1"), model_base=str(world / "llm"))
    with pytest.raises(UsageError, match="asked in v0_plain, the template of captions"):
        LawLlava(str(world / "stage2"), conv_template="v0_plain", any_template=True)
    given = {"conv_template": "vicuna_v1", "any_template": True}
    LawLlava(str(world / "stage1"), model_base=str(world / "llm"), **given)


def test_dtype_is_the_checkpoints(world, tmp_path):
    """Not what the machine likes; another one where it is asked for."""
    config = json.loads((world / "stage2" / "config.json").read_text())
    for file in (world / "stage2").iterdir():
        if file.is_file() and file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    model = LawLlava(str(tmp_path))
    assert model.settings["dtype"] == "bfloat16"
    assert model.answering.model.get_vision_tower().dtype == torch.bfloat16
    _, answers = evaluated(world, model, "mixed", "choose")
    assert all(answers["mixed"].values())
    assert LawLlava(str(tmp_path), dtype="float32").settings["dtype"] == "float32"


def request(world, model, arguments, visual=lambda _: None, context="What?", target=None):
    """A request as lmms-eval makes one."""
    model.task_dict["made"] = {"test": [{}]}
    second = arguments if target is None else target
    return SimpleNamespace(args=(context, second, visual, 0, "made", "test"), task_name="made")


def test_generation_arguments(world, model, law_log, monkeypatch):
    """What a task asks for, what is not supported, and answers that end where it says."""
    seen = []
    monkeypatch.setattr(
        model.answering, "answers", lambda questions, decoding: seen.append(decoding) or ["a"]
    )
    model.generate_until([request(world, model, None)])
    model.generate_until([request(world, model, {"until": ["\n\n"], "max_new_tokens": 7})])
    given = {"temperature": 0.7, "top_p": 0.9, "num_beams": 2, "repetition_penalty": 1.1}
    model.generate_until([request(world, model, given | {"made_up": 1, "do_sample": True})])
    assert [one.max_new_tokens for one in seen] == [1024, 7, 1024]
    assert seen[1].until == ()  # as in the released class
    assert (seen[2].temperature, seen[2].top_p, seen[2].num_beams) == (0.7, 0.9, 2)
    assert seen[2].more == {"repetition_penalty": 1.1}
    assert [line for line in law_log if "made_up" in line]
    monkeypatch.setattr(model, "until", True)
    model.generate_until([request(world, model, {"until": "\n\n"})])
    assert seen[3].until == ("\n\n",)


@pytest.mark.parametrize("visual", [lambda _: None, lambda _: [None], lambda _: []])
def test_questions_without_images(world, model, visual):
    """However a task says so."""
    assert model.generate_until([request(world, model, {"max_new_tokens": 2}, visual)])[0]


def test_images_in_the_question(world, model):
    """A context that has its image marks itself keeps them."""
    two = [Image.new("RGB", (20, 30)), Image.new("L", (30, 20), 200)]
    asked = request(
        world, model, {"max_new_tokens": 2}, lambda _: two, "First <image> then <image>: same?"
    )
    assert model.generate_until([asked])[0]
    with pytest.raises(LawError, match=r"made, document 0: the text has 3 image marks"):
        model.generate_until(
            [request(world, model, {}, lambda _: two, "<image> <image> <image> ?")]
        )


def test_what_is_no_image(world, model):
    """A video's path, and likelihoods without a question."""
    with pytest.raises(LawError, match="made, document 0: gave a str"):
        model.generate_until([request(world, model, {}, lambda _: ["a.mp4"])])
    with pytest.raises(LawError, match="acc_mutual_info"):
        model.loglikelihood([SimpleNamespace(args=("", "yes"), task_name="made")])
    with pytest.raises(LawError, match="single turns"):
        model.generate_until_multi_round([])


def test_images_cut_short(world, model, tmp_path):
    """lmms-eval lets PIL fill them up with grey; here they are an error."""
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    asked = request(world, model, {}, lambda _: [Image.open(path).convert("RGB")])
    with pytest.raises(LawError, match=r"made, document 0: an image cannot be read: .*truncated"):
        model.generate_until([asked])


def test_failing_generation_ends_the_run(world, monkeypatch):
    """lmms-eval hears of it; no answer is made up."""
    model = LawLlava(str(world / "stage2"))

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.answering.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluated(world, model, "single")


@pytest.mark.slow
def test_two_processes_are_one(world, answered, tmp_path):
    """By torchrun, through lmms-eval's own command line."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "lmms_eval", "--model", "law_llava"]
    command += ["--model_args", f"pretrained={world / 'stage2'}", "--tasks", "mixed,choose"]
    command += ["--include_path", str(world / "tasks"), "--batch_size", "4", "--device", "cpu"]
    command += ["--log_samples", "--output_path", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert list(tmp_path.rglob("*_results.json")), done.stdout[-3000:] + done.stderr[-6000:]
    results, wanted = answered
    for task in ("mixed", "choose"):
        (samples,) = tmp_path.rglob(f"*_samples_{task}.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        found = {line["doc_id"]: line["filtered_resps"] for line in lines}
        assert found.keys() == wanted[task].keys()
        if task == "mixed":
            assert {doc: [answer] for doc, answer in found.items()} == wanted[task]
            continue
        for doc, scores in wanted[task].items():
            values = [float(value) for value, _ in found[doc]]  # written as text
            assert values == pytest.approx([s[0] for s in scores], 1e-6)
    (file,) = tmp_path.rglob("*_results.json")
    written = json.loads(file.read_text())["results"]
    assert written["choose"]["acc,none"] == results["choose"]["acc,none"]
    assert written["mixed"]["exact_match,none"] == results["mixed"]["exact_match,none"]
