"""Vectors of captions by every source, and heads that come back from their folders with them."""

import json

import duals
import numpy as np
import pytest
import torch
import transformers
from tiny_world.tokenizer import save_tokenizer

from llava.config import build
from llava.errors import ConfigError, LawError, UsageError
from llava.model.contrastive.config import HeadConfig, TextConfig
from llava.model.contrastive.model import Head
from llava.model.contrastive.saved import load_head, save_head
from llava.model.contrastive.texts import moved_text, text_source
from llava.model.multimodal_encoder.dual import build_dual
from llava.model.multimodal_encoder.registry import resolve

CAPTIONS = ["A dog.", "two dogs, above a cat", "a red circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`clip` and `llm`, tiny."""
    folder = tmp_path_factory.mktemp("texts")
    duals.save_dual(folder / "clip", "clip")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=500,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llm")
    save_tokenizer(folder / "llm", "small")
    return folder


def source(folders, name):
    return text_source(TextConfig(name, str(folders / name)))


def test_clip_gives_its_own(folders):
    texts = source(folders, "clip")
    dual = build_dual(resolve(str(folders / "clip")).parts[0])
    torch.testing.assert_close(texts.vectors(CAPTIONS), dual.texts(CAPTIONS), rtol=0, atol=0)
    assert texts.dim == texts.vectors(CAPTIONS).shape[1]
    tokens, mask = texts.tokens(CAPTIONS)
    assert tokens.shape == (*mask.shape, texts.token_dim)


def test_a_language_models_mean_sees_no_padding(folders):
    texts = source(folders, "llm")
    together, alone = texts.vectors(CAPTIONS), [texts.vectors([one])[0] for one in CAPTIONS]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)
    states, mask = texts.tokens(CAPTIONS)
    assert mask.sum(1).unique().numel() > 1
    torch.testing.assert_close(states[0][mask[0]].mean(0), together[0])


def write(folder, array, captions):
    np.save(folder / "v.npy", array, allow_pickle=array.dtype == object)
    (folder / "c.json").write_text(json.dumps(captions))
    return TextConfig("file", vectors=folder / "v.npy", captions=folder / "c.json")


def test_vectors_of_a_file(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    texts = text_source(write(tmp_path, rows, CAPTIONS))
    found = texts.vectors([CAPTIONS[2], CAPTIONS[0]])
    assert found.tolist() == rows[[2, 0]].tolist()
    assert found.dtype == torch.float32
    with pytest.raises(LawError, match="'A cat' is none of the 3"):
        texts.vectors(["A cat"])
    with pytest.raises(UsageError, match="take text source clip or llm"):
        texts.tokens(CAPTIONS)


@pytest.mark.parametrize(
    ("array", "captions", "expected"),
    [
        (np.zeros((2, 4)), CAPTIONS, "2 rows and .* 3 captions"),
        (np.zeros(3), CAPTIONS, "expected floats"),
        (np.zeros((3, 4), int), CAPTIONS, "expected floats"),
        (np.zeros((3, 4)), ["a", "a", "b"], "twice"),
        (np.zeros((3, 4)), {"a": 1}, "expected a JSON list"),
        (np.array([{}], object), ["a"], "cannot be read as .npy"),
    ],
)
def test_files_that_do_not_fit(tmp_path, array, captions, expected):
    with pytest.raises(LawError, match=expected):
        text_source(write(tmp_path, array, captions))


def test_rows_that_are_not_finite(tmp_path):
    texts = text_source(write(tmp_path, np.array([[1.0], [np.nan], [2.0]]), CAPTIONS))
    assert texts.vectors(CAPTIONS[:1]).tolist() == [[1]]
    with pytest.raises(LawError, match="row 1 holds NaN"):
        texts.vectors(CAPTIONS)


def test_a_table_learns():
    texts = text_source(TextConfig("table", width=4), CAPTIONS)
    assert [name for name, _ in texts.named_parameters()] == ["table.weight"]
    torch.testing.assert_close(texts.vectors(CAPTIONS[1:]), texts.table.weight[1:])
    with pytest.raises(LawError, match="expected some, each once"):
        text_source(TextConfig("table"), [])


HEADS = [
    {"pooling": "softmax"},
    {"pooling": "sigmoid", "weights_from": "own", "test_pooling": "sum"},
    {"loss": "siglip", "learned_temperature": True, "rope": True},
    {"kind": "sparc"},
    {"kind": "sparc", "mean_over": "all", "test_score": "global", "loss": "siglip"},
]


@pytest.mark.parametrize("facts", HEADS, ids=str)
@pytest.mark.parametrize("name", ["clip", "llm"])
def test_heads_come_back(folders, facts, name, tmp_path):
    """Every kind learns something finite, and its scores are the same out of a folder."""
    text = {"source": name, "model": str(folders / name)}
    if name == "llm" and facts.get("mean_over") == "all":
        with pytest.raises(ConfigError, match="whose texts are all of one length"):
            build(HeadConfig, {"text": text, **facts})
        return
    config = build(HeadConfig, {"width": 8, "text": text, **facts})
    representation = resolve(str(folders / "clip"))
    torch.manual_seed(0)
    head = Head(config, representation.dim, text_source(config.text))
    tokens = torch.randn(3, 5, representation.dim)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(15):
        loss = head.loss(tokens, CAPTIONS, ["a blue square"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {"bias", "log_scale"} if config.learned_temperature else set()
    start = {"log_scale": -np.log(config.temperature), "bias": config.bias}
    for key, value in start.items():
        assert (abs(getattr(head, key).item() - value) > 1e-3) == (key in moved)
    save_head(tmp_path, head.eval(), representation, "own", "float32", {})
    saved = load_head(tmp_path)
    assert saved.representation == representation
    with torch.no_grad():
        one, other = (
            each.scores(each.patches(tokens), each.embed(CAPTIONS)) for each in (head, saved.head)
        )
        alone = torch.cat(
            [head.scores(head.patches(tokens), head.embed([one])) for one in CAPTIONS], 1
        )
    assert one.shape == (3, 3)
    assert one.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(alone, one, rtol=1e-4, atol=1e-5)


def test_test_pooling(folders):
    """Weighed in training, a plain sum in scores."""
    text = TextConfig("table", width=4)
    torch.manual_seed(0)
    config = HeadConfig(width=8, pooling="sigmoid", test_pooling="sum", dropout=0.0, text=text)
    head = Head(config, 6, text_source(text, CAPTIONS))
    patches, texts = head.patches(torch.randn(2, 5, 6)), head.embed(CAPTIONS)
    found = head.scores(patches, texts)
    expected = torch.nn.functional.cosine_similarity(
        patches.sum(1)[:, None], texts.rows[:, 0][None], dim=2
    )
    torch.testing.assert_close(found, expected)


def test_where_a_model_is(tmp_path):
    """By the name that the config has, or the id it stands for; towers keep what is theirs."""
    full = "openai/clip-vit-large-patch14-336"
    aliases = {full: "here", "other/tower": "there"}
    for name in ("clip336", full):
        config = TextConfig("clip", name)
        moved, left = moved_text(config, aliases, ["other/tower"])
        assert (moved.model, left) == ("here", {"other/tower": "there"})
        moved, left = moved_text(config, aliases, ["other/tower", full])
        assert (moved.model, left) == ("here", aliases)
    gone = TextConfig("clip", str(tmp_path / "gone"))
    assert moved_text(gone, aliases, []) == (gone, aliases)


@pytest.mark.parametrize("name", ["clip", "llm"])
def test_a_hubs_texts_may_be_in_a_folder(folders, name, tmp_path):
    """Trained with a hub id, read without a network; a folder's weights must be the same."""
    text = TextConfig(name, str(folders / name))
    head = Head(HeadConfig(width=8, text=text), 24, text_source(text)).eval()
    representation = resolve(str(folders / "clip"))
    save_head(tmp_path, head, representation, "own", "float32", {})
    path = tmp_path / "config.json"
    facts = json.loads(path.read_text())
    assert len(facts["text"]["weights"]) == 64
    alias = {"some/hub-id": str(folders / name)}

    def written(weights):
        facts["head"]["text"]["model"], facts["text"]["weights"] = "some/hub-id", weights
        path.write_text(json.dumps(facts))

    written("some/hub-id")
    found = load_head(tmp_path, alias).head
    torch.testing.assert_close(found.embed(CAPTIONS).rows, head.embed(CAPTIONS).rows)
    written("0" * 64)
    with pytest.raises(LawError, match="not the one that the head was trained with"):
        load_head(tmp_path, alias)


def test_another_text_source_is_refused(folders, tmp_path):
    config = write(tmp_path, np.ones((3, 4)), CAPTIONS)
    head = Head(HeadConfig(width=8, text=config), 24, text_source(config))
    save_head(tmp_path / "head", head, resolve(str(folders / "clip")), "own", "float32", {})
    load_head(tmp_path / "head")
    write(tmp_path, np.zeros((3, 4)), CAPTIONS)
    with pytest.raises(LawError, match="not the one that the head was trained with"):
        load_head(tmp_path / "head")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"kind": "sparc"}, "one vector for a caption"),
        ({"width": 0}, "width: expected 1 or more"),
        ({"temperature": 0}, "0.01 or more"),
        ({"sigma": 2}, "0 to 1"),
        ({"dropout": 1}, "less than 1"),
        ({"text": {"source": "file"}}, "vectors: source 'file' needs it"),
        ({"text": {"source": "clip"}}, "model: source 'clip' needs it"),
        ({"pooling": "soft"}, "softmax"),
    ],
)
def test_configs_that_cannot_be_meant(facts, expected):
    with pytest.raises(ConfigError, match=expected):
        build(HeadConfig, facts)


def test_sparc_needs_patches(folders):
    config = build(
        HeadConfig, {"kind": "sparc", "text": {"source": "llm", "model": str(folders / "llm")}}
    )
    head = Head(config, 24, text_source(config.text))
    with pytest.raises(UsageError, match="one token"):
        head.patches(torch.zeros(2, 1, 24))
