"""What a model is asked in: image marks, the end of an answer, templates without a question."""

import shutil
from types import SimpleNamespace

import pytest
from world import TOKENIZER

from llava.data.masks import Labeller
from llava.errors import LawError
from llava.eval.prompts import Prompts, is_plain
from llava.tokenization import load_tokenizer

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path):
    """Of 512 pieces."""
    for file in (TOKENIZER / "tiny_legacy_false").iterdir():
        shutil.copy(file, tmp_path / file.name)
    shutil.copy(TOKENIZER / "tokenizer_tiny.model", tmp_path / "tokenizer.model")
    return load_tokenizer(str(tmp_path))


def prompts(tokenizer, version="v1", **config):
    """Under a config of these fields."""
    return Prompts(tokenizer, SimpleNamespace(**config), version)


@pytest.mark.parametrize("start_end", [False, True])
@pytest.mark.parametrize("version", ["v1", "v1_mmtag"])
def test_marks_are_those_of_training(tokenizer, start_end, version):
    """As labels are made, also where the images stand in the text; else they are put before it."""
    asking = prompts(tokenizer, version, mm_use_im_start_end=start_end)
    labeller = Labeller(tokenizer, version, use_start_end=start_end)

    def trained(text, images):
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A fox."}]
        return "".join(segment.text for segment in labeller.segments(turns, images))

    for text, images, said in (
        ("What?", 1, "<image>\nWhat?"),
        ("First <image>, then <image>: same?", 2, "First <image>, then <image>: same?"),
        ("Which?", 2, "<image> <image>\nWhich?"),
    ):
        marked = asking.with_images(text, images, " ")
        assert trained(said, images).startswith(asking.prompt([marked]))
    assert asking.with_images("Say fox.", 0) == "Say fox."


def test_labels_are_of_the_last_answer(tokenizer):
    """Earlier answers are given; an empty one has nothing to score."""
    asking = prompts(tokenizer)
    found = asking.labelled(["Who?", "a fox", "Sure?", "Yes"])
    said = [label for label in found.labels if label >= 0]
    assert tokenizer.decode(said) == "Yes</s>"
    begun = asking.ids(["Who?", "a fox", "Sure?"]).tolist()
    assert found.input_ids[: len(begun)] == begun
    with pytest.raises(LawError, match="the answer is empty"):
        asking.labelled(["Who?", "a fox", "Sure?", ""])


@pytest.mark.parametrize("version", ["v1", "v0", "llama_2", "mpt", "plain", "chat"])
def test_an_answer_without_its_end(tokenizer, version):
    """In any template: the same answer, after the same prompt, and nothing behind it."""
    tokenizer.chat_template = CHAT
    asking = prompts(tokenizer, version)
    ends = ["Which letter?", "s"], ["Which letter?", "i"]  # that are in end marks, too
    for turns in (["Who eats?", "a red fox"], ["Who?", "Yes", "Sure?", "Yes"], *ends):
        found = asking.labelled(turns, end=False)
        said = [label for label in found.labels if label >= 0]
        assert tokenizer.decode(said).strip() == turns[-1]
        assert found.input_ids[-len(said) :] == said
        begun = asking.ids(turns[:-1]).tolist()
        whole = asking.labelled(turns).input_ids
        if version != "plain":  # which takes two turns, and four here are of no record
            assert begun == found.input_ids[: len(begun)] == whole[: len(begun)]
        assert len(whole) > len(found.input_ids)


def test_what_ends_an_answer(tokenizer):
    """The template's own mark, where it is not the tokenizer's."""
    assert prompts(tokenizer).stop == ""
    assert prompts(tokenizer, "v0").stop == "###"
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert prompts(tokenizer, "chat").stop == "<|im_end|>"


def test_templates_of_captions_alone(tokenizer, law_log):
    """They have no place for a question; that one is left out is said."""
    assert [is_plain(name) for name in ("plain", "v0_plain", "v1", "chat")] == [
        True,
        True,
        False,
        False,
    ]
    asking = prompts(tokenizer, "plain")
    assert asking.with_images("", 2) == "<image><image>"
    assert not law_log
    assert asking.with_images("How many?", 1) == "<image>"
    assert any("'How many?' is not asked" in line for line in law_log)
    assert asking.with_images("Once upon", 0) == "Once upon"
