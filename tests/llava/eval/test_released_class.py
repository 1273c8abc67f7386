"""lmms-eval's own `llava` model class, as released, on checkpoints of ours.

It finds `load_pretrained_model`, `process_images` and the rest by name in the package `llava`, and
what it gets is what the model says when it is asked directly.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import picture
from world import make_world, stage1, stage2

import llava.constants
import llava.conversation
import llava.mm_utils
import llava.model.builder
from llava.eval.harness import harness, task_manager
from llava.eval.local_tasks import write_local_task
from llava.model.likelihood import answer_likelihood
from llava.train.train import main as train

PINPOINTS = "[(32, 64), (64, 32), (64, 64)]"
RECORDS = [
    {"id": "a", "image": "0.png", "question": "What is it?", "answer": "a red fox"},
    {"id": "b", "image": "1.png", "question": "Sure? Say yes or no.", "answer": "Yes"},
    {"id": "c", "image": "2.png", "question": "What is in <image> now?", "answer": "a blue box"},
    {"id": "d", "image": "3.png", "question": "What?", "answer": "fox"},
    {"id": "e", "image": "4.png", "question": "Who eats one green apple?", "answer": "a fox"},
]
OTHERS = [
    {"id": "two", "image": ["0.png", "1.png"], "question": "What is it?", "answer": "x"},
    {"id": "none", "question": "Say red.", "answer": "red"},
]
CHOICES = [
    record | {"choices": ["Yes", "No, not quite.", "a red fox sits on the blue box."]}
    for record in (RECORDS[1] | {"answer": "Yes"}, RECORDS[0] | {"answer": "No, not quite."})
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with a finished stage 1 and stage 2, and tasks about its images."""
    root = make_world(tmp_path_factory.mktemp("released"))
    train(stage1(root, root / "stage1"))
    projector = root / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "stage2", projector))
    make_talkative(root / "stage2")
    for name, records, kind in (
        ("ask", RECORDS, "generate"),
        ("mixed", [*RECORDS, *OTHERS], "generate"),
        ("choose", CHOICES, "choice"),
    ):
        write_local_task(root / "tasks", name, records, root / "images", kind)
    return root


def make_talkative(run):
    """Moves a checkpoint's weights so far that what it says depends on every word and image."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(run / "model.safetensors")
    for name in sorted(tensors):
        noise = torch.randn(tensors[name].shape, generator=generator)
        tensors[name] = tensors[name] + 0.3 * noise
    save_file(tensors, run / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def released():
    """The module of the released class."""
    return harness("models.simple.llava")


@pytest.fixture
def evaluate(world, released):
    """Drives the released class through one task: (results, samples by id)."""

    def run(name, path=None, **options):
        model = released.Llava(
            pretrained=str(path or world / "stage2"), device="cpu", device_map="auto", **options
        )
        results = harness("evaluator").simple_evaluate(
            model=model, tasks=[name], task_manager=task_manager([name], [world / "tasks"])
        )
        return results["results"][name], {s["doc"]["id"]: s for s in results["samples"][name]}

    return run


def with_config(source, target, **changes):
    """A copy of a checkpoint whose config says something else."""
    target.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != "config.json":
            (target / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


class Asked:
    """A checkpoint of ours, asked without lmms-eval."""

    def __init__(self, world, path):
        self.images = world / "images"
        loaded = llava.model.builder.load_pretrained_model(str(path), None, "", device="cpu")
        self.tokenizer, self.model, self.processor, _ = loaded

    def given(self, names):
        """Images as the released class gives them, in float16 on every device."""
        if not names:
            return {}
        opened = [Image.open(self.images / name) for name in names]
        pixels = llava.mm_utils.process_images(opened, self.processor, self.model.config)
        half = {"dtype": torch.float16, "device": "cpu"}
        pixels = [one.to(**half) for one in pixels] if type(pixels) is list else pixels.to(**half)
        return {"images": pixels, "image_sizes": [image.size for image in opened]}

    def ids(self, question, answer=None):
        """Of a prompt of vicuna_v1, with its answer where there is one."""
        conversation = llava.conversation.conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], answer)
        return llava.mm_utils.tokenizer_image_token(
            conversation.get_prompt(), self.tokenizer, return_tensors="pt"
        )[None]

    def answer(self, question, names):
        """What greedy decoding says."""
        ids = self.ids(question)
        with torch.inference_mode():
            said = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=32,
                pad_token_id=self.tokenizer.pad_token_id,
                **self.given(names),
            )
        return self.tokenizer.decode(said[0], skip_special_tokens=True).strip()

    def nll(self, question, names, answer):
        """Nats per token of an answer and its end mark."""
        ids = self.ids(question, answer)
        labels = ids.clone()
        labels[:, : self.ids(question).shape[1]] = -100
        found = answer_likelihood(self.model, input_ids=ids, labels=labels, **self.given(names))
        return -float(found.sum_B / found.count_B)


def marked(record):
    """A record's question with marks as the released class writes them, and its images."""
    names = record.get("image", [])
    names = [names] if isinstance(names, str) else names
    text = record["question"]
    return text if "<image>" in text else " ".join(["<image>"] * len(names)) + "\n" + text, names


def test_what_it_imports_is_ours(released):
    """Its imports are in a try whose failure is a line of the debug log."""
    for module, names in {
        llava.constants: ("DEFAULT_IMAGE_TOKEN", "IMAGE_TOKEN_INDEX"),
        llava.conversation: ("conv_templates",),
        llava.mm_utils: ("get_model_name_from_path", "process_images", "tokenizer_image_token"),
        llava.model.builder: ("load_pretrained_model",),
    }.items():
        for name in names:
            assert getattr(released, name) is getattr(module, name)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers(world, evaluate, batch_size):
    """Those that the model gives when it is asked directly, in any batch."""
    results, samples = evaluate("ask", batch_size=batch_size)
    asked = Asked(world, world / "stage2")
    said = {id_: sample["filtered_resps"][0].strip() for id_, sample in samples.items()}
    assert said == {record["id"]: asked.answer(*marked(record)) for record in RECORDS}
    assert len(set(said.values())) == 5
    assert results["exact_match,none"] == results["exact_match_stderr,none"] == 0
    other = asked.answer(marked(RECORDS[0])[0], ["9.png"])
    assert other != said["a"]  # which image it is makes a difference


@pytest.mark.parametrize("batch_size", [1, 4])
def test_two_images_and_none(world, evaluate, batch_size):
    """Beside others in a batch, too, where the class has a new line before a text without image."""
    _, samples = evaluate("mixed", batch_size=batch_size)
    asked = Asked(world, world / "stage2")
    for record in OTHERS:
        text, names = marked(record)
        text = text.strip() if batch_size == 1 else text
        said = samples[record["id"]]["filtered_resps"][0]
        assert said.strip() == asked.answer(text, names), record["id"]


def test_likelihoods(world, evaluate):
    """Mean negative log-likelihoods of the labels it builds: those of the answer and its end."""
    results, samples = evaluate("choose")
    asked = Asked(world, world / "stage2")
    right = 0
    for record in CHOICES:
        nlls = [asked.nll(*marked(record), choice) for choice in record["choices"]]
        found = [float(one[1:].split(",")[0]) for one in samples[record["id"]]["filtered_resps"]]
        assert found == pytest.approx(nlls, rel=1e-5)  # float32, summed in another order
        right += nlls.index(min(nlls)) == record["choices"].index(record["answer"])
    assert results["acc,none"] == right / 2


def test_several_towers(world, evaluate, tmp_path):
    """Their pixels are a batch of several tensors, which the class moves and counts like one."""
    pair = f"{world / 'clip'}+{world / 'dinov2'}"
    run = tmp_path / "pair"
    train(stage2(world, run, vision_tower=pair))
    make_talkative(run)
    asked = Asked(world, run)
    assert len(asked.given(["0.png"])["images"]) == 1
    _, samples = evaluate("mixed", run, batch_size=4)
    for record in [RECORDS[0], *OTHERS]:
        said = samples[record["id"]]["filtered_resps"][0].strip()
        assert said == asked.answer(*marked(record)), record["id"]
    _, samples = evaluate("choose", run)
    nll = asked.nll(*marked(CHOICES[0]), CHOICES[0]["choices"][0])
    assert float(samples["b"]["filtered_resps"][0][1:].split(",")[0]) == pytest.approx(
        nll, rel=1e-5
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"image_aspect_ratio": "pad"},
        {"image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS},
        {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": PINPOINTS,
            "mm_patch_merge_type": "spatial",
        },
    ],
    ids=["pad", "anyres", "anyres-spatial"],
)
def test_framings(world, evaluate, tmp_path, changes):
    """Padded images, and tiles: tensors, or a list of them where images differ in shape."""
    picture(64, 30, seed=9).save(world / "images" / "wide.png")
    wide = RECORDS[0] | {"id": "wide", "image": "wide.png"}
    records = [*RECORDS[:2], wide, *OTHERS]
    write_local_task(world / "tasks", "framed", records, world / "images")
    run = with_config(world / "stage2", tmp_path / "run", **changes)
    asked = Asked(world, run)
    for batch_size in (1, 5):
        _, samples = evaluate("framed", run, batch_size=batch_size)
        for record in records:
            text, names = marked(record)
            text = text.strip() if batch_size == 1 else text
            said = samples[record["id"]]["filtered_resps"][0].strip()
            assert said == asked.answer(text, names), record["id"]


def test_unknown_template(evaluate):
    """Loud, with the nearest name."""
    with pytest.raises(KeyError, match="unknown conversation template 'vicuna_v2'; did you mean"):
        evaluate("ask", conv_template="vicuna_v2")


def test_projector_alone(world, evaluate):
    """Stage 1 has no language model, and the class passes none: said, with what to pass."""
    with pytest.raises(llava.errors.UsageError, match="no language model; pass model_base"):
        evaluate("ask", world / "stage1")


@pytest.mark.slow
def test_command_line(world, tmp_path):
    """The command of lmms-eval's users; it exits with 0 on errors, too, so its files are read."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu"),
            *("-m", "lmms_eval", "--model", "llava"),
            *(
                "--model_args",
                f"pretrained={world / 'stage2'},conv_template=vicuna_v1,device_map=auto",
            ),
            *("--tasks", "ask,choose", "--include_path", str(world / "tasks")),
            *("--batch_size", "1", "--device", "cpu"),
            *("--log_samples", "--output_path", str(tmp_path / "out")),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = list((tmp_path / "out").rglob("*_results.json"))
    assert len(found) == 1, done.stderr[-3000:]
    results = json.loads(found[0].read_text())["results"]
    assert set(results) == {"ask", "choose"}
    assert isinstance(results["ask"]["exact_match_stderr,none"], float)
    assert isinstance(results["choose"]["acc,none"], float)
    (samples,) = (tmp_path / "out").rglob("*_samples_ask.jsonl")
    said = [json.loads(line) for line in samples.read_text().splitlines()]
    asked = Asked(world, world / "stage2")
    assert {one["doc_id"]: one["filtered_resps"].strip() for one in said} == {
        place: asked.answer(*marked(record)) for place, record in enumerate(RECORDS)
    }
