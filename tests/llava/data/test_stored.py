"""Stored tokens are those that the tower itself gives, and what is not stored is said."""

import json
import pickle

import pytest
import torch
from repository import ROOT
from texts import llama_folder
from tiny import picture, save_encoder

from llava.data.collator import Collator
from llava.data.dataset import ConversationDataset
from llava.data.images import ImageSource
from llava.data.masks import Labeller
from llava.data.records import Records
from llava.data.stored import StoredFeatures
from llava.data.survey import survey
from llava.errors import LawError
from llava.extraction import extract
from llava.features import FeatureStore
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import Representation, resolve
from llava.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images, two towers of unequal grids, and a store of both towers' features in two dtypes."""
    world = tmp_path_factory.mktemp("world")
    (world / "images").mkdir()
    for i in range(4):
        picture(40 + i, 30, seed=i).save(world / "images" / f"{i}.png")
    save_encoder(world / "clip", "clip_vision_model")
    save_encoder(world / "dinov2", "dinov2", seed=1)
    images = [world / "images" / f"{i}.png" for i in range(3)]
    store = FeatureStore(world / "store")
    extract(both(world), images, store, frame="crop")
    extract(alone(world), images, store, frame="own", dtype="bfloat16")
    return world


def alone(world) -> Representation:
    """One tower."""
    return resolve(str(world / "clip"))


def both(world) -> Representation:
    """Two towers of unequal grids, interpolated."""
    name = f"{world / 'dinov2'}@56.{world / 'clip'}"
    return resolve(name, grid_align="interpolate")


@pytest.mark.parametrize("given", ["path", "bytes"])
def test_equals_the_tower(world, given):
    """Joined, also where grids are resampled first."""
    representation = both(world)
    assert len({spec.grid for spec in representation.parts}) == 2
    tower = build_tower(representation, frame="crop")
    stored = StoredFeatures(world / "store", representation, "crop")
    path = world / "images" / "1.png"
    found = stored.features(path if given == "path" else path.read_bytes())
    assert found.shape == (representation.tokens, representation.dim)
    expected = tower(tower.preprocess([picture(41, 30, seed=1)]))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # batches of other sizes


def test_dtype(world):
    """Tokens come as they are stored."""
    stored = StoredFeatures(world / "store", alone(world), "own")
    assert stored.features(world / "images" / "0.png").dtype == torch.bfloat16


def test_several_dtypes(world, tmp_path):
    """The one that a run computes in, where it is there; else the only one."""
    images = [world / "images" / "0.png"]
    store = FeatureStore(tmp_path)
    extract(alone(world), images, store, frame="own", dtype="float32")
    assert StoredFeatures(tmp_path, alone(world), "own", runs_in="bfloat16").dtype == "float32"
    extract(alone(world), images, store, frame="own", dtype="bfloat16")
    for dtype in ("float32", "bfloat16"):
        stored = StoredFeatures(tmp_path, alone(world), "own", runs_in=dtype)
        assert stored.dtype == dtype
        assert stored.unlike("float16") == []
    with pytest.raises(LawError, match="say which with --dtype"):
        StoredFeatures(tmp_path, alone(world), "own", runs_in="float16")


def test_what_is_missing(world):
    """An image, a frame and a tower that are not there, each with the command that makes them."""
    stored = StoredFeatures(world / "store", alone(world), "own")
    images = [world / "images" / f"{i}.png" for i in range(4)]
    assert stored.missing(images) == [3]
    with pytest.raises(
        LawError, match=r"3\.png: no features in .*`law features --model .*--frame own "
    ):
        stored.features(images[3])
    with pytest.raises(LawError, match=r"has no features of .*`law features --model"):
        StoredFeatures(world / "store", alone(world), "own_pad")


@pytest.fixture
def given(world, tmp_path):
    """(records with one image each and a text, labeller, images' source)."""
    values = [
        {
            "image": f"{i % 4}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "That."},
            ],
        }
        for i in range(4)
    ]
    values.append(
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    )
    (tmp_path / "data.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(llama_folder("tiny_legacy_false", tmp_path / "tokenizer"))

    def of(policy: str):
        images = ImageSource(world / "images", ImageProcessor(both(world), "crop"), policy=policy)
        return Records(tmp_path / "data.json"), Labeller(tokenizer, "v1"), images

    return of


def test_samples(world, given):
    """Come with features in place of pixels, and make a batch of them; in workers as well."""
    records, labeller, images = given("skip")
    stored = StoredFeatures(world / "store", both(world), "crop")
    tokens = both(world).tokens
    found = survey(records, labeller, images, tokens, None, features=stored)
    assert dict(found.dropped) == {3: found.dropped[0][1]}
    assert "has no stored features; `law features" in found.dropped[0][1]
    dataset = ConversationDataset(
        records, labeller, images, tokens, None, survey=found, features=stored
    )
    samples = [dataset[i] for i in range(4)]
    batch = Collator(0)(samples)
    assert batch["image_features"].shape == (3, tokens, both(world).dim)
    assert "images" not in batch
    assert "image_sizes" not in batch
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[2]["image_features"], samples[2]["image_features"])


def test_not_stored_is_an_error(world, given):
    """Under the policy `error` before training; without a survey at the sample."""
    records, labeller, images = given("error")
    stored = StoredFeatures(world / "store", both(world), "crop")
    with pytest.raises(LawError, match=r"record 3: image 3\.png: has no stored features"):
        survey(records, labeller, images, 16, None, features=stored)
    dataset = ConversationDataset(records, labeller, images, 16, None, features=stored)
    with pytest.raises(LawError, match="no features in"):
        dataset[3]
    assert (
        len(survey(records, labeller, images, 16, None, features=stored, verify_images="none").keep)
        == 5
    )


def test_survey_key_has_the_store(world, given, tmp_path, monkeypatch):
    """What is left out depends on what is stored."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    records, labeller, images = given("skip")
    stored = StoredFeatures(world / "store", both(world), "crop")
    for features in (None, stored):
        survey(records, labeller, images, 16, None, features=features, cache_dir=tmp_path / "c")
    assert len(list((tmp_path / "c").iterdir())) == 2
