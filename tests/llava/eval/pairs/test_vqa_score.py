"""VQAScore is the likelihood of an answer that the model itself gives, whatever is asked beside."""

import argparse
import json
import math

import numpy as np
import pytest
import torch
from world import make_world, stage1, stage2

from llava.data.collator import Collator
from llava.data.dataset import ConversationDataset
from llava.data.images import ImageSource
from llava.data.masks import Labeller
from llava.data.records import Records
from llava.errors import LawError, UsageError
from llava.eval.answering import Answering
from llava.eval.pairs import vqa_score
from llava.eval.pairs.flags import vqa as vqa_flags
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import open_picture
from llava.eval.pairs.result import scorer_protocol
from llava.eval.pairs.vqa_score import ANSWER, QUESTION, VqaScorer
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_layout import Checkpoint
from llava.train.a_score import score_alignment
from llava.train.train import main as train

CAPTIONS = ("a red fox", "one green apple near two old trees", "the blue box", "a fox eats")
EITHER = ((0, 1), (0, 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with a stage 2 that has learnt to say different things of different images."""
    root = make_world(tmp_path_factory.mktemp("vqa"))
    train(stage1(root, root / "stage1"))
    projector = root / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "stage2", projector, max_steps=30, learning_rate=2e-2))
    return root


@pytest.fixture(scope="module")
def loaded(world):
    """Tokenizer, model and image processor."""
    return load_pretrained_model(str(world / "stage2"))[:3]


@pytest.fixture
def scorer(loaded):
    """Makes a scorer."""

    def made(size: int = 1, **changes) -> VqaScorer:
        return VqaScorer(Answering.of(*loaded, batch_size=size), {}, **changes)

    return made


@pytest.fixture(scope="module")
def items(world):
    """A set of four, a pair with a question of its own, and one image alone."""
    images = [world / "images" / f"{number}.png" for number in range(7)]
    return [
        Item(
            "set",
            tuple(images[:4]),
            CAPTIONS,
            (0, 1, 2, 3),
            ((0, 1), (1, 0), (2, 3), (2, 3)),
            ((0, 1), (2, 3)),
        ),
        Item(
            "asked",
            (images[4], images[5]),
            ("fox", "two old trees"),
            (0, 1),
            EITHER,
            ((0, 1),),
            question="What is on the box?",
        ),
        Item("alone", (images[6],), CAPTIONS[:2], (1,), ((0, 1),)),
    ]


def directly(loaded, path, question: str, answer: str, end: bool) -> float:
    """The same out of the model's own probabilities, token by token."""
    tokenizer, model, processor = loaded
    head = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    prompt = f"{head} USER: <image>\n{question} ASSISTANT:"
    begun = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    ids = tokenizer_image_token(f"{prompt} {answer}", tokenizer, return_tensors="pt")
    if end:
        ids = torch.cat([ids, torch.tensor([tokenizer.eos_token_id])])
    count = len(ids) - len(begun)
    assert ids[: len(begun)].tolist() == begun.tolist()
    pixels = process_images([open_picture(path)], processor, model.config)
    with torch.no_grad():
        logits = model(input_ids=ids[None], images=pixels).logits[0].double()
    said = logits.softmax(-1)[-count - 1 : -1].gather(1, ids[-count:, None])
    product = math.prod(said.flatten().tolist())
    return product ** (1 / count) if end else product


@pytest.mark.parametrize("end", [True, False])
def test_the_definition(loaded, scorer, items, end):
    """With the end mark the geometric mean over the tokens, without it the answer's probability."""
    found = scorer(3, end=end).scores(items)
    for item, scores in zip(items, found, strict=True):
        assert scores.dtype == np.float64 and scores.shape == item.needed.shape
        assert np.array_equal(np.isnan(scores), ~item.needed)
        for image, caption in np.argwhere(item.needed):
            text = item.captions[caption]
            asked = (item.question, text) if item.question else (QUESTION.format(text), ANSWER)
            expected = directly(loaded, item.images[image], *asked, end)
            assert scores[image, caption] == pytest.approx(expected, rel=2e-5)
    assert len({round(s, 9) for scores in found for s in scores[~np.isnan(scores)]}) > 8


def test_one_token_and_its_end(loaded, scorer, items):
    """sqrt(P(answer) P(end)): the two ways differ by nothing else."""
    tokenizer, model, processor = loaded
    item = Item("x", items[1].images, ("a", "the"), (0, 1), EITHER, question="What is it?")
    with_end, alone = (scorer(end=end).scores([item])[0] for end in (True, False))
    prompts = Answering.of(*loaded).prompts
    for image, path in enumerate(item.images):
        pixels = process_images([open_picture(path)], processor, model.config)
        for caption, word in enumerate(item.captions):
            row = prompts.labelled(["<image>\nWhat is it?", word])
            assert sum(label >= 0 for label in row.labels) == 2
            with torch.no_grad():
                given = torch.tensor([row.input_ids])
                logits = model(input_ids=given, images=pixels).logits[0].double()
            end = logits.softmax(-1)[-2, tokenizer.eos_token_id].item()
            one = alone[image, caption]
            assert with_end[image, caption] == pytest.approx(math.sqrt(one * end), rel=2e-5)


def test_batches_change_nothing(scorer, items):
    """But for rounding: rows about one image share what they begin with, in a batch of any size."""
    alone = scorer(1).scores(items)
    for size in (2, 5, 16):
        for one, other in zip(alone, scorer(size).scores(items), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5)
    scoring = scorer(4)
    whole, last = scoring.scores(items)[2], scoring.scores(items[2:])[0]
    np.testing.assert_allclose(whole, last, rtol=2e-5)
    # what was scored before leaves no trace, so that a run that goes on has the same digits
    np.testing.assert_array_equal(last, scorer(4).scores(items[2:])[0])
    backwards = scorer(4).scores(items[::-1])[::-1]
    for one, other in zip(alone, backwards, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5)


def test_it_is_the_a_score_of_the_same_sample(tmp_path, world, loaded, scorer, items):
    """The sum of log p over the same tokens: A score and VQAScore are one computation."""
    tokenizer, model, processor = loaded
    item = items[0]
    records = [
        {
            "id": f"{image}{caption}",
            "image": item.images[image].name,
            "conversations": [
                {"from": "human", "value": "<image>\n" + QUESTION.format(item.captions[caption])},
                {"from": "gpt", "value": ANSWER},
            ],
        }
        for image, caption in np.argwhere(item.needed)
    ]
    (tmp_path / "asked.json").write_text(json.dumps(records))
    dataset = ConversationDataset(
        Records(tmp_path / "asked.json"),
        Labeller(tokenizer, "v1"),
        ImageSource(world / "images", processor),
        processor.num_tokens,
        None,
    )
    collator = Collator(tokenizer.pad_token_id)
    found = score_alignment(model, dataset, collator, len(records), batch_size=3)
    scores = scorer(3).scores([item])[0]
    expected = [math.exp(-s / t) for s, t in zip(found.nll_sums, found.tokens, strict=True)]
    np.testing.assert_allclose(scores[item.needed], expected, rtol=1e-5)


def test_only_what_is_needed(loaded, scorer, items, monkeypatch):
    """No other question is asked, an image is decoded once and seen by the tower once."""
    opened, seen = [], []
    monkeypatch.setattr(vqa_score, "open_picture", lambda p: opened.append(p) or open_picture(p))
    scoring = scorer(4)
    tower = loaded[1].get_vision_tower().load_model()
    handle = tower.register_forward_hook(lambda *given: seen.append(len(given[2])))
    asked = scoring.answering.scores
    monkeypatch.setattr(
        scoring.answering, "scores", lambda q, a, end: seen.append(-len(q)) or asked(q, a, end)
    )
    scoring.scores(items)
    handle.remove()
    assert -seen.pop(0) == sum(item.needed.sum() for item in items) == 14
    assert sorted(opened) == sorted(path for item in items for path in item.images)
    assert sum(seen) == 7


def test_a_template_of_ones_own(loaded, scorer, items):
    """The caption goes where the braces are, whatever else stands in it."""
    asked = scorer(question="Is it {}?")
    braces = Item("x", items[1].images, ("{0} {a}", "fox"), (0, 1), EITHER)
    scores = asked.scores([braces])[0]
    expected = directly(loaded, braces.images[0], "Is it {0} {a}?", ANSWER, True)
    assert scores[0, 0] == pytest.approx(expected, rel=2e-5)
    assert asked.facts()["question"] == "Is it {}?"
    assert asked.facts()["protocol"] != scorer().facts()["protocol"]
    for wrong in ("Is it so?", "{} or {}?"):
        with pytest.raises(UsageError, match="places for the caption"):
            scorer(question=wrong)


def test_what_cannot_be_scored(tmp_path, scorer, items):
    """Errors name the item and the image."""
    gone = Item("gone", (tmp_path / "no.png", items[0].images[0]), ("a", "b"), (0, 1), EITHER)
    with pytest.raises(LawError, match=r"item gone, no.png: .*no.png: cannot be read: No such"):
        scorer().scores([gone])
    (tmp_path / "half.png").write_bytes(items[0].images[0].read_bytes()[:-200])
    half = Item("half", (tmp_path / "half.png",), ("a", "b"), (0,), ((0, 1),))
    with pytest.raises(LawError, match=r"item half, .*half.png: does not decode"):
        scorer().scores([half])
    marked = Item("mark", items[0].images[:1], ("an <image>", "b"), (0,), ((0, 1),))
    with pytest.raises(LawError, match="item mark: its text holds <image>"):
        scorer().scores([marked])


def flags(*given: object) -> argparse.Namespace:
    """As the command line has them."""
    parser = argparse.ArgumentParser()
    vqa_flags.add_arguments(parser)
    return parser.parse_args([str(one) for one in given])


def test_from_the_command_line(world, scorer, items):
    """The same scores; facts are plain, tell the checkpoint, and are equal for equal scores."""
    run = ("--model-path", world / "stage2", "--device", "cpu")
    made = vqa_score.make(flags(*run, "--batch-size", 4))
    for one, other in zip(made.scores(items), scorer(4).scores(items), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5)
    facts = made.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["representation"] == str(world / "clip")
    assert facts["select_feature"] == "patch" and facts["template"] == "vicuna_v1"
    assert len(facts["spec_hash"]) == 64 and facts["answer_end"] is True
    assert vqa_score.make(flags(*run)).facts() == facts
    other = vqa_score.make(flags(*run, "--no-answer-eos")).facts()
    assert {name for name in facts if facts[name] != other[name]} == {
        "answer_end",
        "protocol",
        "score",
    }
    assert scorer_protocol("vqa", facts) == "vqa/vicuna_v1/mean-with-end/float32"
    assert made.performance and made.answers


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["stage1", "--model-base", "llm"], r"captions alone.*finetune.*law a-score nll"),
        (["stage1"], "captions alone"),
        (["stage2", "--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        (["stage2", "--conv-mode", "vicuna"], "vicuna"),
        (["stage2", "--device", "warp"], "--device warp"),
        (["stage2", "--question-template", "Yes?"], "has 0 places for the caption"),
        (["llm"], "language model without a vision tower"),
    ],
)
def test_what_cannot_be_asked(world, given, message, monkeypatch):
    """Refused before weights are read."""
    given = [str(world / one) if (world / one).is_dir() else one for one in given]
    monkeypatch.setattr(vqa_score, "load_pretrained_model", None)
    with pytest.raises(UsageError, match=message):
        vqa_score.make(flags("--model-path", *given))


def test_another_template_is_said(world, law_log):
    """It is asked in, since that was asked for; another name of its own is no other one."""
    checkpoint = Checkpoint(str(world / "stage2"))
    vqa_score.check_asked(checkpoint, "vicuna_v1")
    assert not law_log
    vqa_score.check_asked(checkpoint, "llava_llama_2")
    assert law_log == [
        f"WARNING: {world / 'stage2'} was trained with v1 and is asked in llava_llama_2"
    ]
