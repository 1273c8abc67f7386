"""Answers are found in what a chat template writes, or an error says why not."""

import pickle

import pytest
from texts import CHATML, byte_level_folder, llama_folder

from llava.chat_template import ChatTemplate
from llava.errors import LawError
from llava.tokenization import load_tokenizer

TURNS = ["<image>\nWhat is it?", "A kettle.", "assistant?", "  Yes, user.  "]

LLAMA_2_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and "
    "loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes an empty thought before the last answer only, as Qwen3's does."""
SHOUTING = CHATML.replace("m['content']", "m['content'] | upper")
REMEMBERING = "{{ messages | length }}" + CHATML
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
)
SILENT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def chat(folder, template: str) -> ChatTemplate:
    """The template in a byte-level tokenizer."""
    return ChatTemplate(load_tokenizer(byte_level_folder(folder, template)))


def split(template: ChatTemplate, turns: list[str], system: str | None = None) -> list[str]:
    """The pieces' texts, answers in angle quotes."""
    pieces = template.segments(turns, system)
    return [f"«{piece.text}»" if piece.answer else piece.text for piece in pieces]


def test_chatml(tmp_path):
    """The end mark is the answer's, the newline after it is not."""
    assert split(chat(tmp_path, CHATML), TURNS) == [
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        "«A kettle.<|im_end|>»",
        "\n<|im_start|>user\nassistant?<|im_end|>\n<|im_start|>assistant\n",
        "«  Yes, user.  <|im_end|>»",
        "\n",
    ]


def test_answers_stripped_and_bos_left_to_the_encoder(tmp_path):
    """The encoder writes <s>, so the text has none; the space before an answer is the answer's."""
    tokenizer = load_tokenizer(llama_folder("tiny_legacy_false", tmp_path))
    tokenizer.chat_template = LLAMA_2_LIKE
    template = ChatTemplate(tokenizer)
    assert split(template, TURNS) == [
        "[INST] <image>\nWhat is it? [/INST]",
        "« A kettle. </s>»",
        "[INST] assistant? [/INST]",
        "« Yes, user. </s>»",
    ]
    assert template.prompt(["hi"]) == "[INST] hi [/INST]"


def test_what_the_template_adds_before_an_answer_is_learnt(tmp_path):
    """The thought stands after the prompt of inference, so the model has to write it."""
    assert split(chat(tmp_path, THINKING), ["q", "a", "p", "think"]) == [
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "«a<|im_end|>»",
        "\n<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n",
        "«<think>\n\n</think>\n\nthink<|im_end|>»",
        "\n",
    ]


def test_without_marks(tmp_path):
    """A template that never asks leaves the role to the model; no end mark is made up."""
    assert split(chat(tmp_path, SILENT), ["q", "a"]) == ["user: q\n", "«assistant: a»", "\n"]


def test_system(tmp_path):
    """A system text is passed on; a template that takes none refuses with its own words."""
    found = split(chat(tmp_path / "a", CHATML), ["q", "a"], system="Be brief.")
    assert found[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq")
    with pytest.raises(LawError, match="refuses this conversation: no"):
        split(chat(tmp_path / "b", NO_SYSTEM), ["q", "a"], system="Be brief.")


def test_empty_and_missing_answers(tmp_path):
    """An empty answer teaches nothing; a last question has no answer."""
    template = chat(tmp_path, CHATML)
    assert [piece.answer for piece in template.segments(["q", "", "p", "a"])] == [
        False,
        True,
        False,
    ]
    assert [piece.answer for piece in template.segments(["q", "a", "p"])] == [False, True, False]
    assert [piece.answer for piece in template.segments(["q"])] == [False]


def test_prompt_of_inference(tmp_path):
    """What stands before each answer."""
    template = chat(tmp_path, CHATML)
    pieces = [piece.text for piece in template.segments(TURNS)]
    assert template.prompt(TURNS[:1]) == pieces[0]
    assert template.prompt(TURNS[:3]) == "".join(pieces[:3])


@pytest.mark.parametrize(
    ("template", "error"),
    [
        (SHOUTING, "turn 1: the chat template does not write this answer as it is"),
        (REMEMBERING, "turn 1: the chat template's prompt for this answer is not what stands"),
        ("{{ nothing.at.all }}", "the chat template refuses this conversation"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path, template, error):
    """An error names the turn, and what to choose."""
    with pytest.raises(LawError, match=error):
        chat(tmp_path, template).segments(["q", "a"])


def test_no_template(tmp_path):
    """The error says what to choose in its place."""
    with pytest.raises(LawError, match="no chat template; choose one of LLaVA's with --version"):
        chat(tmp_path, "")


def test_pickles(tmp_path):
    """For a data loader's workers."""
    template = chat(tmp_path, CHATML)
    assert pickle.loads(pickle.dumps(template)).segments(TURNS) == template.segments(TURNS)
