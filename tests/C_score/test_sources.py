"""Features from files and from the store: how they are found, and how bad ones are refused."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from made_pairs import category, pair_set, random_maps, random_set, save_maps
from PIL import Image
from repository import ROOT

from C_score.combinations import joined_name
from C_score.datasets.pairs import PairSet, Picture
from C_score.evaluate import Request, evaluate
from C_score.extract_feature import main as extract_feature
from C_score.lookup import _Finder, find_towers, scored_pictures, stored_names
from C_score.options import representation, suffix_of
from C_score.score import score
from C_score.sources import FileFeatures, StoreFeatures, common_grid, resample
from llava.errors import LawError, UsageError
from llava.features import FeatureStore, image_key, mirrored_key
from llava.model.multimodal_encoder.registry import resolve

SD15 = str(ROOT / "tests" / "golden" / "diffusion" / "sd15")


@pytest.fixture
def pairs():
    return random_set(0)


@pytest.fixture
def files(pairs, tmp_path):
    """Files of one tower."""
    return save_maps(tmp_path, "mine", pairs, random_maps(5, 8, 6, 0))


def find(pairs, root, *models, **more):
    return find_towers(models, root, pairs.pictures, **more)


def test_grid_and_width_come_from_the_file(pairs, files):
    (found,), subsets = find(pairs, files.root, "mine")
    assert (found.n, found.dim, found.origin, found.spec_hash) == (6, 8, "external", "")
    assert subsets == [(0,)]
    assert found.path(pairs.pictures[2]) == files.root / "2_mine.pt"


def test_towers_are_read_once(pairs, files):
    """Models share towers; a model is the indices of its own."""
    save_maps(files.root, "other", pairs, random_maps(5, 4, 6, 1))
    towers, subsets = find(pairs, files.root, "mine", "mine+other", "other")
    assert [tower.name for tower in towers] == ["mine", "other"]
    assert subsets == [(0,), (0, 1), (1,)]
    with pytest.raises(UsageError, match="one tower twice"):
        find(pairs, files.root, "mine+mine")


def test_unit_maps(pairs, files):
    """Length 1 at every cell but those without any feature; a zero column behind."""
    maps = random_maps(5, 8, 6, 0)
    maps[0][:, 2, 3] = 0
    save_maps(files.root, "mine", pairs, maps)
    unit = files.unit(pairs.pictures[0], 6)
    assert unit.shape == (8, 37)
    expected = torch.ones(37)
    expected[[2 * 6 + 3, 36]] = 0
    assert unit.norm(dim=0).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_full(pairs, files, dtype):
    """Upcast before lengths are taken: the unit maps are float32 and of length 1."""
    maps = [one.to(dtype) for one in random_maps(5, 8, 6, 0)]
    save_maps(files.root, "mine", pairs, maps)
    unit = files.unit(pairs.pictures[1], 6)
    whole = maps[1].float().flatten(1)
    assert unit.dtype == torch.float32
    assert torch.equal(unit[:, :-1], whole / (whole.square().sum(0).sqrt() + 1e-10))


def damage(path, how):
    """Makes a feature file one that cannot be scored."""
    tensor = torch.load(path, weights_only=True)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a tensor")
    elif how == "code":
        path.write_bytes(pickle.dumps(Path("x"), 2))
    elif how == "object":
        torch.save(Path("x"), path)
    else:
        changed = {
            "nan": lambda: tensor.index_fill(2, torch.tensor([1]), torch.nan),
            "infinite": lambda: tensor.index_fill(2, torch.tensor([1]), torch.inf),
            "zero": lambda: tensor * 0,
            "narrow": lambda: tensor[..., :-1],
            "flat": lambda: tensor.flatten(2),
            "integer": lambda: tensor.long(),
            "dict": lambda: {"features": tensor},
            "smaller": lambda: tensor[..., :-1, :-1],
            "thinner": lambda: tensor[:, :-1],
            "two": lambda: tensor.repeat(2, 1, 1, 1),
            "none": lambda: tensor[:, :0],
        }
        torch.save(changed[how](), path)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("truncated", "truncated or damaged"),
        ("empty", "truncated or damaged"),
        ("text", "not a plain tensor|truncated or damaged"),
        ("code", "never loaded"),
        ("object", "never loaded"),
        ("nan", "6 of 36 cells hold NaN or infinite"),
        ("infinite", "6 of 36 cells hold NaN or infinite"),
        ("zero", "all features are zero"),
        ("narrow", r"\[1, 8, 6, 5\]; expected \[1, C, n, n\]"),
        ("flat", r"\[1, 8, 36\]; expected"),
        ("integer", "holds torch.int64"),
        ("dict", "holds dict"),
        ("smaller", "while the first image's are"),
        ("thinner", "while the first image's are"),
        ("two", r"\[2, 8, 6, 6\]; expected"),
        ("none", "are empty"),
    ],
)
def test_a_bad_file_is_named(pairs, files, how, expected):
    """Whichever picture it is of; nothing in it is run."""
    for at in (0, 3):
        path = files.path(pairs.pictures[at])
        whole = path.read_bytes()
        damage(path, how)
        with pytest.raises(LawError, match=expected) as caught:
            towers, _ = find(pairs, files.root, "mine")
            score(pairs, towers, [[1]], 6)
        if at:  # the first one may be well-formed itself, and the others of another shape than it
            assert str(path) in str(caught.value)
        path.write_bytes(whole)


def test_missing_files_are_counted(pairs, files):
    for at in (1, 4):
        files.path(pairs.pictures[at]).unlink()
    with pytest.raises(LawError, match="2 of 5 feature files of 'mine' are missing") as caught:
        find(pairs, files.root, "mine")
    assert "1_mine.pt" in str(caught.value)
    assert "--feature mine --pt" in str(caught.value)


def test_a_file_that_vanishes_meanwhile(pairs, files):
    towers, _ = find(pairs, files.root, "mine")
    files.path(pairs.pictures[2]).unlink()
    with pytest.raises(LawError, match=r"2_mine\.pt: no such feature file"):
        score(pairs, towers, [[1]], 6)


def test_pictures_of_pairs_that_are_skipped_need_no_features(files):
    """Only those of scored pairs are asked for."""
    kps = np.array([[[1, 1, 1]], [[1, 1, 0]]], np.float32)
    pairs = pair_set([category(kps, kps, [0, 2], [1, 3], [9, 9])], 4)
    assert [picture.name for picture in scored_pictures(pairs)] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mind", "did you mean 'mine'"),
        ("zebra", "there are files of: mine"),
        ("", "--model is empty"),
    ],
)
def test_unknown_names(pairs, files, name, expected):
    with pytest.raises(UsageError, match=expected):
        find(pairs, files.root, name)


def test_no_folder(pairs, tmp_path):
    with pytest.raises(LawError, match="no such folder of features"):
        find(pairs, tmp_path / "nowhere", "mine")


def test_unequal_grids_are_named(pairs, files):
    save_maps(files.root, "finer", pairs, random_maps(5, 8, 9, 0))
    towers, _ = find(pairs, files.root, "mine", "finer")
    with pytest.raises(
        UsageError, match=r"mine has a grid of 6 x 6, finer one of 9 x 9.*resample 9"
    ):
        common_grid(towers)
    assert common_grid(towers, 4) == 4
    with pytest.raises(UsageError, match="--resample 0"):
        common_grid(towers, 0)


def test_resampling():
    """Area means downwards; bilinear upwards keeps a linear ramp where it has neighbours."""
    ramp = torch.arange(4.0).expand(1, 4, 4)
    assert resample(ramp, 2)[0, 0].tolist() == [0.5, 2.5]
    assert resample(ramp, 8)[0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_resampled_towers_are_scored(pairs, files):
    """On a common grid: as if the features had been stored on it."""
    maps = random_maps(5, 8, 9, 0)
    finer = save_maps(files.root, "finer", pairs, maps)
    ready = save_maps(files.root, "ready", pairs, [resample(one, 6) for one in maps])
    (ours,) = score(pairs, [finer], [[1]], 6)
    (theirs,) = score(pairs, [ready], [[1]], 6)
    assert np.array_equal(ours.all.pck_SA, theirs.all.pck_SA)


@pytest.fixture
def stored(tmp_path):
    """Pictures on disk, two towers' features of them in a store: of dinov2-small and clip."""
    drawn = np.random.default_rng(0)
    shown = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.fromarray(drawn.integers(0, 255, (30, 40, 3), np.uint8)).save(path)
        shown.append(Picture(path, str(i), 40, 30))
    old = random_set(0)
    pairs = PairSet(old.name, old.split, tuple(shown), old.categories)
    store = FeatureStore(tmp_path / "features")
    for seed, name in enumerate(("clip", "dinov2")):
        spec = resolve(name).parts[0]
        space = store.space(spec, "pad", "float32")
        maps = random_maps(5, spec.dim, spec.grid[0], seed)
        space.write({image_key(p.path): m.flatten(1).T for p, m in zip(shown, maps, strict=True)})
    return pairs, store, maps


def test_the_store_is_read_first(stored, capsys):
    """It knows names and specs; a combination is found part by part."""
    pairs, store, maps = stored
    save_maps(store.root, "dinov2", pairs, random_maps(5, 8, 6, 0))
    towers, subsets = find(pairs, store.root, "dinov2", "clip+dinov2")
    assert [tower.representation for tower in towers] == [
        "facebook/dinov2-large",
        "openai/clip-vit-large-patch14",
    ]
    assert subsets == [(0,), (1, 0)]
    assert {tower.origin for tower in towers} == {"tower"}
    assert all(len(tower.spec_hash) == 64 for tower in towers)
    assert torch.equal(towers[0].raw(pairs.pictures[2]), maps[2])
    assert capsys.readouterr().err.count("reading 5 images from") == 2


def test_files_where_the_store_lacks_images(stored, tmp_path):
    """A store that does not hold every image is not read; what is wrong with both is said."""
    pairs, store, _ = stored
    Image.new("RGB", (40, 30)).save(tmp_path / "5.png")
    more = PairSet(
        pairs.name,
        pairs.split,
        (*pairs.pictures, Picture(tmp_path / "5.png", "5", 40, 30)),
        pairs.categories,
    )
    with pytest.raises(UsageError, match="lacks 1 of 6 images"):
        find(more, store.root, "clip")
    save_maps(store.root, "clip", more, random_maps(6, 8, 6, 0))
    (found,), _ = find(more, store.root, "clip")
    assert (found.origin, found.n) == ("external", 6)


def test_a_part_from_each(stored):
    """One tower from the store, the other from files."""
    pairs, store, _ = stored
    save_maps(store.root, "mine", pairs, random_maps(5, 8, 16, 0))
    towers, _ = find(pairs, store.root, "clip+mine")
    assert [tower.origin for tower in towers] == ["tower", "external"]
    assert common_grid(towers) == 16


def test_paper_features_are_others(stored):
    """Protocol `paper` is another frame and spec, which this store does not hold."""
    pairs, store, _ = stored
    with pytest.raises(UsageError, match="has no features of openai/clip-vit-large-patch14@224"):
        find(pairs, store.root, "clip", protocol="paper")


def test_weights_from_elsewhere(stored, law_log):
    """Features of a mirror's weights are found by the tower's name, aloud; two of them are not."""
    pairs, store, _ = stored
    spec = resolve("siglip").parts[0]
    for digest, count in (("a" * 64, 1), ("b" * 64, 2)):
        mirror = dataclasses.replace(spec, weights=f"mirror/{count}", digest=digest)
        space = store.space(mirror, "pad", "float32")
        grids = random_maps(5, spec.dim, spec.grid[0], count)
        shown = zip(pairs.pictures, grids, strict=True)
        space.write({image_key(p.path): m.flatten(1).T for p, m in shown})
        if count == 1:
            (found,), _ = find(pairs, store.root, "siglip")
            assert found.spec_hash == mirror.hash()
            assert torch.equal(found.raw(pairs.pictures[2]), grids[2])
            assert any("its weights in mirror/1" in line for line in law_log)
    with pytest.raises(UsageError, match="no features 'siglip'"):
        find(pairs, store.root, "siglip")


def test_a_flip_needs_mirrored_images(stored):
    """In the store under their own keys, or as files; what lacks where is said."""
    pairs, store, _ = stored
    with pytest.raises(UsageError, match=r"lacks 5 of 5 mirrored images.*law features --mirrored"):
        find(pairs, store.root, "clip", flip=True)
    save_maps(store.root, "clip", pairs, random_maps(5, 8, 6, 0))
    with pytest.raises(LawError, match="5 of 5 feature files of 'clip_flip' are missing"):
        find(pairs, store.root, "clip", flip=True)
    save_maps(store.root, "clip_flip", pairs, random_maps(5, 8, 6, 1))
    (found,), _ = find(pairs, store.root, "clip", flip=True)
    assert isinstance(found, FileFeatures)
    space = store.find(resolve("clip").parts[0], "pad")
    mirrored = {}
    for seed, picture in enumerate(pairs.pictures):
        key = mirrored_key(image_key(picture.path))
        mirrored[picture.name] = torch.randn(
            space.spec.tokens, space.spec.dim, generator=torch.Generator().manual_seed(seed)
        )
        space.write({key: mirrored[picture.name]})
    (found,), _ = find(pairs, store.root, "clip", flip=True)
    assert isinstance(found, StoreFeatures)
    picture = pairs.pictures[0]
    flipped = found.flipped().raw(picture).flatten(1).T
    assert torch.equal(flipped, mirrored[picture.name])
    assert not torch.equal(found.raw(picture).flatten(1).T, flipped)


def test_a_store_with_several_dtypes(stored):
    """Which one is asked for; --dtype says it."""
    pairs, store, maps = stored
    half = store.space(resolve("dinov2").parts[0], "pad", "float16")
    half.write(
        {image_key(p.path): m.flatten(1).T for p, m in zip(pairs.pictures, maps, strict=True)}
    )
    with pytest.raises(UsageError, match="say which with --dtype"):
        find(pairs, store.root, "dinov2")
    (found,), _ = find(pairs, store.root, "dinov2", dtype="float16")
    assert found.raw(pairs.pictures[0]).dtype == torch.float16


def test_stored_and_filed_features_score_alike(stored):
    """[N, C] tokens and [1, C, n, n] files of the same numbers."""
    pairs, store, maps = stored
    towers, _ = find(pairs, store.root, "dinov2")
    filed = save_maps(store.root, "dino", pairs, maps)
    (ours,), (theirs,) = (score(pairs, [one], [[1]], 16) for one in (towers[0], filed))
    assert np.array_equal(ours.all.hits_SA, theirs.all.hits_SA)


def fill(store, pairs, name, seed, frame="pad", dtype="float32"):
    """Puts made-up features of a tower into the store; its spec."""
    (spec,) = resolve(name).parts
    maps = random_maps(len(pairs.pictures), spec.dim, spec.grid[0], seed)
    shown = zip(pairs.pictures, maps, strict=True)
    space = store.space(spec, frame, dtype)
    space.write({image_key(p.path): m.flatten(1).T for p, m in shown})
    return spec


def check_names(reports):
    """Every report and row has a name of its own, which is read as the towers that it is of."""
    assert len({report.model for report in reports}) == len(reports)
    rows = [row for report in reports for row in report.rows("", "")]
    keys = {(row.representation, row.quantity, row.benchmark, row.protocol) for row in rows}
    assert len(keys) == len(rows)
    assert len({report.representation for report in reports}) == len(reports)
    for report in reports:
        assert report.to_json()["representation"] == report.representation
        meant = resolve(report.representation, grid_align="interpolate")
        assert meant.parts == tuple(tower.space.spec for tower in report.towers)
        assert "+".join(part.hash() for part in meant.parts) == report.spec_hash


def test_settings_have_names_of_their_own(stored, tmp_path):
    """A real diffusion tower at several settings, alone and with another tower."""
    pairs, _, _ = stored
    clip = str(tiny.save_encoder(tmp_path / "clip", "clip_vision_model"))
    out = tmp_path / "real"
    arguments = ["--input_path", str(tmp_path), "--output_path", str(out)]
    settings = [f"{SD15}@128{options}" for options in ("", ":t=261", ":compat=clean")]
    for name in (clip, *settings):
        extract_feature([*arguments, "--feature", name])
    models = [*settings, *(f"{name}+{clip}" for name in settings), "+".join(settings[:2])]
    check_names(evaluate(pairs, Request(models, out)))
    together = Request(stored_names(out, "tower", None), out, combine=True)
    found = evaluate(pairs, together)
    assert len(found) == 15
    check_names(found)


def test_known_towers_have_names_of_their_own(stored):
    """The same of `sd1.5`; sizes that the registry would choose are left out."""
    pairs, store, _ = stored
    settings = [f"sd1.5@512{options}" for options in ("", ":t=261", ":up_ft_index=0:noise_seed=1")]
    for seed, name in enumerate(settings):
        fill(store, pairs, name, seed)
    models = [*settings, *(f"{name}+clip" for name in settings), "+".join(settings)]
    reports = evaluate(pairs, Request(models, store.root))
    check_names(reports)
    own = "runwayml/stable-diffusion-v1-5"
    assert reports[1].representation == f"{own}@512:t=261"
    assert reports[4].representation == f"{own}:t=261.openai/clip-vit-large-patch14"
    combined = evaluate(pairs, Request([models[3], settings[1]], store.root, combine=True))
    check_names(combined)
    assert {report.model for report in combined} >= {f"{own}@512+{settings[1]}"}


def test_mirrors_of_another_size_keep_their_names(stored):
    """Weights from elsewhere may have a size that the registry's tower does not take."""
    pairs, store, _ = stored
    towers, _ = find(pairs, store.root, "clip")
    spec = towers[0].space.spec
    small = dataclasses.replace(spec, weights="mirror", size=112)
    mirror = dataclasses.replace(towers[0], space=store.space(small, "pad", "float32"))
    assert joined_name([mirror]) == "openai/clip-vit-large-patch14"


def test_options_are_read_from_the_store(stored):
    """By the original's names too, with settings, and part by part."""
    pairs, store, _ = stored
    spec = fill(store, pairs, "sd1.5@512:t=261", 0)
    fill(store, pairs, "sd1.5@512", 1)
    for name in ("DIFT1.5@512:t=261", "DIFT1.5:t=261+CLIP", "CLIP.DIFT1.5:t=261"):
        towers, _ = find(pairs, store.root, name)
        assert spec.hash() in [tower.spec_hash for tower in towers]
        assert all(isinstance(tower, StoreFeatures) for tower in towers)
        assert all(tower.n == 16 for tower in towers)


def test_published_sizes_are_scored_as_stored(stored):
    """Under `paper` no part adopts another's grid: unequal ones are an error, or resampled."""
    pairs, store, _ = stored
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    for seed, name in enumerate(("clip", "sd1.5", "sdxl@512")):
        spec = dataclasses.replace(resolve(name).parts[0], **half)
        maps = random_maps(5, spec.dim, spec.grid[0], seed)
        shown = zip(pairs.pictures, maps, strict=True)
        space = store.space(spec, "stretch", "bfloat16" if seed else "float32")
        space.write({image_key(p.path): m.flatten(1).T for p, m in shown})
    asked = Request(["DIFT1.5+CLIP"], store.root, frame="paper")
    with pytest.raises(UsageError, match=r"24 x 24.*16 x 16.*--resample 24"):
        evaluate(pairs, asked)
    (report,) = evaluate(pairs, dataclasses.replace(asked, resample=16))
    assert "/24x24+16x16r16x16/anno840/paper-bfloat16/" in report.protocol
    assert [tower.space.spec.size for tower in report.towers] == [768, 224]


def test_every_stored_tower_is_found_under_paper(stored):
    """At sizes that are published and at those that are a tower's own elsewhere."""
    pairs, store, _ = stored
    for seed, name in enumerate(("DIFTXL", "DIFTXL@768", "DINOv2@336", "clip336")):
        (spec,) = representation(name, "paper").parts
        maps = random_maps(5, spec.dim, spec.grid[0], seed)
        shown = zip(pairs.pictures, maps, strict=True)
        space = store.space(spec, "stretch", "bfloat16")
        space.write({image_key(p.path): m.flatten(1).T for p, m in shown})
    names = stored_names(store.root, "paper", None)
    found, _ = find(pairs, store.root, *names, protocol="paper")
    assert {tower.space.spec.size for tower in found} == {512, 768, 336}
    assert len(found) == 4
    assert {tower.origin for tower in found} == {"paper"}


def test_a_name_longer_than_a_file_name(stored):
    """Is that of the files that extraction wrote for it; without any it is unknown, not a crash."""
    pairs, store, maps = stored
    name = f"DIFT1.5@512:prompt={'%61' * 100}"
    with pytest.raises(UsageError, match=r"no features 'DIFT1\.5@512:prompt="):
        find(pairs, store.root, name)
    save_maps(store.root, suffix_of(name), pairs, maps)
    (found,), _ = find(pairs, store.root, name)
    assert found.name == suffix_of(name)
    assert len(found.name) == 100
    found.path(pairs.pictures[3]).unlink()
    with pytest.raises(LawError, match=f"--feature {name} --pt"):
        find(pairs, store.root, name)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("clip", "tower"),
        ("sd1.5@512", "tower-bfloat16"),
        ("sd1.5@512+clip", "tower-bfloat16"),
        ("clip+sd1.5@512", "tower-bfloat16"),
        ("sd1.5@512:t=261", "tower"),
        ("sd1.5@512:compat=clean", "tower"),
        ("sd1.5@512+sd2.1@512", "tower-bfloat16"),
        ("sd1.5@512+sd1.5@512:t=261", "tower-bfloat16+float32"),
        ("sd1.5@512:t=261+sd1.5@512", "tower-float32+bfloat16"),
        ("sd1.5@512+mine", "tower-bfloat16+external"),
        ("mine+sd1.5@512:t=261", "external+tower"),
    ],
)
def test_the_dtype_is_in_the_protocol(stored, model, expected):
    """Where a tower that computes as published was not run in float32; of others it is rounding."""
    pairs, store, _ = stored
    fill(store, pairs, "sd1.5@512", 0, dtype="bfloat16")
    fill(store, pairs, "sd2.1@512", 1, dtype="bfloat16")
    fill(store, pairs, "sd1.5@512:t=261", 2)
    fill(store, pairs, "sd1.5@512:compat=clean", 3, dtype="bfloat16")
    save_maps(store.root, "mine", pairs, random_maps(5, 8, 16, 0))
    (report,) = evaluate(pairs, Request([model], store.root))
    assert f"/anno840/{expected}/noflip" in report.protocol
    assert {row.protocol.partition("/geo-")[0] for row in report.rows("", "")} == {report.protocol}


def test_a_store_of_class_tokens(stored):
    """They are no map: the patches are asked for, and what is there is named."""
    pairs, store, _ = stored
    spec = dataclasses.replace(resolve("clip336").parts[0], select="cls")
    space = store.space(spec, "pad", "float32")
    space.write({image_key(p.path): torch.ones(1, spec.dim) for p in pairs.pictures})
    with pytest.raises(UsageError, match=r"has no features of \S+clip-vit-large-patch14-336@336"):
        find(pairs, store.root, "clip336")
    finder = _Finder(store.root, pairs.pictures, "tower", None, False, {})
    with pytest.raises(LawError, match=r"holds 'cls' tokens.*places of images.*'patch'"):
        finder.of_space(space, "clip336", "clip336")
