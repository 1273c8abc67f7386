"""Prompts with images; tokenizers loaded and saved so that ids stay what they were."""

import json
import pickle

import pytest
import torch
from texts import GOLDEN, LLAMA, byte_level_folder, llama_folder

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import LawError, MissingPackageError
from llava.text_encoder import BackendEncoder, SentencePieceEncoder
from llava.tokenization import (
    encode_prompt,
    load_tokenizer,
    save_tokenizer,
    text_encoder,
    tokenizer_image_token,
)

CASES = json.loads((GOLDEN / "tokenize.json").read_text(encoding="utf-8"))
TEXT = "a  b</s>USER: x</s> 1987 <unk> y"
"""Its ids differ between `legacy` true, false, and transformers 5."""


@pytest.mark.parametrize("name", LLAMA)
def test_prompts_with_images(tmp_path, name):
    """Every golden prompt, and its spans within it."""
    tokenizer = load_tokenizer(llama_folder(name, tmp_path))
    for prompt, ids in CASES[name]["image_strings"]:
        assert tokenizer_image_token(prompt, tokenizer) == ids
        found = encode_prompt(prompt, tokenizer)
        images = [
            prompt[start:end]
            for token, (start, end) in zip(found.ids, found.spans, strict=True)
            if token == IMAGE_TOKEN_INDEX
        ]
        assert images == ["<image>"] * prompt.count("<image>")


def test_return_types(tmp_path):
    """A list, an int64 tensor for "pt", another index for the image; nothing else."""
    tokenizer = load_tokenizer(llama_folder("tiny_legacy_true", tmp_path))
    found = tokenizer_image_token("hi <image>", tokenizer, return_tensors="pt")
    assert found.dtype == torch.int64
    assert found.tolist() == tokenizer_image_token("hi <image>", tokenizer)
    assert tokenizer_image_token("<image>", tokenizer, image_token_index=-7) == [1, -7]
    with pytest.raises(ValueError, match="'np'; expected None or 'pt'"):
        tokenizer_image_token("hi", tokenizer, return_tensors="np")


def test_tokens_added_later(tmp_path):
    """The next prompt knows a token that was added after the first."""
    tokenizer = load_tokenizer(llama_folder("tiny_legacy_false", tmp_path))
    before = tokenizer_image_token("<im_start>", tokenizer)
    tokenizer.add_tokens(["<im_start>"], special_tokens=True)
    assert len(before) > 3
    assert tokenizer_image_token("<im_start>", tokenizer)[-1] == 512


@pytest.mark.parametrize(
    ("config", "expected"), [({"legacy": None}, True), ({"legacy": False}, False)]
)
def test_legacy_is_the_configs(tmp_path, config, expected):
    """Where nothing says, as transformers 4.38 took it: true; transformers 5 takes false."""
    encoder = text_encoder(load_tokenizer(llama_folder("32k_legacy_true", tmp_path, **config)))
    assert encoder.legacy is expected


def test_without_a_config_file(tmp_path):
    """transformers 5 would leave out the BOS without a word."""
    (llama_folder("32k_legacy_false", tmp_path) / "tokenizer_config.json").unlink()
    with pytest.raises(LawError, match=r"tokenizer\.model and no tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_without_protobuf(tmp_path, monkeypatch):
    """What to install, where transformers would ask for tiktoken."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install 'protobuf>=5'"):
        load_tokenizer(llama_folder("32k_legacy_false", tmp_path))


@pytest.mark.parametrize("add", [True, False])
def test_add_bos_token_is_honoured(tmp_path, add):
    """In the prompt's beginning, as everywhere else."""
    tokenizer = load_tokenizer(llama_folder("tiny_legacy_true", tmp_path, add_bos_token=add))
    assert tokenizer_image_token("<image>\na", tokenizer)[: 1 + add] == [1, -200][1 - add :]


def test_a_tokenizer_without_bos(tmp_path):
    """No BOS, no unknown token: the pad is the end token, and spans are there all the same."""
    tokenizer = load_tokenizer(byte_level_folder(tmp_path))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert isinstance(text_encoder(tokenizer), BackendEncoder)
    assert tokenizer_image_token("<image>", tokenizer) == [IMAGE_TOKEN_INDEX]
    assert tokenizer_image_token("a stove", tokenizer) == tokenizer("a stove").input_ids


def test_pad_policy(tmp_path):
    """A LLaMA tokenizer pads with its unknown token whatever it says; others keep their own."""
    llama = load_tokenizer(llama_folder("tiny_legacy_true", tmp_path / "a", pad_token="</s>"))
    assert (llama.pad_token_id, llama.padding_side) == (0, "right")
    own = load_tokenizer(byte_level_folder(tmp_path / "b", pad_token="<|endoftext|>"))
    assert (own.pad_token, own.padding_side) == ("<|endoftext|>", "right")
    with pytest.raises(LawError, match="neither a pad, an unknown nor an end token"):
        load_tokenizer(byte_level_folder(tmp_path / "c", eos_token=None))


def test_maximum_length(tmp_path):
    """As asked for; else the folder's."""
    folder = llama_folder("tiny_legacy_true", tmp_path, model_max_length=77)
    assert load_tokenizer(folder).model_max_length == 77
    assert load_tokenizer(folder, model_max_length=2048).model_max_length == 2048


@pytest.mark.parametrize("name", LLAMA)
def test_saved_tokenizers_read_the_same(tmp_path, name):
    """Saved, loaded, saved again into its own folder and loaded: ids and `legacy` stay."""
    tokenizer = load_tokenizer(llama_folder(name, tmp_path / "a"))
    expected = tokenizer_image_token(TEXT, tokenizer)
    save_tokenizer(tokenizer, tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    save_tokenizer(again, tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert tokenizer_image_token(TEXT, again) == expected
    assert text_encoder(again).legacy is name.endswith("true")
    assert again.pad_token == "<unk>"
    facts = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert (facts["tokenizer_class"], facts["add_bos_token"]) == ("LlamaTokenizer", True)


def test_saved_with_added_tokens(tmp_path):
    """Image marks survive, in the file that transformers 4 reads, too."""
    tokenizer = load_tokenizer(llama_folder("tiny_legacy_false", tmp_path / "a"))
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    expected = tokenizer_image_token("<im_start><image><im_end> a", tokenizer)
    save_tokenizer(tokenizer, tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert tokenizer_image_token("<im_start><image><im_end> a", again) == expected
    facts = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert facts["added_tokens_decoder"]["512"]["content"] == "<im_start>"


def test_saved_byte_level(tmp_path):
    """A tokenizer without tokenizer.model is saved by transformers alone."""
    tokenizer = load_tokenizer(byte_level_folder(tmp_path / "a", bos=True))
    save_tokenizer(tokenizer, tmp_path / "b")
    assert not (tmp_path / "b" / "tokenizer.model").exists()
    again = load_tokenizer(tmp_path / "b")
    assert tokenizer_image_token(TEXT, again) == tokenizer_image_token(TEXT, tokenizer)


def test_text_changing_model(tmp_path, law_log):
    """A tokenizer.model that collapses spaces gives no spans: transformers' ids, and said."""
    from sentencepiece import sentencepiece_model_pb2

    path = llama_folder("tiny_legacy_true", tmp_path) / "tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    proto.normalizer_spec.remove_extra_whitespaces = True
    path.write_bytes(proto.SerializeToString())
    assert isinstance(text_encoder(load_tokenizer(tmp_path)), BackendEncoder)
    assert "changes text before it reads it" in law_log[-1]


def test_missing_and_damaged(tmp_path):
    """Each says which folder, and what one has to hold."""
    with pytest.raises(LawError, match=r"nowhere: .*no such folder .*tokenizer\.model or"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LawError, match="its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    folder = llama_folder("tiny_legacy_true", tmp_path / "config")
    tokenizer = load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(LawError, match="expected a JSON object"):
        text_encoder(tokenizer)


def test_code_of_a_tokenizer_is_not_run(tmp_path):
    """A folder that brings its own class is refused."""
    config = {
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
        "tokenizer_class": "Tokenizer",
    }
    byte_level_folder(tmp_path, **config)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\nclass Tokenizer: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "nothing", "auto_map": {}}')
    try:
        tokenizer = load_tokenizer(tmp_path)
    except LawError:
        return
    assert type(tokenizer).__module__.startswith("transformers.")


def test_encoders_pickle(tmp_path):
    """A prompt may be given an encoder in the tokenizer's place, in another process, too."""
    tokenizer = load_tokenizer(llama_folder("32k_legacy_false", tmp_path))
    encoder = pickle.loads(pickle.dumps(text_encoder(tokenizer)))
    assert isinstance(encoder, SentencePieceEncoder)
    assert tokenizer_image_token(TEXT, encoder) == tokenizer_image_token(TEXT, tokenizer)


@pytest.mark.slow
def test_tekken(tmp_path):
    """Mistral's tekken.json, though transformers gives it a class without spans."""
    data = pytest.importorskip("mistral_common").__path__[0] + "/data"
    (tmp_path / "tekken.json").symlink_to(f"{data}/tekken_240718.json")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    found = encode_prompt("A fox 🦊\n<image></s>", load_tokenizer(tmp_path))
    assert (found.ids[0], found.ids[-2:]) == (1, [IMAGE_TOKEN_INDEX, 2])
    assert found.spans[:3] == [(0, 0), (0, 1), (1, 5)]
