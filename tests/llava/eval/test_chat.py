"""`law chat`: the answer of step-by-step decoding, on the prompt of training."""

import io

import pytest
import torch
from PIL import Image
from world import make_world, stage1, stage2

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.errors import LawError, UsageError
from llava.eval.answering import Answering, Decoding
from llava.eval.chat import main as chat
from llava.eval.conversing import Conversing
from llava.eval.prompts import version_of
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.train.train import main as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A world with a finished stage 1 and stage 2."""
    root = make_world(tmp_path_factory.mktemp("chat"))
    train(stage1(root, root / "stage1"))
    projector = root / "stage1" / "mm_projector.bin"
    train(stage2(root, root / "stage2", projector, max_steps=8, learning_rate=1e-2))
    return root


def image(world):
    """One of the world's images."""
    return world / "images" / "1.png"


def ask(capsys, *flags):
    """What `law chat` prints, with what it says besides."""
    chat([str(flag) for flag in flags])
    return capsys.readouterr()


def talking(world, tokens):
    """A conversation with the model of stage 2."""
    tokenizer, model, processor, _ = load_pretrained_model(str(world / "stage2"))
    return Conversing(Answering.of(tokenizer, model, processor), Decoding(tokens))


def test_equals_step_by_step_decoding(trained, capsys):
    """The likeliest token each time, from a forward pass over everything so far."""
    tokenizer, model, processor, _ = load_pretrained_model(str(trained / "stage2"))
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", "<image>\nWhat is it?")
    conversation.append_message("ASSISTANT", None)
    ids = tokenizer_image_token(
        conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
    )[None]
    pixels = process_images([Image.open(image(trained))], processor, model.config)
    new = []
    with torch.inference_mode():
        for _ in range(12):
            logits = model(
                torch.cat([ids, torch.tensor([new], dtype=torch.int64)], 1), images=pixels
            )
            new.append(int(logits.logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
    expected = tokenizer.decode(new, skip_special_tokens=True).strip()
    flags = ["--model-path", trained / "stage2", "--query", "What is it?", "--max_new_tokens", 12]
    said = ask(capsys, *flags, "--image-file", image(trained))
    assert said.out == expected + "\n"
    assert expected


def test_projector_and_base(trained, capsys):
    """Stage 1 speaks its own template: the image alone, up to the end of the line."""
    flags = ["--model-path", trained / "stage1", "--query", "?", "--max_new_tokens", 4]
    said = ask(capsys, *flags, "--model-base", trained / "llm", "--image-file", image(trained))
    assert said.out.count("\n") == 1
    with pytest.raises(UsageError, match="model_base"):
        chat([str(flag) for flag in flags])


def test_dtype(trained, monkeypatch):
    """The model is loaded in the dtype that was asked for."""
    given = []

    def load(*_, **options):
        given.append(options["dtype"])
        raise LawError("loaded")

    monkeypatch.setattr("llava.eval.chat.load_pretrained_model", load)
    for flags in ([], ["--dtype", "bfloat16"]):
        with pytest.raises(LawError, match="loaded"):
            chat(["--model-path", str(trained / "stage2"), "--query", "?", *flags])
    assert given == [None, "bfloat16"]
    monkeypatch.undo()
    with pytest.raises(UsageError, match="expected float32, bfloat16 or float16"):
        chat(["--model-path", str(trained / "stage2"), "--query", "?", "--dtype", "int8"])


def test_sampling(trained, capsys):
    """The same seed gives the same answer, another one another."""
    flags = ["--model-path", trained / "stage2", "--query", "What?", "--temperature", 2]
    flags += ["--image-file", image(trained), "--max_new_tokens", 20]
    one, same, other = (ask(capsys, *flags, "--seed", seed).out for seed in (1, 1, 2))
    assert one == same != other
    with pytest.raises(UsageError, match="expected 0 or more"):
        chat([str(flag) for flag in [*flags, "--temperature", -1]])


def test_turns_are_remembered(trained, capsys, monkeypatch):
    """Lines of stdin are turns of one conversation; the image belongs to the first."""
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n\nSure?\n"))
    flags = ["--model-path", trained / "stage2", "--max_new_tokens", 5]
    said = ask(capsys, *flags, "--image-file", image(trained))
    first, second = said.out.splitlines()
    talk = talking(trained, 5)
    assert talk.ask("What is it?", [Image.open(image(trained))]) == first
    assert talk.ask("Sure?") == second
    assert talk.turns == ["<image>\nWhat is it?", first, "Sure?", second]
    asked = talk.answering.prompts.prompt(talk.turns[:3])
    assert f"ASSISTANT: {first}</s>USER: Sure? ASSISTANT:" in asked


def test_text_and_several_images(trained):
    """No image at all, and two."""
    talk = talking(trained, 3)
    talk.ask("Say fox.")
    two = [Image.open(image(trained))] * 2
    talk.ask("Which?", two)
    assert talk.turns[2] == "<image>\n<image>\nWhich?"


def test_template_of_the_checkpoint(trained, law_log):
    """Written at training; where a config is silent LLaVA-1.5's is taken, and said."""
    assert talking(trained, 1).answering.prompts.version == "v1"
    assert version_of("v1", "llama_2") == "llama_2"
    assert version_of(None) == "vicuna_v1"
    assert any("vicuna_v1" in line for line in law_log)
    with pytest.raises(UsageError, match="did you mean"):
        version_of("v1", "vicuna_v2")


def test_language_model_alone(trained, capsys):
    """Text works without a tower; an image is refused."""
    flags = ["--model-path", trained / "llm", "--query", "Hi.", "--max_new_tokens", 3]
    assert ask(capsys, *flags).out.endswith("\n")
    with pytest.raises(UsageError, match="no vision tower"):
        chat([str(flag) for flag in [*flags, "--image-file", image(trained)]])


@pytest.mark.parametrize(
    ("name", "says"),
    [("https://a/b.png", "download it first"), ("gone.png", "gone.png: cannot be read")],
)
def test_images_that_are_none(trained, name, says):
    """Addresses and missing files, before a model is loaded."""
    with pytest.raises(LawError, match=says):
        chat(["--model-path", "no-model", "--query", "?", "--image-file", name])
    with pytest.raises(LawError, match="--image-file"):
        chat(["--model-path", "x", "--query", "?", "--image-file", str(trained / "captions.json")])
