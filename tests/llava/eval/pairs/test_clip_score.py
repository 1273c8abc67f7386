"""CLIPScore is the cosine of what transformers embeds, once for every image and caption."""

import argparse
import json

import duals
import numpy as np
import pytest
import tiny
import torch
import transformers
import yaml
from PIL import Image

from llava.errors import LawError, UsageError
from llava.eval.pairs import clip_score, result, run, scoring
from llava.eval.pairs.flags import clip as clip_flags
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import open_picture
from llava.eval.pairs.synthetic import make_synthetic

CAPTIONS = (
    "a red circle to the left of a blue square",
    "a blue square to the left of a red circle",
    "a dog above a cat",
    "a cat above a dog",
)
EITHER = ((0, 1), (0, 1))


@pytest.fixture(scope="module", params=duals.KINDS)
def folder(request, tmp_path_factory):
    """The folder of a tiny model."""
    return duals.save_dual(tmp_path_factory.mktemp("clip") / request.param, request.param)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """A set of four whose axes do not mix, and an item that shows one of its images again."""
    root = tmp_path_factory.mktemp("pictures")
    paths = [root / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        tiny.picture(50 + 8 * i, 40, seed=i).save(path)
    choices = ((0, 1), (1, 0), (2, 3), (2, 3))
    return [
        Item("set", tuple(paths[:4]), CAPTIONS, (0, 1, 2, 3), choices, ((0, 1), (2, 3))),
        Item("again", (paths[4], paths[1]), CAPTIONS[:2], (0, 1), EITHER, ((0, 1),)),
    ]


def flags(*given: object) -> argparse.Namespace:
    """As the command line has them."""
    parser = argparse.ArgumentParser()
    clip_flags.add_arguments(parser)
    return parser.parse_args([str(one) for one in given])


def scorer(folder, *more: object) -> clip_score.ClipScorer:
    """On the CPU."""
    return clip_score.make(flags("--model", folder, "--device", "cpu", *more))


def test_the_cosine(folder, items):
    """Of transformers' own model and processor."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for item, scores in zip(items, scorer(folder).scores(items), strict=True):
        assert scores.dtype == np.float64
        assert np.array_equal(np.isnan(scores), ~item.needed)
        pixels = processor([open_picture(path) for path in item.images], return_tensors="pt")
        texts = tokenizer(
            list(item.captions), padding="max_length", max_length=duals.LENGTH, return_tensors="pt"
        )
        if model.config.model_type == "siglip":
            texts.pop("attention_mask", None)
        with torch.no_grad():
            seen = model.get_image_features(**pixels).pooler_output
            read = model.get_text_features(**texts).pooler_output
        expected = torch.cosine_similarity(seen[:, None], read[None], dim=-1).numpy()
        np.testing.assert_allclose(scores[item.needed], expected[item.needed], atol=2e-6)
        assert np.ptp(scores[item.needed]) > 1e-3


def test_everything_is_embedded_once(folder, items, monkeypatch):
    """In one call; batches of any size give the same but for rounding."""
    scoring = scorer(folder, "--batch-size", 2)
    seen = {"images": [], "texts": []}
    for name, rows in seen.items():
        run = getattr(scoring.dual, name)
        monkeypatch.setattr(
            scoring.dual, name, lambda x, rows=rows, run=run: rows.append(len(x)) or run(x)
        )
    found = scoring.scores(items)
    assert seen == {"images": [2, 2, 1], "texts": [2, 2]}
    for one, other in zip(found, scorer(folder).scores(items), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    again = scoring.scores(items[1:])[0]
    np.testing.assert_array_equal(again, scoring.scores(items[1:])[0])


def test_images_that_are_alike_tie(folder, tmp_path):
    """Exactly: a tie must not be decided by rounding."""
    for name in ("a", "b"):
        Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / f"{name}.png")
    paths = (tmp_path / "a.png", tmp_path / "b.png")
    item = Item("x", (*paths, paths[0]), CAPTIONS[:2], (0, 1, 0), (*EITHER, (0, 1)), ((0, 1),))
    scores = scorer(folder).scores([item])[0]
    np.testing.assert_array_equal(scores[0], scores[2])


def test_another_frame_and_dtype(folder, items):
    """They change the scores, and the facts with them."""
    usual = scorer(folder)
    for change in (("--frame", "pad"), ("--dtype", "bfloat16")):
        other = scorer(folder, *change)
        told = {name for name in usual.facts() if usual.facts()[name] != other.facts()[name]}
        assert told == {change[0].removeprefix("--"), "protocol"}
        assert change[1] in other.facts()["protocol"].split("/")
        gaps = np.abs(other.scores(items)[0] - usual.scores(items)[0])
        assert 1e-5 < np.nanmax(gaps) < 1


def test_facts(folder):
    """Plain values that tell the model, its tokenizer among it."""
    facts = scorer(folder).facts()
    assert json.loads(json.dumps(facts)) == facts == scorer(folder).facts()
    assert facts["representation"] == facts["model"] == str(folder)
    assert len(facts["spec_hash"]) == len(facts["texts"]) == 64
    assert result.scorer_protocol("clip", facts) == "clip/cosine/own/float32"
    assert not clip_score.ClipScorer.performance and not clip_score.ClipScorer.answers


def test_weights_from_elsewhere(tmp_path, items):
    """--tower-alias: the name stays that of the hub id."""
    folder = duals.save_dual(tmp_path / "clip", "clip")
    known = "openai/clip-vit-large-patch14"
    aliased = scorer("clip", "--tower-alias", f"{known}={folder}")
    assert aliased.facts()["representation"] == known
    assert aliased.facts()["model"] == str(folder)
    np.testing.assert_array_equal(aliased.scores(items)[0], scorer(folder).scores(items)[0])


@pytest.mark.parametrize("name", ["dinov2", "sd2.1", "clip.dinov2", "C+D@336"])
def test_no_text_encoder(name):
    """Of a tower without one, or of a combination: the error names the ways that there are."""
    with pytest.raises(UsageError, match=r"has no text encoder.*head.*vqa.*law pairs agree"):
        scorer(name)


def test_an_eye_alone(tmp_path):
    """A CLIP of which only the image half was saved."""
    with pytest.raises(UsageError, match="has no text encoder"):
        scorer(tiny.save_encoder(tmp_path / "eye", "clip_vision_model"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--batch-size", 0), "--batch-size 0: expected 1 or more"),
        (("--dtype", "float"), "--dtype: unknown dtype 'float'; did you mean 'float32'"),
        (("--frame", "padd"), "unknown frame 'padd'; did you mean 'pad'"),
        (("--device", "warp"), "--device warp"),
    ],
)
def test_flags_that_cannot_be_meant(folder, given, message):
    """Refused before weights are read."""
    with pytest.raises(UsageError, match=message):
        scorer(folder, *given)


def test_what_cannot_be_scored(tmp_path, folder, items):
    """Images that are missing, damaged or too thin are named; so is an embedding of no length."""
    gone, half, thin = (tmp_path / name for name in ("gone.png", "half.png", "thin.png"))
    half.write_bytes(items[0].images[0].read_bytes()[:-300])
    Image.new("RGB", (20000, 1)).save(thin)
    for path, message in (
        (gone, "gone.png: cannot be read: No such"),
        (half, "half.png: does not decode"),
        (thin, "thin.png: is 20000 x 1 px, too thin"),
    ):
        item = Item("x", (path,), CAPTIONS[:2], (0,), ((0, 1),))
        with pytest.raises(LawError, match=message):
            scorer(folder, "--frame", "pad").scores([item])
    for wrong in (0.0, float("nan")):
        with pytest.raises(LawError, match="red: its embedding has length"):
            clip_score.directions(torch.tensor([[1.0, 0], [wrong, 0]]), ["blue", "red"])


def test_a_caption_that_is_cut_off(folder, items, law_log):
    """Counted, for two captions that differ behind the cut would tie."""
    long = "a" * 100
    item = Item("x", items[0].images[:1], (long + " dog", long + " cat"), (0,), ((0, 1),))
    scores = scorer(folder).scores([item])[0]
    assert "WARNING: 2 of 2 captions were cut off" in law_log
    assert scores[0, 0] == scores[0, 1]


def test_a_run_that_goes_on(tmp_path, folder, monkeypatch):
    """`law pairs run`, killed between pieces, ends with the digits of one that was not."""
    made = make_synthetic(tmp_path / "made", 6, seed=0)
    config = {"name": "made", "kind": "grid", "data": str(tmp_path / "made" / "pairs.jsonl")}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump({"benchmarks": [config]}))
    monkeypatch.setattr(scoring, "PIECE", 2)

    def ran(out: str) -> dict:
        given = ("--config", tmp_path / "made.yaml", "--scorer", "clip", "--model", folder)
        run.main([str(one) for one in (*given, "--device", "cpu", "--out", tmp_path / out)])
        return json.loads((tmp_path / out).read_text())["results"][0]

    whole = ran("whole.json")
    assert whole["individual"]["of"] == 2 * len(made.items)
    scores, calls = clip_score.ClipScorer.scores, []

    def killed(self, items):
        calls.append(len(items))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores(self, items)

    monkeypatch.setattr(clip_score.ClipScorer, "scores", killed)
    with pytest.raises(KeyboardInterrupt):
        ran("again.json")
    assert ran("again.json") == whole
    assert calls == [2, 2, 2, 2]
