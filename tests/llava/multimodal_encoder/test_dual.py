"""Both halves of CLIP and SigLIP give what transformers gives for them."""

import json

import duals
import pytest
import tiny
import torch
import transformers

from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder.dual import DualEncoder, build_dual, has_text
from llava.model.multimodal_encoder.registry import resolve

TEXTS = ["a red circle to the left of a blue square", "A dog.", "two dogs, above a cat"]
CLOSE = {"rtol": 0, "atol": 1e-6}
"""The same modules run on the same numbers."""
LIMITS = {"max_length": duals.LENGTH, "truncation": True, "return_tensors": "pt"}


@pytest.fixture(scope="module", params=duals.KINDS)
def folder(request, tmp_path_factory):
    """The folder of a tiny model."""
    return duals.save_dual(tmp_path_factory.mktemp("duals") / request.param, request.param)


@pytest.fixture(scope="module")
def dual(folder):
    """The same, read."""
    return build_dual(resolve(str(folder)).parts[0])


@pytest.fixture(scope="module")
def theirs(folder):
    """(model, tokenizer, image processor) of transformers."""
    return (
        transformers.AutoModel.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
    )


def own_texts(theirs, texts: list[str]) -> torch.Tensor:
    """As transformers' documentation has it: CLIP padded to the longest, SigLIP in full."""
    model, tokenizer, _ = theirs
    if model.config.model_type == "clip":
        given = tokenizer(texts, padding=True, **LIMITS)
    else:
        given = tokenizer([text.lower() for text in texts], padding="max_length", **LIMITS)
        given = {"input_ids": given["input_ids"]}
    with torch.no_grad():
        return model.get_text_features(**given).pooler_output


def test_images(dual, theirs):
    """Embeddings of pictures equal those of transformers' processor and model."""
    model, _, processor = theirs
    pictures = [tiny.picture(32 + 9 * i, 40, seed=i) for i in range(3)]
    with torch.no_grad():
        given = processor(pictures, return_tensors="pt")
        expected = model.get_image_features(**given).pooler_output
    embeddings = dual.images(dual.preprocess(pictures))
    assert embeddings.shape == (3, dual.text_dim)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=5e-6)  # pixels differ by 1e-7
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


def test_texts(dual, theirs):
    """Embeddings of captions too, alone or beside longer ones."""
    embeddings = dual.texts(TEXTS)
    assert embeddings.shape == (3, dual.text_dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, own_texts(theirs, TEXTS), **CLOSE)
    torch.testing.assert_close(dual.texts(TEXTS[1:2]), embeddings[1:2], **CLOSE)
    assert (embeddings[0] - embeddings[2]).abs().max() > 1e-3


def test_tokens(dual, theirs):
    """Last hidden states; CLIP's embedding is read off the last one that the mask keeps."""
    tokens, mask = dual.text_tokens(TEXTS)
    assert tokens.shape == (3, duals.LENGTH, dual.token_dim) and mask.dtype == torch.bool
    model, tokenizer, _ = theirs
    assert mask.sum(1).tolist() == [len(row) for row in tokenizer(TEXTS)["input_ids"]]
    last = tokens[range(3), mask.sum(1) - 1] if dual.spec.family == "clip" else tokens[:, -1]
    project = model.text_projection if dual.spec.family == "clip" else model.text_model.head
    with torch.no_grad():
        torch.testing.assert_close(project(last), dual.texts(TEXTS), **CLOSE)


def test_an_early_conversion(tmp_path):
    """OpenAI's own configs say that a text ends with id 2; it ends with its largest id."""
    folder = duals.save_dual(tmp_path / "clip", "clip")
    usual = build_dual(resolve(str(folder)).parts[0]).texts(TEXTS)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(build_dual(resolve(str(folder)).parts[0]).texts(TEXTS), usual)


def test_siglip_reads_its_padding(tmp_path):
    """As it was trained: the mask that transformers could be given would change the embedding."""
    folder = duals.save_dual(tmp_path / "s", "siglip")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXTS[1:2], padding="max_length", return_attention_mask=True, **LIMITS)
    with torch.no_grad():
        masked = model.get_text_features(**given).pooler_output
    ours = build_dual(resolve(str(folder)).parts[0]).texts(TEXTS[1:2])
    assert (masked - ours).abs().max() > 1e-3


def test_capitals_do_not_count(dual):
    """SigLIP 2 was trained on lower case; the tokenizers of the others see to it themselves."""
    torch.testing.assert_close(dual.texts(["A DOG."]), dual.texts(["a dog."]), **CLOSE)


def test_capitals_where_the_tokenizer_keeps_them(tmp_path):
    """Gemma's, which SigLIP 2's checkpoints name, does."""
    folder = duals.save_dual(tmp_path / "s", "siglip")
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"do_lower_case": False}))
    dual = build_dual(resolve(str(folder)).parts[0])
    assert dual.tokenizer("DOG")["input_ids"] != dual.tokenizer("dog")["input_ids"]
    assert torch.equal(dual.texts(["A DOG"]), dual.texts(["a dog"]))


def test_a_long_text_is_cut_off(folder, theirs, law_log):
    """As transformers truncates; said once, counted always, and a text that just fits is not it."""
    dual = build_dual(resolve(str(folder)).parts[0])
    long = ["ab" * duals.LENGTH, "b" * (2 * duals.LENGTH)]
    torch.testing.assert_close(dual.texts(long), own_texts(theirs, long), **CLOSE)
    dual.texts(long[:1])
    assert dual.truncated == 3
    assert [line for line in law_log if "cut off" in line] == [
        f"WARNING: {folder} takes {duals.LENGTH} tokens of a text; longer ones are cut off, such "
        f"as '{long[0][:60]}...'"
    ]
    marks = len(dual.tokenizer("c")["input_ids"]) - 1
    dual.texts(["c" * (duals.LENGTH - marks)])
    assert dual.text_tokens(["c" * (duals.LENGTH - marks)])[1].all()
    assert dual.truncated == 3


def test_frozen_and_in_its_dtype(folder):
    """Nothing of it is trained; embeddings are float32 whatever the weights are."""
    dual = build_dual(resolve(str(folder)).parts[0], dtype=torch.bfloat16)
    assert {p.dtype for p in dual.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in dual.model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert dual.images(torch.zeros(1, 3, 32, 32)).dtype == torch.float32
        assert dual.text_tokens(["a"])[0].dtype == dual.texts(["a"]).dtype == torch.float32


def test_another_frame(folder):
    """Preprocessing is the tower's own, in any frame."""
    spec = resolve(str(folder)).parts[0]
    wide = [tiny.picture(60, 30)]
    padded = build_dual(spec, "pad").preprocess(wide)
    assert (padded - build_dual(spec).preprocess(wide)).abs().max() > 0.1
    with pytest.raises(UsageError, match="unknown frame 'pat'; did you mean 'pad'"):
        build_dual(spec, "pat")


def test_weights_from_elsewhere(folder, dual):
    """A hub id whose weights are in a folder (--tower-alias)."""
    known = {
        "clip": "openai/clip-vit-large-patch14",
        "siglip": "google/siglip-base-patch16-224",
    }[dual.spec.family]
    (spec,) = resolve(known, replace={known: str(folder)}).parts
    assert has_text(spec)
    assert torch.equal(build_dual(spec).texts(TEXTS), dual.texts(TEXTS))
    assert build_dual(spec).text_digest == dual.text_digest


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_no_text_half(kind, tmp_path):
    """An image half alone, and a model that never had another."""
    (spec,) = resolve(str(tiny.save_encoder(tmp_path / kind, kind))).parts
    assert not has_text(spec)
    with pytest.raises(UsageError, match="no text half"):
        build_dual(spec)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"], "no vocabulary"),
        (["model.safetensors"], "the weights of .* cannot be read"),
    ],
)
def test_files_that_lack(tmp_path, remove, message):
    """Without its files, transformers would make a tokenizer of no words and give no error."""
    folder = duals.save_dual(tmp_path / "whole", "clip")
    (spec,) = resolve(str(folder)).parts
    for name in remove:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(LawError, match=message):
        DualEncoder(spec)


def test_a_wrong_tokenizer(tmp_path):
    """Ids beyond the vocabulary, or an end mark that the model does not know, are errors."""
    folder = duals.save_dual(tmp_path / "clip", "clip")
    for changes, message in (
        ({"vocab_size": 40}, "gives id 55, and the model has 40 tokens"),
        ({"eos_token_id": 7}, "does not end 'A dog.' with id 7, which its config.json has"),
    ):
        dual = build_dual(resolve(str(folder)).parts[0])
        for name, value in changes.items():
            setattr(dual.model.config.text_config, name, value)
        with pytest.raises(LawError, match=message):
            dual.texts(["A dog."])
