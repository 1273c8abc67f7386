"""Vectors of texts and images: transformers' own hidden states, whatever stands beside a row."""

import pytest
import torch
from PIL import Image
from world import make_world, stage1, stage2

from llava.errors import LawError, UsageError
from llava.eval.embedding import Embedder, Entry, instruction, load_embedder
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.tokenization import tokenizer_image_token
from llava.train.train import main as train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world with a stage 2."""
    root = make_world(tmp_path_factory.mktemp("embedding"))
    train(stage1(root, root / "stage1"))
    train(stage2(root, root / "stage2", root / "stage1" / "mm_projector.bin"))
    return root


@pytest.fixture(scope="module")
def loaded(world):
    """Tokenizer, model and image processor."""
    return load_pretrained_model(str(world / "stage2"))[:3]


@pytest.fixture
def embedder(loaded):
    """One row at a time."""
    return Embedder.of(*loaded)


def opened(world, number):
    """Opens an image of the world."""
    return lambda: Image.open(world / "images" / f"{number}.png").convert("RGB")


def last_hidden(loaded, text, image=None):
    """[H]: what transformers gives for the last token, of length one."""
    tokenizer, model, processor = loaded
    ids = tokenizer_image_token(text, tokenizer, return_tensors="pt")[None]
    given = {}
    if image is not None:
        given["images"] = process_images([image], processor, model.config)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, **given).hidden_states[-1]
    return states[0, -1] / states[0, -1].norm()


def test_instruction():
    """VLM2Vec's words; a question's own image marks are not asked."""
    asked = "Represent the given image with the following question: What is it?"
    assert instruction("<image>\nWhat is it?") == asked
    assert instruction("<image>\n") == instruction() == "Represent the given image."


def test_last_hidden_state(world, loaded, embedder):
    """Of a text alone and of an image with its instruction; a row of one token less is another."""
    question = instruction("What is it?")
    found = embedder.embed([Entry("a red fox."), Entry(question, opened(world, 3))])
    torch.testing.assert_close(found[0], last_hidden(loaded, "a red fox."), atol=1e-6, rtol=0)
    expected = last_hidden(loaded, f"<image> {question}", opened(world, 3)())
    torch.testing.assert_close(found[1], expected, atol=1e-6, rtol=0)
    other = last_hidden(loaded, f"<image> {question[:-1]}", opened(world, 3)())
    assert (found[1] - other).abs().max() > 1e-3


@pytest.mark.parametrize("size", [2, 5, 64])
def test_batch_is_single(size, world, loaded, embedder):
    """Images and texts of any length beside each other, in the order they came in."""
    entries = [
        Entry("a"),
        Entry(
            instruction("Is the fox to the left of or to the right of the box?"), opened(world, 1)
        ),
        Entry("sits on the blue box and eats one green apple near two old trees"),
        Entry(instruction(), opened(world, 2)),
        Entry(instruction(), opened(world, 1)),
    ]
    alone = embedder.embed(entries)
    together = Embedder.of(*loaded, batch_size=size).embed(entries)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(5))
    assert (alone[3] - alone[4]).abs().max() > 1e-4


def test_long_texts_are_cut(loaded):
    """To the first tokens, and counted."""
    short = Embedder.of(*loaded, max_length=4)
    found = short.embed([Entry("a red fox sits on the blue box"), Entry("a")])
    assert short.cut == 1
    ids = tokenizer_image_token("a red fox sits on the blue box", loaded[0])[:4]
    with torch.no_grad():
        states = loaded[1](torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    expected = states[0, -1] / states[0, -1].norm()
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)


def test_refused(world, loaded, embedder):
    """Empty texts, vectors that are no numbers, and what is no LLaVA."""
    with pytest.raises(LawError, match="item 3: its text is empty"):
        embedder.embed([Entry(" <image> ", where="item 3")])
    with pytest.raises(UsageError, match="without a vision tower"):
        load_embedder(str(world / "llm"))
    weight = loaded[1].base_model.norm.weight
    before = weight.detach().clone()
    try:
        weight.data[0] = float("nan")
        with pytest.raises(LawError, match="a red fox: the model gives NaN"):
            embedder.embed([Entry("a red fox")])
    finally:
        weight.data.copy_(before)
