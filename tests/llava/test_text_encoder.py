"""Ids equal the slow LlamaTokenizer of transformers 4.38; spans tile the text."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import GOLDEN, LLAMA, byte_level_folder, llama_folder

from llava.errors import LawError
from llava.text_encoder import SentencePieceEncoder, SentencePieceModel
from llava.tokenization import load_tokenizer, text_encoder

CASES = json.loads((GOLDEN / "tokenize.json").read_text(encoding="utf-8"))
KINDS = (*LLAMA, "byte_level", "byte_level_bos")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Name -> encoder, the golden ones and two byte-level ones."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {name: llama_folder(name, root / name) for name in LLAMA}
    folders["byte_level"] = byte_level_folder(root / "byte_level")
    folders["byte_level_bos"] = byte_level_folder(root / "bos", bos=True)
    return {name: text_encoder(load_tokenizer(folder)) for name, folder in folders.items()}


@pytest.mark.parametrize("name", LLAMA)
def test_ids_are_the_references(encoders, name):
    """Every golden string, special tokens within it included."""
    found = [
        [text, encoders[name].encode(text, first=True).ids] for text, _ in CASES[name]["strings"]
    ]
    assert found == CASES[name]["strings"]


TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.sampled_from(["</s>", "<s>", "<unk>", " ", "  ", "\n", "▁", "🦊", "é", "<|im_end|>"]),
        st.sampled_from([" A copper", "kettle", " 1987", "USER: "]),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXTS)
@example(text="")
@example(text="</s> 1 </s>")
@example(text="🦊🦊</s>🦊")
def test_spans_tile_the_text(encoders, name, text):
    """No character is left out, none comes before an earlier one, and only BOS has none."""
    encoder = encoders[name]
    found = encoder.encode(text, first=True)
    assert len(found.ids) == len(found.starts) == len(found.ends)
    spans = found.spans
    if encoder.bos is not None:
        assert (found.ids[0], spans[0]) == (encoder.bos, (0, 0))
        spans = spans[1:]
    assert encoder.encode(text, first=False).ids == found.ids[len(found.ids) - len(spans) :]
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert np.all(np.diff(found.starts) >= 0) and np.all(np.diff(found.ends) >= 0)
    covered = {place for start, end in spans for place in range(start, end)}
    # NFC joins a letter with its accent; the joint has no token of its own.
    assert covered == set(range(len(text))) or not name.startswith(LLAMA)


def test_spans_by_hand(encoders):
    """A word has the space before it; every piece of a character has the character."""
    text = "a fox</s>🦊1"
    first = (0, 0)
    sure = [(0, 1), (1, 3), (3, 5), (5, 9)]  # a, fox in two, </s>
    found = encoders["32k_legacy_false"].encode(text, first=True)
    assert found.spans == [first, *sure, *[(9, 10)] * 4, (10, 11)]
    found = encoders["32k_legacy_true"].encode(text, first=True)  # a dummy space before the fox
    assert found.spans == [first, *sure, (9, 10), *[(9, 10)] * 4, (10, 11)]


def test_beginning_in(encoders):
    """The tokens whose first character is one of the stretch; BOS is of none."""
    found = encoders["32k_legacy_false"].encode("a fox</s>", first=True)
    assert found.beginning_in(0, 1) == slice(1, 2)
    assert found.beginning_in(1, 9) == slice(2, 5)
    assert found.beginning_in(2, 5) == slice(3, 4)
    assert found.beginning_in(2, 2).stop <= found.beginning_in(2, 2).start


@pytest.mark.parametrize("name", KINDS)
def test_pickles(encoders, name):
    """An encoder that a worker got gives the same."""
    text = "A copper </s> kettle 🦊"
    again = pickle.loads(pickle.dumps(encoders[name]))
    assert again.encode(text, first=True).spans == encoders[name].encode(text, first=True).spans
    assert again.encode(text, first=True).ids == encoders[name].encode(text, first=True).ids


def test_untrimmed_spans(encoders):
    """The byte-level backend would cut the spaces off, and a space of its own would have none."""
    found = encoders["byte_level"].encode("x   y", first=True)
    assert found.spans[0] == (0, 1)
    assert [end for _, end in found.spans][-1] == 5
    assert all(end > start for start, end in found.spans)


def encoder_with(folder, **tokens) -> SentencePieceEncoder:
    """The tiny encoder with one more special token, `<x>`, and who strips beside it."""
    model = SentencePieceModel(folder / "tokenizer.model")
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<x>": 512, "<xx>": 513}
    return SentencePieceEncoder(
        model, False, special, ["<s>", "</s>", "<unk>"], "<unk>", 1, **tokens
    )


def test_added_tokens(tmp_path):
    """The longest counts; one that is not named keeps the dummy space before it; strips strip."""
    folder = llama_folder("tiny_legacy_false", tmp_path)
    plain = encoder_with(folder)
    assert plain.encode("<xx>", first=False).ids == [444, 513]
    assert plain.encode("</s>", first=False).ids == [2]
    assert plain.encode("a <x>  b", first=False).spans[-2:] == [(5, 6), (6, 8)]
    both = encoder_with(folder, strip_left=["<x>"], strip_right=["<x>"])
    stripped = both.encode("a <x>  b", first=False)
    assert stripped.ids == [*plain.encode("a<x>b", first=False).ids]
    assert stripped.spans == [(0, 1), (2, 5), (7, 8)]


def test_damaged_model(tmp_path):
    """A file that is no model is named."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"no model")
    with pytest.raises(LawError, match=r"tokenizer\.model: is no sentencepiece model"):
        SentencePieceModel(path)
