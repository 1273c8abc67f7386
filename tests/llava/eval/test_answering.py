"""Many questions at once: what each gets alone, from the model directly."""

import pytest
import torch
from PIL import Image
from world import make_world, stage1, stage2

from llava.data.masks import Labeller
from llava.errors import LawError, UsageError
from llava.eval.answering import Answering, Decoding, Question
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train

ANSWERS = ("a red fox.", "sits on the blue box and eats one green apple.", "No, not quite.")
TEXTS = ("What is it?", "Say what you see in this image, in a few words.", "Sure?")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with a stage 2 that has learnt to say different things of different images."""
    root = make_world(tmp_path_factory.mktemp("answering"))
    train(stage1(root, root / "stage1"))
    projector = root / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "stage2", projector, max_steps=60, learning_rate=2e-2))
    return root


@pytest.fixture(scope="module")
def loaded(world):
    """Tokenizer, model and image processor."""
    return load_pretrained_model(str(world / "stage2"))[:3]


@pytest.fixture
def asking(loaded):
    """Makes an Answering with a batch size."""
    return lambda size=1: Answering.of(*loaded, batch_size=size)


def images(world, *numbers):
    """Some of the world's images."""
    return [Image.open(world / "images" / f"{number}.png").convert("RGB") for number in numbers]


def question(world, text, *numbers, where=""):
    """About the images of these numbers."""
    seen = images(world, *numbers)
    marks = " ".join(["<image>"] * len(seen)) + "\n" if seen else ""
    return Question(lambda: ([marks + text], seen), len(text), where)


@pytest.fixture(scope="module")
def questions(world):
    """One image, none and two; short and long; an image that several ask about."""
    made = [question(world, TEXTS[i % 2], i % 7, where=f"doc {i}") for i in range(11)]
    made.insert(3, question(world, "Say fox."))
    made.insert(7, question(world, "Which of the two?", 1, 2))
    return made


def directly(loaded, asked, tokens):
    """The model's own greedy answer to one question."""
    tokenizer, model, processor = loaded
    turns, seen = asked.open()
    prompts = Answering.of(tokenizer, model, processor).prompts
    ids = prompts.ids(turns)[None]
    given = {"images": process_images(seen, processor, model.config)} if seen else {}
    new = model.generate(ids, do_sample=False, max_new_tokens=tokens, **given)
    return tokenizer.decode(new[0], skip_special_tokens=True)


def test_answers_are_those_of_the_model(loaded, asking, questions):
    """In batches of any size: what `generate` says to each alone."""
    alone = [directly(loaded, one, 12) for one in questions]
    assert len(set(alone)) > 3
    for size in (1, 3, 8):
        assert asking(size).answers(questions, Decoding(12)) == alone


def test_scores_are_those_of_training(loaded, asking, questions):
    """Of the tokens that training would supervise, under the labels it makes."""
    tokenizer, model, processor = loaded
    labeller = Labeller(tokenizer, "v1")
    given = [ANSWERS[place % 3] for place in range(len(questions))]
    found = asking(5).scores(questions, given)
    for asked, answer, score in zip(questions, given, found, strict=True):
        turns, seen = asked.open()
        talk = [{"from": "human", "value": turns[0]}, {"from": "gpt", "value": answer}]
        # with one image training puts it first, where it stands already
        row = labeller(talk, len(seen))
        pixels = {"images": process_images(seen, processor, model.config)} if seen else {}
        with torch.no_grad():
            loss = model(
                input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]), **pixels
            ).loss
        assert score.tokens == sum(label >= 0 for label in row.labels)
        assert score.mean_nll == pytest.approx(loss.item(), abs=2e-6)
    one_by_one = asking(1).scores(questions, given)
    assert [s.log_likelihood for s in one_by_one] == pytest.approx(
        [s.log_likelihood for s in found], abs=1e-5
    )


def test_greedy_is_what_greedy_decoding_says(asking, questions):
    """Of its own answer always, of another one never."""
    some = questions[:6]
    said = asking(4).answers(some, Decoding(40))
    assert all(said)
    assert all(score.greedy for score in asking(3).scores(some, said))
    others = [f"{answer[:5]} near the trees" for answer in said]
    assert not any(score.greedy for score in asking(3).scores(some, others))


def test_drawn_answers_have_seeds_of_their_own(asking, questions):
    """In any order and batch; asked again it is another draw."""
    drawing = Decoding(12, temperature=2.0, seed=0)
    some = [one for one in questions if one.where]
    first = asking(4).answers(some, drawing)
    assert asking(1).answers(some[::-1], drawing) == first[::-1]
    twice = asking(1).answers([some[0], some[0]], drawing)
    assert twice[0] == first[0] != twice[1]


def test_texts_that_end_an_answer(asking, questions):
    """Generation stops, and what stopped it is left out."""
    whole = asking().answers(questions[:4], Decoding(40))
    word = whole[0].split()[1]
    cut = asking(4).answers(questions[:4], Decoding(40, until=(word,)))
    assert cut == [text.partition(word)[0] for text in whole]
    assert cut[0] != whole[0]


def test_an_image_is_seen_once(world, asking, monkeypatch):
    """Ten questions about one image preprocess it at most twice, and run the tower once."""
    answering = asking(8)
    made = []
    pixels = answering.cache._pixels
    monkeypatch.setattr(answering.cache, "_pixels", lambda one: made.append(one) or pixels(one))
    tower = answering.model.get_vision_tower().load_model()
    seen = []
    monkeypatch.setattr(
        tower, "forward", lambda pixels, run=tower.forward: seen.append(len(pixels)) or run(pixels)
    )
    answering.answers([question(world, TEXTS[0], 3) for _ in range(10)], Decoding(2))
    assert seen == [1]
    assert len(made) <= 2  # by the second batch, too, where it is prepared before the tower ran


@pytest.mark.parametrize("error", [LawError, UsageError])
def test_what_fails_says_which_question(world, asking, error):
    """An image that cannot be opened ends the work."""

    def broken():
        raise error("no image")

    asked = [question(world, TEXTS[0], 1), Question(broken, 5, "mme, document 7")]
    with pytest.raises(error, match="mme, document 7: no image"):
        asking(1).answers(asked, Decoding(2))


def test_failing_generation_ends_the_work(world, asking, monkeypatch):
    """No empty answer takes its place."""
    answering = asking(2)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answering.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        answering.answers([question(world, TEXTS[0], 1, where="here")], Decoding(2))
    assert caught.value.__notes__ == ["while answering here"]


def test_what_does_not_fit(world, asking):
    """Prompts beyond the language model's positions; answers that would be cut off."""
    long = question(world, "word " * 600, 1, where="doc 9")
    with pytest.raises(LawError, match=r"doc 9: the prompt takes \d+ positions"):
        asking().answers([long], Decoding(2))
    with pytest.raises(LawError, match=r"doc 9: \d+ of \d+ tokens of the answer 'a fox'"):
        asking().scores([long], ["a fox"])
    with pytest.raises(LawError, match="the answer is empty"):
        asking().scores([question(world, TEXTS[0], 1)], [" "])


def test_missing_images(world, asking):
    """An image mark without an image."""
    asked = Question(lambda: (["<image> <image>\nWhich?"], images(world, 1)), 5, "doc 1")
    with pytest.raises(LawError, match=r"doc 1: the text has 2 image marks .* there are 1 images"):
        asking().answers([asked], Decoding(2))


@pytest.mark.parametrize(("text", "count"), [("<image>\nWhich?", 2), ("What is <image>?", 0)])
def test_images_of_one_question_are_not_the_next_ones(world, asking, text, count):
    """Beside a good question, too, where the numbers of marks and images would add up."""
    bad = Question(lambda: ([text], images(world, *range(count))), 30, "doc 1")
    good = Question(lambda: (["<image> <image>\nAnd?"], images(world, 5)), 3, "doc 2")
    for batch in ([bad, question(world, TEXTS[0], 1)], [bad, good]):
        with pytest.raises(LawError, match="doc 1: the text has 1 image marks"):
            asking(2).answers(batch, Decoding(2))
        with pytest.raises(LawError, match="doc 1: the text has 1 image marks"):
            asking(2).scores(batch, ["a", "b"])
    with pytest.raises(LawError, match="2 image marks"):
        asking(2).scores([question(world, TEXTS[0], 1)], ["an <image> of a fox"])


def test_a_model_of_nan(world):
    """Neither empty answers nor likelihoods that compare with nothing."""
    answering = Answering.of(*load_pretrained_model(str(world / "stage2"))[:3])
    with torch.no_grad():
        answering.model.mm_projector[0].weight[0, 0] = float("nan")
    asked = [question(world, TEXTS[0], 1, where="doc 4")]
    with pytest.raises(LawError, match="doc 4: the model gives NaN"):
        answering.answers(asked, Decoding(4))
    with pytest.raises(LawError, match="doc 4: the model gives NaN"):
        answering.scores(asked, ["a fox"])


def test_a_model_for_text_alone(world):
    """It answers; about an image it refuses."""
    tokenizer, model, processor, _ = load_pretrained_model(str(world / "llm"))
    answering = Answering.of(tokenizer, model, processor, "v1")
    assert answering.answers([question(world, "Say fox.")], Decoding(3))
    with pytest.raises(UsageError, match="no vision tower"):
        answering.answers([question(world, "What?", 1)], Decoding(3))
