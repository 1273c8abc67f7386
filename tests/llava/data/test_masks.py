"""Ids and labels equal the reference's golden ones; only answers are supervised, whatever they say.

The tricky cases are run with both behaviours of the LLaMA tokenizer (`legacy` true and false).
"""

import copy
import functools
import gzip
import json
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import CHATML, GOLDEN, LLAMA, byte_level_folder, llama_folder

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.data.masks import Labeller, SampleError
from llava.errors import LawError, UnknownNameError
from llava.tokenization import load_tokenizer, tokenizer_image_token

CASES = {
    case["id"]: case
    for case in json.loads(gzip.decompress((GOLDEN / "masks.json.gz").read_bytes()))
}
LEGACY = ("32k_legacy_true", "32k_legacy_false")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Name -> tokenizer, the golden ones and two byte-level ones."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {name: llama_folder(name, root / name) for name in LLAMA}
    folders["byte_level"] = byte_level_folder(root / "byte_level")
    folders["byte_level_bos"] = byte_level_folder(root / "bos", bos=True)
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def labellers(tokenizers):
    """(name of a tokenizer, version) -> labeller, made once."""
    return functools.cache(lambda name, version: Labeller(tokenizers[name], version))


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation of these texts, human first."""
    return [
        {"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)
    ]


def supervised(labeller: Labeller, tokenizer, conversations, has_image=False) -> str:
    """The text of the supervised ids, special tokens included."""
    found = labeller(conversations, has_image)
    ids = [label for label in found.labels if label != IGNORE_INDEX]
    return tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)


# ------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("version", ["plain", "v1", "llama_2"])
@pytest.mark.parametrize("name", LLAMA)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_golden(labellers, case, name, version):
    """Ids exactly; labels exactly, but where the reference's are of no matter (<unk>, images).

    Where the reference lost the mask of a sample, labels are those it would have with each answer
    and its end token. `plain` without `<image>` follows the Law tree, which takes it.
    """
    labeller = copy.copy(labellers(name, version))
    labeller.max_length = case["model_max_length"]
    expected = case["results"][name][version]
    expected = case.get("fork_results", {}).get(name, {}).get(version, expected)
    if "error" in expected:
        with pytest.raises(SampleError):
            labeller(case["conversations"], case["has_image"])
        return
    found = labeller(case["conversations"], case["has_image"])
    ids, labels = expected["input_ids"], expected.get("ideal_labels", expected["labels"])
    if not case["has_image"]:  # the reference cuts `plain` later, when it makes a batch
        ids, labels = ids[: case["model_max_length"]], labels[: case["model_max_length"]]
    assert found.input_ids == ids
    free = (0, IMAGE_TOKEN_INDEX)
    compared = [i for i, token in enumerate(ids) if token not in free]
    assert [found.labels[i] for i in compared] == [labels[i] for i in compared]
    assert len(found.labels) == len(ids)


@pytest.mark.parametrize("version", ["v1", "llama_2"])
@pytest.mark.parametrize("case", [c for c in CASES.values() if c["prompts"]], ids=lambda c: c["id"])
def test_golden_prompts(labellers, case, version):
    """The text, character by character."""
    labeller = labellers("tiny_legacy_true", version)
    pieces = labeller.segments(case["conversations"], case["has_image"])
    assert "".join(piece.text for piece in pieces) == case["prompts"][version]


def test_golden_cases_are_all_there():
    """49 conversations, and some of every kind."""
    assert len(CASES) == 49
    kinds = [r for c in CASES.values() for t in c["results"].values() for r in t.values()]
    assert sum("error" in r for r in kinds) > 100
    assert sum("ideal_labels" in r for r in kinds) > 50
    assert sum("fork_results" in c for c in CASES.values()) > 3


# ------------------------------------------------------------- tricky cases of the reference


@pytest.fixture(params=LEGACY)
def tokenizer(request, tokenizers):
    """The 32k tokenizer, `legacy` true and false."""
    return tokenizers[request.param]


def test_plain(tokenizer):
    """1: the instruction goes, the image and BOS are masked, the newline is supervised."""
    labeller = Labeller(tokenizer, "plain")
    found = labeller(turns("Describe the image concisely.\n<image>", "a red fox."), True)
    assert found.input_ids == [1, -200, 264, 2760, 285, 1142, 28723, 13]
    assert found.labels == [-100, -100, *found.input_ids[2:]]


def test_plain_without_image(tokenizer, law_log):
    """2: the human text stays and is masked; said once, not for every record."""
    labeller = Labeller(tokenizer, "plain")
    said = supervised(labeller, tokenizer, turns("Say hi.", "hello there"))
    assert said.strip() == "hello there"
    labeller(turns("Say hi.", "hello there"), False)
    assert law_log == [
        "WARNING: records without <image> under the template 'plain' keep their human text, "
        "unsupervised"
    ]


def test_plain_with_four_turns(tokenizer):
    """3: an error of this sample, which names its turns."""
    with pytest.raises(SampleError, match="this record has human, gpt, human, gpt"):
        Labeller(tokenizer, "plain")(turns("<image>", "a", "b", "c"), True)


def test_one_round(tokenizer):
    """4: exactly the answer and its end token, five of fifty."""
    found = Labeller(tokenizer, "v1")(turns("<image>\nWhat is this?", "A fox."), True)
    ids = [label for label in found.labels if label != IGNORE_INDEX]
    assert found.labels == [IGNORE_INDEX] * (len(found.labels) - len(ids)) + ids
    assert ids == found.input_ids[-5:] == [330, 285, 1142, 28723, 2]


def test_three_rounds(tokenizer):
    """5: ten supervised tokens in both; `legacy` has two more, which are human's."""
    said = ["<image>\nWhat is this?", "A fox.", "Why?", "Because.", "Sure?", "Yes"]
    labeller = Labeller(tokenizer, "v1")
    found = labeller(turns(*said), True)
    assert sum(label != IGNORE_INDEX for label in found.labels) == 10
    assert supervised(labeller, tokenizer, turns(*said), True) == "A fox.</s> Because.</s> Yes</s>"


@pytest.mark.parametrize(
    "answer",
    ["he said ASSISTANT: hm", "one</s>two", "say <unk> now", "a <s> b", "x USER: y", "[/INST] z"],
)
@pytest.mark.parametrize("version", ["v1", "llama_2", "mistral_instruct"])
def test_answers_with_separators(tokenizer, version, answer):
    """6: the reference drops such samples; here they keep their labels, the next round, too."""
    labeller = Labeller(tokenizer, version)
    found = labeller(turns("<image>\nq", answer, "p", "Yes."), True)
    said = [segment.text for segment in labeller.segments(turns("q", answer, "p", "Yes."), False)]
    expected = [
        token
        for text in said
        if text.strip().startswith((answer, "Yes."))
        for token in encode_inside(labeller, text)
    ]
    assert [label for label in found.labels if label != IGNORE_INDEX] == expected


def encode_inside(labeller: Labeller, text: str) -> list[int]:
    """Ids of a piece as they are behind other text, which ends in ':' or ']'."""
    ids = labeller._encoder.encode("x:" + text, first=False).ids
    return ids[len(labeller._encoder.encode("x:", first=False).ids) :]


def test_last_turn_human(tokenizer):
    """6: the answers before it are supervised."""
    said = supervised(Labeller(tokenizer, "v1"), tokenizer, turns("q", "A fox.", "and?"))
    assert said == "A fox.</s>"


def test_first_turn_gpt(tokenizer):
    """7: dropped, the rest is as if it had not been there."""
    labeller = Labeller(tokenizer, "v1")
    rest = turns("<image>\nq", "A fox.")
    assert labeller([{"from": "gpt", "value": "hm"}, *rest], True) == labeller(rest, True)


def record(*who: str) -> list[dict[str, str]]:
    """A conversation of these speakers."""
    return [{"from": name, "value": "text"} for name in who]


@pytest.mark.parametrize(
    ("conversations", "error"),
    [
        (record("human", "human", "gpt"), "turn 1 is from 'human', as the one before it is"),
        (record("gpt", "gpt"), "turn 1 is from 'gpt', as the one before it is"),
        (record("gpt"), "there is no turn from 'human'"),
        (record("system", "human", "gpt"), "turn 0 is from 'system'.* or use --version chat"),
        (record("human", "system"), "turn 1 is from 'system'; expected 'human' or 'gpt'"),
        (record("system"), "no turn but the system's"),
        (record("user", "assistant"), "turn 0 is from 'user'; expected 'human' or 'gpt'"),
        ([], "must be a list of turns"),
        (None, "must be a list of turns"),
        ("text", "must be a list of turns"),
        ([{"from": "human"}], "turn 0: expected {'from': ..., 'value': text}, got"),
        ([{"from": "human", "value": 3}], "turn 0: expected"),
        (["hello"], "turn 0: expected"),
        ([{"from": ["human"], "value": ""}], "turn 0 is from"),
        (turns("q", "half \ud83d of it"), "turn 1: character 5 is half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("version", ["v1", "llama_2", "mpt", "plain"])
def test_bad_records(tokenizer, version, conversations, error):
    """7: an error of this sample that says which turn, and what was expected."""
    one = error if version != "plain" else f"{error}|takes one 'human' turn and one 'gpt'"
    with pytest.raises(SampleError, match=one):
        Labeller(tokenizer, version)(conversations, False)


def test_text_is_cut_and_images_are_not(tokenizer):
    """8: text at 80 tokens with the surviving answer's labels; with an image nothing is cut."""
    text = turns("q " * 30, "lantern " * 50)
    whole, cut = (Labeller(tokenizer, "v1", length)(text, False) for length in (None, 80))
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:80], whole.labels[:80])
    assert sum(label != IGNORE_INDEX for label in cut.labels) == 12
    image = turns("<image>\n" + "q " * 30, "lantern " * 50)
    assert len(Labeller(tokenizer, "v1", 80)(image, True).input_ids) > 130


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", [1]),
        ("<image>", [1, -200]),
        ("<image><image>", [1, -200, -200]),
        ("hi <image>", [1, 12014, 28705, -200]),
    ],
)
def test_prompts_with_images(tokenizer, prompt, ids):
    """9: BOS once, and the space before an image as a token."""
    assert tokenizer_image_token(prompt, tokenizer) == ids


def test_nothing_left_to_learn(tokenizer):
    """12: all answers cut away or empty: labels without any id, and no error."""
    found = Labeller(tokenizer, "v1", 20)(turns("q " * 30, "a"), False)
    assert set(found.labels) == {IGNORE_INDEX} and len(found.labels) == 20
    assert set(Labeller(tokenizer, "v1")(turns("q", ""), False).labels) == {IGNORE_INDEX}


# ------------------------------------------------------------------------------ images in turns


def text_of(labeller: Labeller, conversations, has_image) -> str:
    """The text that is tokenised, behind the system's."""
    text = "".join(piece.text for piece in labeller.segments(conversations, has_image))
    return text.partition("questions. ")[2]


def test_where_the_image_goes(tokenizer):
    """One image stands before its turn's text; several keep their places; without, it is a word."""
    labeller = Labeller(tokenizer, "v1")
    both = turns("left <image> and <image>", "a")
    assert text_of(labeller, both, True) == "USER: <image>\nleft  and ASSISTANT: a</s>"
    assert text_of(labeller, both, 1) == text_of(labeller, both, True)
    assert text_of(labeller, both, 2) == "USER: left <image> and <image> ASSISTANT: a</s>"
    assert labeller(both, 2).input_ids.count(IMAGE_TOKEN_INDEX) == 2
    assert IMAGE_TOKEN_INDEX not in labeller(both, False).input_ids


def test_marks_around_images(tokenizer):
    """<im_start> and <im_end>, and the <Image> of the mmtag templates."""
    one = turns("<image>\nq", "a")
    marked = Labeller(tokenizer, "v1", use_start_end=True)
    assert text_of(marked, one, True).startswith("USER: <im_start><image><im_end>\nq ")
    tagged = "".join(s.text for s in Labeller(tokenizer, "v1_mmtag").segments(one, True))
    assert "USER: <Image><image></Image>\nq ASSISTANT" in tagged
    both = "".join(
        s.text for s in Labeller(tokenizer, "v1_mmtag", use_start_end=True).segments(one, 1)
    )
    assert "USER: <Image><im_start><image><im_end></Image>\nq ASSISTANT" in both
    plain = Labeller(tokenizer, "plain", use_start_end=True)
    assert plain(turns("<image> <image>", "a"), 2).input_ids[:4] == [1, -200, -200, 264]
    assert plain(one, True).input_ids[:2] == [1, -200]


def test_an_image_in_an_answer_is_no_label(tokenizer):
    """Its place has no token that could be learnt."""
    found = Labeller(tokenizer, "v1")(turns("q", "here <image> it is"), True)
    assert found.input_ids.count(IMAGE_TOKEN_INDEX) == 1
    assert IMAGE_TOKEN_INDEX not in found.labels


# ------------------------------------------------------------------------------------ properties

WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        [" ASSISTANT: ", "USER:", "</s>", "[/INST]", "<|im_end|>", "\n", "  ", "1", "🦊"]
    ),
    st.sampled_from(["a copper kettle", " it is", "Why?"]),
)
TEXTS = st.lists(WORDS, min_size=1, max_size=5).map("".join)


@pytest.mark.parametrize("version", ["v1", "llama_2", "mpt", "plain"])
@pytest.mark.parametrize("name", ["32k_legacy_true", "32k_legacy_false", "byte_level_bos"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6))
@example(texts=["<image>\nq", "a</s>b ASSISTANT: c", "p", " 1 "])
def test_supervised_characters_are_the_answers(tokenizers, labellers, name, version, texts):
    """Every answer with its end, from first character to last, and nothing before it.

    Labels are the ids there, and the prompt that inference would give has the same ids. A token
    may reach over the end of an answer; where one reaches over its beginning, it is the prompt's.
    """
    texts = [text.replace("<image>", "") for text in texts]
    texts = texts[:2] if version == "plain" else texts
    texts[0] = "<image>" + texts[0]
    labeller = labellers(name, version)
    pieces = labeller.segments(turns(*texts), True)
    found = labeller(turns(*texts), True)
    text = "".join(piece.text for piece in pieces)
    assert tokenizer_image_token(text, tokenizers[name]) == found.input_ids
    spans = labeller._encode(text, True).spans
    mine = [piece.answer for piece in pieces for _ in piece.text]
    for token, label, (start, end) in zip(found.input_ids, found.labels, spans, strict=True):
        if start == end or token == IMAGE_TOKEN_INDEX:
            assert label == IGNORE_INDEX
        else:
            assert label == (token if mine[start] else IGNORE_INDEX)


@pytest.mark.parametrize("version", ["v1", "llama_2"])
@pytest.mark.parametrize("name", LEGACY)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.text("abc xyz.,é🦊日1\n", min_size=1), min_size=2, max_size=4))
def test_decoded_labels_are_the_answers(labellers, name, version, texts):
    """The pieces of the supervised ids, put together, are the answers with their ends."""
    labeller = labellers(name, version)
    conversations = turns("<image>\n" + texts[0], *texts[1:])
    pieces = labeller.segments(conversations, True)
    ids = [label for label in labeller(conversations, True).labels if label != IGNORE_INDEX]
    expected = "".join(piece.text for piece in pieces if piece.answer)
    processor = labeller._encoder._processor
    assert b"".join(piece_bytes(processor, token) for token in ids) == expected.encode()


def piece_bytes(processor, token: int) -> bytes:
    """What a piece stands for."""
    piece = processor.id_to_piece(token)
    return (
        bytes([int(piece[3:-1], 16)])
        if processor.is_byte(token)
        else (piece.replace("▁", " ").encode())
    )


@pytest.mark.parametrize("version", [*conv_templates, "chat"])
@pytest.mark.parametrize("name", ["tiny_legacy_false", "byte_level"])
def test_every_template(tokenizers, name, version):
    """Each gives labels of the two answers, in every tokenizer."""
    tokenizer = tokenizers[name]
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    labeller = Labeller(tokenizer, version)
    said = ("<image>\nWhat is it?", "a kettle", "Why?", "because")
    said = said[:2] if conv_templates.get(version, conv_templates["v1"]).sep == "\n" else said
    text = supervised(labeller, tokenizer, turns(*said), True)
    places = [text.index(answer) for answer in said[1::2]]
    assert places == sorted(places)
    assert not any(question in text for question in ("What", "Why"))


# ------------------------------------------------------------------------------ chat templates


def test_chat(tokenizers):
    """The tokenizer's own template: answers with the end mark, the image where it stands."""
    tokenizer = tokenizers["byte_level"]
    labeller = Labeller(tokenizer, "chat")
    said = turns("What is it? <image>", "A kettle.", "Why?", "It boils.")
    assert supervised(labeller, tokenizer, said, True) == "A kettle.<|im_end|>It boils.<|im_end|>"
    found = labeller(said, True)
    start = tokenizer("<|im_start|>user\n").input_ids
    assert found.input_ids[: len(start) + 1] == [*start, IMAGE_TOKEN_INDEX]


def test_chat_with_a_system_turn(tokenizers):
    """Goes to the template, and is not supervised."""
    tokenizer = tokenizers["byte_level"]
    said = [{"from": "system", "value": "Be brief."}, *turns("q", "a")]
    labeller = Labeller(tokenizer, "chat")
    assert supervised(labeller, tokenizer, said) == "a<|im_end|>"
    assert labeller.segments(said, False)[0].text.startswith("<|im_start|>system\nBe brief.")


def test_chat_writes_bos_once(tokenizers):
    """Where the template has it and the tokenizer adds it, too."""
    tokenizer = tokenizers["byte_level_bos"]
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    ids = Labeller(tokenizer, "chat")(turns("q", "a"), False).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chat_without_a_template(tokenizers, tmp_path):
    """Said when training begins, not sample by sample."""
    tokenizer = load_tokenizer(byte_level_folder(tmp_path, None))
    with pytest.raises(LawError, match="no chat template"):
        Labeller(tokenizer, "chat")


def test_chat_template_that_refuses(tmp_path):
    """Is an error of the sample."""
    template = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML
    labeller = Labeller(load_tokenizer(byte_level_folder(tmp_path, template)), "chat")
    assert labeller(turns("q", "a"), False).labels
    with pytest.raises(SampleError, match="too long"):
        labeller(turns("q", "a", "q", "a"), False)


# ----------------------------------------------------------------------------------------- misc


def test_unknown_version(tokenizers):
    """An error with the nearest name."""
    with pytest.raises(UnknownNameError, match="did you mean 'vicuna_v1'"):
        Labeller(tokenizers["tiny_legacy_true"], "vicuna_v2")


@pytest.mark.parametrize("version", ["v1", "plain", "chat"])
def test_pickles(tokenizers, version):
    """For a data loader's workers."""
    labeller = Labeller(tokenizers["byte_level"], version, 2048)
    said = turns("<image>\nq", "a kettle")
    assert pickle.loads(pickle.dumps(labeller))(said, True) == labeller(said, True)
