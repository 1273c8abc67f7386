"""How alike towers find two images: equal to what scipy and the joined towers themselves give."""

import json
import weakref

import duals
import numpy as np
import pytest
import tiny
import torch
import transformers
import yaml
from PIL import Image
from repository import ROOT
from scipy.stats import spearmanr

from llava import catalog, results
from llava.errors import LawError, UsageError
from llava.eval.pairs import agree, agreement
from llava.eval.pairs.agreement import Alike, Way, measure, pairs_of, representation_for
from llava.eval.pairs.items import Item
from llava.eval.pairs.pictures import open_picture
from llava.eval.pairs.synthetic import make_synthetic
from llava.model.multimodal_encoder.builder import build_tower

GOLDEN = ROOT / "tests" / "golden"
STAND_INS = {
    "openai/clip-vit-large-patch14-336": "llava/models/openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14": "llava/models/openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": "llava/models/openai/clip-vit-large-patch14",
    "facebook/dinov2-large": "llava/models/facebook/dinov2-large",
    "google/siglip-base-patch16-224": "llava/models/google/siglip-base-patch16-224",
    "lambdalabs/sd-image-variations-diffusers": "diffusion/imsd",
    "runwayml/stable-diffusion-v1-5": "diffusion/sd15",
    "stabilityai/stable-diffusion-2-1": "diffusion/sd21",
    "stabilityai/stable-diffusion-xl-base-1.0": "diffusion/sdxl",
    "stabilityai/stable-diffusion-3-medium-diffusers": "diffusion/sd3",
    "facebook/DiT-XL-2-512": "diffusion/dit",
}
"""Every registered tower -> the golden folder that its weights are read from here."""
EIGHTH = "stabilityai/stable-diffusion-2-1"
"""A diffusion tower; at 64 px it is quick."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """clip/, dinov2/ and siglip/, 4 synthetic pairs, and their config."""
    root = tmp_path_factory.mktemp("agree")
    tiny.save_encoder(root / "clip", "clip_vision_model")
    tiny.save_encoder(root / "dinov2", "dinov2", seed=1)
    tiny.save_encoder(root / "siglip", "siglip_vision_model", seed=2)
    benchmark = make_synthetic(root / "made", 4, seed=0)
    config = {"name": "made", "kind": "grid", "data": str(root / "made" / "pairs.jsonl")}
    (root / "made.yaml").write_text(yaml.safe_dump({"benchmarks": [config]}))
    return root, pairs_of(benchmark)


def asked(world, *given: object) -> list[str]:
    """As the command line has it, on the CPU."""
    flags = ["--config", world[0] / "made.yaml", "--device", "cpu", *given]
    return [str(one) for one in flags]


def report(world, tmp_path, *given: object) -> list[dict]:
    """The reports in the JSON that a run writes."""
    agree.main(asked(world, *given, "--out", tmp_path / "agree.json"))
    return json.loads((tmp_path / "agree.json").read_text())["reports"]


def pooled(name: str, pair, pool: str) -> list[np.ndarray]:
    """Both images' features, straight from the tower or the combination."""
    tower = build_tower(representation_for(name, pool))
    tokens = [tower(tower.preprocess([open_picture(path)]))[0].double() for path in pair.images]
    return [(one.mean(0) if pool == "mean" else one.flatten()).numpy() for one in tokens]


@pytest.mark.parametrize("pool", ["mean", "cls", "flat"])
@pytest.mark.parametrize("name", ["clip", "clip+dinov2"])
def test_the_definition(world, name, pool):
    """Cosine and Spearman of the pooled features; a combination's are those of its own tokens."""
    root, pairs = world
    name = "+".join(f"{root}/{part}" for part in name.split("+"))
    (found,) = measure([representation_for(name, pool)], pairs, Way(pool=pool, batch_size=3))
    for place, pair in enumerate(pairs):
        one, other = pooled(name, pair, pool)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert found.cosines()[place] == pytest.approx(cosine, abs=1e-6)
        if "+" in name and pool == "flat":
            assert found.ranks_P is None
        else:
            expected = spearmanr(one, other).statistic
            assert found.ranks_P[place] == pytest.approx(expected, abs=2e-3)  # float32 near-ties
    assert np.ptp(found.cosines()) > 1e-6


def test_ranks():
    """Ties share their mean rank; the sign turns with the order; by hand: 1 - 6 * 2 / (4 * 15)."""
    assert agreement.rank_correlation(
        np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])
    ) == pytest.approx(0.8)
    ties = np.array([1.0, 1, 2, 5, 5]), np.array([0.0, 3, 3, 9, -4])
    assert agreement.rank_correlation(*ties) == pytest.approx(spearmanr(*ties).statistic)
    assert agreement.rank_correlation(ties[1], -ties[1]) == pytest.approx(-1)


@pytest.mark.parametrize("kind", duals.KINDS)
def test_the_embedding_of_its_own(tmp_path, world, kind):
    """--pool own: transformers' image embedding, as texts are compared with."""
    pairs = world[1]
    folder = duals.save_dual(tmp_path / kind, kind)
    (found,) = measure([representation_for(str(folder), "own")], pairs, Way(pool="own"))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for cosine, pair in zip(found.cosines(), pairs, strict=True):
        pixels = processor([open_picture(path) for path in pair.images], return_tensors="pt")
        with torch.no_grad():
            one, other = model.get_image_features(**pixels).pooler_output.double()
        assert cosine == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-6)


def test_each_tower_runs_once(world, monkeypatch, capsys):
    """However many combinations are asked for, over every image once."""
    root, pairs = world
    built, seen = [], []

    def build(spec, *more):
        built.append(spec.id)
        tower = build_tower(spec, *more)
        tower.register_forward_hook(lambda *given: seen.append(len(given[2])))
        return tower

    monkeypatch.setattr(agreement, "build_tower", build)
    clip, dino, siglip = (f"{root}/{name}" for name in ("clip", "dinov2", "siglip"))
    names = [clip, dino, f"{clip}+{dino}", f"{siglip}+{clip}", f"{dino}+{siglip}+{clip}"]
    agree.main(asked(world, "--model", *names))
    assert sorted(built) == sorted([clip, dino, siglip])
    assert sum(seen) == 3 * 2 * len(pairs)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 + 3 * len(names)  # all, and both axes
    assert "left/right" in out and "above/below" in out


def test_features_are_let_go(world, monkeypatch):
    """Of all patches of one tower, those of two images wait at most, whatever their pairs."""
    root, pairs = world
    pairs = [*pairs, pairs[0]]  # an image of several pairs
    alive, most, features = [], [], agreement._features

    def watched(*given):
        for path, vector in features(*given):
            alive.append(weakref.ref(vector))
            most.append(sum(one() is not None for one in alive))
            yield path, vector
            del vector

    monkeypatch.setattr(agreement, "_features", watched)
    found = measure([representation_for(f"{root}/clip", "flat")], pairs, Way(pool="flat"))[0]
    assert len(most) == 2 * len(pairs) - 2 and max(most) <= 4  # with those on their way
    assert found.cosines()[0] == found.cosines()[-1] and not found.vectors


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_every_registered_tower(tmp_path, world, pool):
    """All eleven and the paper's combinations; without a class token, the error says what to do."""
    single = {e.id for e in catalog.representations().values() if e.family != "combination"}
    assert single == set(STAND_INS)
    names = [name + ("@64" if "diffusion/" in STAND_INS[name] else "") for name in sorted(single)]
    names += ["C+D@336", f"openai/clip-vit-large-patch14.{EIGHTH}"]
    with_class = {"facebook/dinov2-large", *(n for n in single if "clip" in n.lower())}
    alias = [
        f"--tower-alias={name}={GOLDEN / folder}"
        for name, folder in STAND_INS.items()
        if pool == "mean" or name in with_class
    ]
    refused = []
    for name in names:
        if pool == "cls" and not set(name.split("@")[0].split(".")) <= with_class | {"C+D"}:
            with pytest.raises(UsageError, match="has no class token; take --pool mean"):
                agree.main(asked(world, "--model", name, "--pool", pool))
            refused.append(name)
    found = report(
        world,
        tmp_path,
        *("--pool", pool, "--limit", 2, *alias, "--model"),
        *(name for name in names if name not in refused),
    )
    assert len(found) == len(names) - len(refused) == {"mean": 13, "cls": 5}[pool]
    for one in found:
        numbers = one["benchmarks"]["made"]
        assert numbers["n"] == 2 and -1 <= numbers["cosine"] <= 1
        assert np.isfinite(numbers["rank_correlation"])
        assert 0 < len(one["spec_hash"].split("+")) <= 2
    # three of them have the same stand-in
    assert len({one["benchmarks"]["made"]["cosine"] for one in found}) >= len(found) - 3


def test_a_bag_of_patches_finds_them_equal(tmp_path, world):
    """Both images have the same cells: only a tower with positions can tell them apart."""
    root, pairs = world
    tower = tiny.save_encoder(tmp_path / "bag", "clip_vision_model")
    model = transformers.CLIPVisionModel.from_pretrained(tower)
    torch.nn.init.zeros_(model.embeddings.position_embedding.weight)
    model.save_pretrained(tower)
    asked_of = [representation_for(str(name), "mean") for name in (tower, root / "clip")]
    bag, places = measure(asked_of, pairs, Way(frame="stretch"))
    assert np.abs(bag.cosines() - 1).max() < 1e-9
    assert (places.cosines() < 1 - 1e-7).all()


def test_out_of_a_store(tmp_path, world, monkeypatch):
    """The same numbers; what is in the store is not run again."""
    root, _ = world
    names = ["--model", f"{root}/clip", f"{root}/clip+{root}/dinov2"]
    live = report(world, tmp_path, *names)
    stored = report(world, tmp_path, *names, "--features", tmp_path / "store")
    assert stored == live
    monkeypatch.setattr("llava.extraction.build_tower", None)
    assert report(world, tmp_path, *names, "--features", tmp_path / "store") == live


def test_beside(world, tmp_path, monkeypatch, capsys):
    """Pairs that one tower finds alike and the other unlike, counted as MMVP's were found."""
    root, pairs = world
    clip, dino = f"{root}/clip", f"{root}/dinov2"
    cosines = {clip: [0.96, 0.95, 0.99, 0.97], dino: [0.59, 0.1, 0.6, -0.2]}
    ones = np.ones((len(pairs), 2))

    def given(representations, *_):
        return [Alike(np.array(cosines[r.name]), ones, np.zeros(4)) for r in representations]

    monkeypatch.setattr(agreement, "measure", given)
    first, second = report(world, tmp_path, "--model", clip, "--beside", dino)
    told = first["benchmarks"]["made"]["beside"]
    assert told["representation"] == dino and told["pairs"] == 2
    assert told["items"] == [pairs[0].item, pairs[3].item]
    assert "beside" not in second["benchmarks"]["made"]
    assert first["benchmarks"]["made"]["alike"] == 0.75
    assert second["benchmarks"]["made"]["cosine"] == pytest.approx(np.mean(cosines[dino]))
    assert "made: 2 of 4 pairs are alike to" in capsys.readouterr().out


def test_results(world, tmp_path):
    """Rows that a results table takes, with everything that a number depends on."""
    clip = f"{world[0]}/clip"
    table = tmp_path / "results.csv"
    (found,) = report(world, tmp_path, "--model", clip, "--results", table, "--limit", 3)
    numbers = found["benchmarks"]["made"]
    report(world, tmp_path, "--model", clip, "--results", table, "--limit", 3)
    read = results.read(table)
    assert len(read) == 3, "what is there already is not written again"
    text = table.read_text()
    for name in ("made_cosine", "made_alike", "made_rank"):
        assert f"pairs_agree,{name}," in text
    assert "agree/mean/own/float32/limit-3" in text and found["spec_hash"] in text
    assert numbers["n"] == 3 == sum(axis["n"] for axis in numbers["by_axis"].values())
    spread = np.std([one["cosine"] for one in numbers["per_pair"]], ddof=1) / np.sqrt(3)
    assert numbers["stderr"] == pytest.approx(spread)


def test_images_that_are_the_same(tmp_path, world):
    """Cosine and correlation 1, never above."""
    tiny.picture(40, 40).save(tmp_path / "a.png")
    item = Item("x", (tmp_path / "a.png",) * 2, ("a", "b"), (0, 1), ((0, 1),) * 2, ((0, 1),))
    pair = agreement.Pair(item.id, "", item.images)
    found = measure([representation_for(f"{world[0]}/clip", "mean")], [pair], Way())[0]
    assert found.cosines()[0] == pytest.approx(1) and found.cosines()[0] <= 1
    assert found.ranks_P[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["siglip", "--pool", "cls"], "siglip has no class token; take --pool mean"),
        (["dinov2", "--pool", "own"], "dinov2 has no embedding of its own .* --pool mean"),
        (["clip", "--pool", "men"], "--pool: unknown pool 'men'; did you mean 'mean'"),
        (["clip", "--pool", "own", "--features", "s"], "--pool own takes none"),
        (["clip", "--frame", "padd"], "unknown frame 'padd'"),
        (["clip", "--dtype", "float"], "--dtype: unknown dtype"),
        (["clip", "--batch-size", "0"], "--batch-size 0"),
        (["clip", "--limit", "0"], "--limit 0: expected 1 or more"),
        (["clip", "--tower-alias", "dinov2=x"], "--tower-alias: none of .* has facebook/dinov2"),
        (["clip", "--only", "mad"], "--only.*unknown benchmark 'mad'"),
        (["clip", "--beside", "nothing"], "unknown tower"),
    ],
)
def test_what_cannot_be_asked(world, given, message):
    """Refused before a tower is built."""
    name, *more = given
    with pytest.raises(UsageError, match=message):
        agree.main(asked(world, "--model", f"{world[0]}/{name}", *more))


def test_several_processes(world, monkeypatch):
    """Refused with what to type: towers fill a store in any number of them."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"runs in one process; fill a store .* law features"):
        agree.main(asked(world, "--model", f"{world[0]}/clip"))


def test_data_that_does_not_fit(tmp_path, world):
    """Benchmarks without pairs, images that do not decode, features without a direction."""
    root, pairs = world
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    line = {"images": ["a.png"], "captions": ["a", "b"]}
    (tmp_path / "one.jsonl").write_text(json.dumps(line))
    config = {"name": "one", "kind": "grid", "data": str(tmp_path / "one.jsonl")}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"benchmarks": [config]}))
    with pytest.raises(LawError, match="no benchmark has pairs"):
        agree.main(["--config", str(tmp_path / "one.yaml"), "--model", f"{root}/clip"])
    (tmp_path / "half.png").write_bytes(pairs[0].images[0].read_bytes()[:-30])
    half = agreement.Pair("x", "", (tmp_path / "half.png", tmp_path / "a.png"))
    with pytest.raises(LawError, match=r"half.png: does not decode"):
        measure([representation_for(f"{root}/clip", "mean")], [half], Way())
    with pytest.raises(LawError, match=r"a.png: .*all zero"):
        spec = representation_for(f"{root}/clip", "mean").parts[0]
        agreement._check_direction(np.zeros(3), tmp_path / "a.png", spec)
