"""Templates equal LLaVA's; prompts are made of pieces that know whether they are an answer."""

import json

import pytest
from texts import GOLDEN

from llava.conversation import (
    SeparatorStyle,
    conv_templates,
    default_conversation,
    template,
)
from llava.errors import UnknownNameError

FACTS = json.loads((GOLDEN / "conversation_templates.json").read_text())


@pytest.mark.parametrize("name", FACTS)
def test_templates_are_llavas(name):
    """System texts character by character, roles, separators, style and version."""
    ours, theirs = conv_templates[name], FACTS[name]
    assert ours.sep_style is SeparatorStyle[theirs["style"]]
    assert ours.roles == tuple(theirs["roles"])
    for key in ("system", "sep", "sep2", "version"):
        assert getattr(ours, key) == theirs[key], key


def test_names():
    """All of LLaVA's and no other; the default is Vicuna's."""
    assert set(conv_templates) == set(FACTS)
    assert default_conversation is conv_templates["vicuna_v1"]


def prompt(name: str, *texts: str | None) -> str:
    """The prompt of these turns."""
    conversation = template(name)
    for index, text in enumerate(texts):
        conversation.append_message(conversation.roles[index % 2], text)
    return conversation.get_prompt()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v1", "{S} USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:"),
        ("llama_2", "[INST] <<SYS>>\n{S}\n<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q2 [/INST]"),
        ("mistral_instruct", "[INST] q1 [/INST] a1 </s>[INST] q2 [/INST]"),
        (
            "mpt",
            "{S}<|im_end|><|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
            "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
        ),
        ("v0", "{S}###Human: q1###Assistant: a1###Human: q2###Assistant:"),
        ("plain", "q1a1\nq2"),
    ],
)
def test_prompts_for_inference(name, expected):
    """A last answer of None leaves the prompt where the model goes on."""
    system = conv_templates[name].system
    assert prompt(name, "q1", "a1", "q2", None) == expected.replace("{S}", system)


@pytest.mark.parametrize("name", conv_templates)
def test_what_stands_before_an_answer_is_its_prompt(name):
    """For the first and for the second answer, in every template."""
    conversation = template(name)
    texts = ["q1", "a1", "q2", "a2"]
    for index, text in enumerate(texts):
        conversation.append_message(conversation.roles[index % 2], text)
    pieces = conversation.segments()
    answers = [index for index, piece in enumerate(pieces) if piece.answer]
    before = ["".join(piece.text for piece in pieces[:index]) for index in answers]
    assert before == [prompt(name, "q1", None), prompt(name, "q1", "a1", "q2", None)]
    assert ["a1" in pieces[answers[0]].text, "a2" in pieces[answers[1]].text] == [True, True]


def test_empty_turns():
    """As in LLaVA a role without an end mark, and nothing in LLAMA_2 but the first."""
    system = conv_templates["v1"].system
    assert prompt("v1", "", "a") == f"{system} USER:ASSISTANT: a</s>"
    assert (
        prompt("v1", "q", "", "q2", "a") == f"{system} USER: q ASSISTANT:USER: q2 ASSISTANT: a</s>"
    )
    assert prompt("llama_2", "q", "a", "", "b").endswith("q [/INST] a </s> b </s>")
    assert prompt("plain", "<image>", "") == "<image>\n"
    assert prompt("plain", "<image>", None) == "<image>"


@pytest.mark.parametrize("text", ["s<s>s", "<<", "<s>", "<s><s>"])
def test_llama_2_eats_no_letters(text):
    """The first separator goes, and nothing of the text with it."""
    assert f"\n\n{text} [/INST] {text} </s>" in prompt("llama_2", text, text)
    assert prompt("mistral_instruct", text, text) == f"[INST] {text} [/INST] {text} </s>"


def test_copies_are_independent():
    """A template stays empty whatever is said in its copies."""
    first = template("v1")
    first.append_message("USER", "hi")
    second = first.copy()
    second.messages[0][1] = "changed"
    second.append_message("ASSISTANT", None)
    assert first.messages == [["USER", "hi"]]
    assert conv_templates["v1"].messages == []


@pytest.mark.parametrize(
    ("name", "near"), [("vicuna_v2", "vicuna_v1"), ("llama2", "llama_2"), ("V1", "v1")]
)
def test_unknown_version(name, near):
    """An error with the nearest name, where LLaVA silently takes vicuna_v1."""
    with pytest.raises(UnknownNameError, match=f"^unknown .* '{name}'; did you mean '{near}'"):
        template(name)
    with pytest.raises(KeyError, match=f"did you mean '{near}'"):
        conv_templates[name]
    assert name not in conv_templates
    assert conv_templates.get(name) is None
