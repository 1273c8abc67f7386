"""extract_feature.py: the original README's command line, option names and files."""

import dataclasses
import re
import subprocess
import sys

import pytest
import tiny
import torch
from repository import ROOT

from C_score.datasets.pairs import Picture
from C_score.extract_feature import main
from C_score.lookup import find_towers
from C_score.options import (
    LONGEST,
    file_suffix,
    options,
    representation,
    shortened,
    sized_name,
    suffix_of,
)
from llava.errors import UsageError
from llava.features import FeatureStore
from llava.model.multimodal_encoder.registry import resolve

SD15 = str(ROOT / "tests" / "golden" / "diffusion" / "sd15")
D = "facebook/dinov2-small"
SD15_ID = "runwayml/stable-diffusion-v1-5"

README_OPTIONS = {
    "DIFT1.5": "sd1.5",
    "DIFT2.1": "sd2.1",
    "DIFTXL": "sdxl",
    "IMDIFT": "imsd",
    "DiTDIFT": "dit",
    "SD3DIFT": "sd3",
    "CLIP": "clip",
    "OPENCLIP": "openclip",
    "DINOv2": "dino",
    "SigLIP": "siglip",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("encoder") / "clip"
    return str(tiny.save_encoder(folder, "clip_vision_model"))


@pytest.fixture
def images(tmp_path):
    """Four pictures below two categories."""
    for i in range(4):
        path = tmp_path / "JPEGImages" / f"cat{i % 2}" / f"200{i}.v1.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(40 + 9 * i, 50, seed=i).save(path)
    return tmp_path / "JPEGImages"


def test_option_names():
    """All ten, with the suffix that the configs' MODEL names."""
    assert {name: option.suffix for name, option in options().items()} == README_OPTIONS


@pytest.mark.parametrize("name", README_OPTIONS)
def test_options_resolve(name):
    """To their tower, at the published size under protocol `paper`."""
    option = options()[name]
    assert representation(name).name == option.tower
    assert representation(option.suffix).name == option.tower
    assert representation(name, "paper").parts[0].size == option.paper_size


def test_protocols():
    """`tower` has the tower's own mean; `paper` scales all of them to [-1, 1]."""
    own, paper = representation("DINOv2").parts[0], representation("DINOv2", "paper").parts[0]
    assert own == resolve("dinov2").parts[0]
    assert paper == dataclasses.replace(own, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        representation("DINOv2", "papr")


@pytest.mark.parametrize("name", [*README_OPTIONS, *README_OPTIONS.values()])
def test_options_stand_where_towers_do(name):
    """At the beginning of a part, whatever the case, with a size, settings and joins behind."""
    option = next(o for known, o in options().items() if name in (known, o.suffix))
    for spelled in (name, name.lower(), name.upper()):
        for joined in (f"{spelled}+{D}", f"{D}+{spelled}", f"{D}.{spelled}", f"{spelled}.{D}"):
            assert option.tower in [part.id for part in representation(joined).parts]
    if resolve(option.tower).parts[0].flexible:
        asked = f"{name}@448" if name in ("DINOv2", "dino") else f"{name}@512:noise_seed=3"
        expected = resolve(asked.replace(name, option.tower))
        assert representation(asked) == expected
        assert representation(f"{D}+{asked}").parts[1] == expected.parts[0]


def test_options_do_not_reach_into_names(tmp_path, monkeypatch):
    """Only a whole name counts; a folder called as an option is joined to is still found."""
    tiny.save_encoder(tmp_path / "a.DIFTXL", "clip_vision_model")
    monkeypatch.chdir(tmp_path)
    assert representation("./a.DIFTXL").parts[0].family == "clip"
    with pytest.raises(UsageError, match="did you mean 'DIFTXL'"):
        representation("DIFTXLS+clip")


def test_paper_sizes():
    """A diffusion option has its published size in any join; a ViT adopts the first's grid."""
    assert representation("dinov2@336", "paper").parts[0].size == 336
    assert {p.grid for p in representation("clip336+dinov2", "paper").parts} == {(24, 24)}
    assert {p.grid for p in representation("C+D@336", "paper").parts} == {(24, 24)}
    diffusion = [name for name in README_OPTIONS if "DIFT" in name]
    assert len(diffusion) == 6
    for first in diffusion:
        for second in ("CLIP", "DIFT1.5@512"):
            asked = representation(f"{first}+{second}", "paper")
            sizes = [part.size for part in asked.parts]
            assert sizes == [options()[first].paper_size, 512 if "@" in second else 224]
    parts = representation("sd1.5+clip").parts
    assert [part.size for part in parts] == [512, 224]
    with pytest.raises(UsageError, match="14 x 14"):
        representation("siglip+clip")


def test_two_images_one_file(images, clip, tmp_path):
    """--pt refuses names that would overwrite each other."""
    path = next(images.rglob("*.jpg"))
    path.with_suffix(".png").write_bytes(path.read_bytes())
    arguments = ["--input_path", str(images), "--output_path", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="would both be written"):
        main([*arguments, "--feature", clip, "--pt"])
    main([*arguments, "--feature", clip])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DINOV22", "did you mean 'DINOv2'"),
        ("clipp", "did you mean 'CLIP'|'clip'"),
        ("x/y", "x/y"),
        ("DIFT1.6:t=261", "unknown feature 'DIFT1.6'; did you mean 'DIFT1.5'"),
        ("DIFT1.5@512+DINOV22", "unknown feature 'DINOV22'; did you mean 'DINOv2'"),
        ("DIFT1.5:tt=261", "option of a diffusion tower 'tt'"),
    ],
)
def test_unknown_feature(name, message):
    """The nearest of options and tower names."""
    with pytest.raises(UsageError, match=message):
        representation(name)


def test_files_of_the_reference(images, clip, tmp_path, capsys):
    """--pt mirrors the input's folders; a file is [1, C, H, W], row by row, as the store's."""
    out = tmp_path / "features"
    arguments = ["--input_path", str(images), "--output_path", str(out), "--feature", "CLIP"]
    arguments += ["--tower-alias", f"CLIP={clip}", "--batch-size", "3", "--pt"]
    main(arguments)
    assert "4 computed, 0 there" in capsys.readouterr().out
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*_clip.pt"))
    assert written == [f"cat{i % 2}/200{i}.v1_clip.pt" for i in (0, 2, 1, 3)]
    (space,) = FeatureStore(out).spaces()
    assert (space.frame, space.spec.id) == ("pad", "openai/clip-vit-large-patch14")
    from llava.features import image_key

    for path in images.rglob("*.jpg"):
        target = out / path.parent.name / f"{path.stem}_clip.pt"
        feature = torch.load(target, weights_only=True)
        assert feature.shape == (1, 24, 4, 4)
        assert torch.equal(feature[0].flatten(1).T, space.read(image_key(path)))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*_clip.pt")}
    next(iter(before)).write_bytes(b"broken")
    main(arguments)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*_clip.pt")}
    assert sum(before[p] != after[p] for p in before) == 1
    torch.load(next(iter(before)), weights_only=True)


def test_a_representation_name(images, clip, tmp_path, capsys):
    """Any name does; a combination is extracted part by part, in the protocol's frame."""
    dino = str(tiny.save_encoder(tmp_path / "dino", "dinov2"))
    arguments = ["--input_path", str(images), "--output_path", str(tmp_path / "out")]
    main([*arguments, "--feature", f"{clip}+{dino}", "--protocol", "paper", "--pt"])
    assert capsys.readouterr().out.count("4 computed") == 2
    spaces = FeatureStore(tmp_path / "out").spaces()
    assert {space.frame for space in spaces} == {"stretch"}
    assert {space.spec.mean for space in spaces} == {(0.5, 0.5, 0.5)}
    assert len(list((tmp_path / "out").rglob("*.pt"))) == 8


def test_mirrored_files(images, clip, tmp_path):
    """--flip adds what the adaptive flip reads, in the store and as files."""
    out = tmp_path / "features"
    arguments = ["--input_path", str(images), "--output_path", str(out), "--feature", "CLIP"]
    main([*arguments, "--tower-alias", f"CLIP={clip}", "--pt", "--flip"])
    assert len(list(out.rglob("*_clip.pt"))) == len(list(out.rglob("*_clip_flip.pt"))) == 4
    (space,) = FeatureStore(out).spaces()
    assert len(space) == 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DINOv2", ["dino"]),
        ("facebook/dinov2-large", ["dino"]),
        ("facebook/dinov2-base", ["facebook--dinov2-base"]),
        ("clip336", ["openai--clip-vit-large-patch14-336"]),
        ("DIFT1.5@512:t=261", ["sd1.5@512:t=261"]),
        (f"{SD15_ID}@512:t=261", ["sd1.5@512:t=261"]),
        ("DIFT1.5:t=261+CLIP", ["sd1.5@512:t=261", "clip"]),
        ("sdim:compat=clean+clip336", ["imsd:compat=clean", "openai--clip-vit-large-patch14-336"]),
    ],
)
def test_suffixes(name, expected):
    """The option's, or the id without slashes, and what sets it apart; alone as in a join."""
    parts = representation(name).parts
    assert [file_suffix(part) for part in parts] == expected
    assert [suffix_of(sized_name(part)) for part in parts] == expected
    if len(parts) == 1:
        assert suffix_of(name) == expected[0]


def test_suffixes_under_paper():
    """The published size goes without saying there, and another does not."""
    for name in README_OPTIONS:
        (spec,) = representation(name, "paper").parts
        assert file_suffix(spec, "paper") == suffix_of(name, "paper") == options()[name].suffix
        assert representation(sized_name(spec, "paper"), "paper").parts == (spec,)
    (spec,) = representation("DIFTXL@768", "paper").parts
    assert file_suffix(spec, "paper") == "sdxl@768"
    assert representation(sized_name(spec, "paper"), "paper").parts == (spec,)


def test_long_suffixes():
    """At most 100 bytes, by a hash of the whole; two never share one, and short ones stay."""
    prompts = [f"DIFT1.5:prompt={'%C3%A9a%20cat%20' * 30}{end}" for end in "ab"]
    found = [suffix_of(prompt) for prompt in prompts]
    assert len(set(found)) == 2
    for suffix in found:
        assert len(suffix.encode()) == LONGEST
        assert suffix.startswith("sd1.5:prompt=")
        assert re.fullmatch(r"~[0-9a-f]{16}", suffix[-17:])
    assert shortened("a" * LONGEST) == "a" * LONGEST
    assert len(shortened("a" + "\N{LATIN SMALL LETTER E WITH ACUTE}" * LONGEST).encode()) <= LONGEST
    assert file_suffix(representation(prompts[0]).parts[0]) == found[0]


def test_diffusion_files(images, clip, tmp_path):
    """With settings and a long prompt, alone and in a join: one name each, which a score finds."""
    out = tmp_path / "features"
    arguments = ["--input_path", str(images), "--output_path", str(out), "--pt"]
    prompt = f"DIFT1.5@64:t=261:prompt={'a%20photo%20' * 10}"
    alias = ["--tower-alias", f"DIFT1.5={SD15}"]
    for name in ("DIFT1.5@64:t=261", prompt, f"sd1.5@64:t=261+{SD15}@64:t=261"):
        main([*arguments, "--feature", name, *alias])
    main([*arguments, "--feature", f"DIFT1.5+{clip}", *alias])
    suffixes = {re.sub(r".*\.v1_", "", path.name) for path in out.rglob("*.pt")}
    folder, tiny_clip = (path.replace("/", "--") for path in (SD15, clip))
    long = suffix_of(prompt)
    assert suffixes == {
        "sd1.5@64:t=261.pt",
        f"{long}.pt",
        f"{shortened(folder + '@64:t=261')}.pt",
        "sd1.5@128.pt",
        f"{shortened(tiny_clip)}.pt",
    }
    pictures = [
        Picture(path, str(path.relative_to(images).with_suffix("")), 40, 50)
        for path in images.rglob("*.jpg")
    ]
    for folder in FeatureStore(out).spaces():
        (folder.folder / "space.json").unlink()
    for asked, names in [
        ("DIFT1.5@64:t=261", ["sd1.5@64:t=261"]),
        (prompt, [long]),
        (f"DIFT1.5@128+{clip}", ["sd1.5@128", shortened(tiny_clip)]),
    ]:
        found, _ = find_towers([asked], out, pictures)
        assert [(one.name, one.origin) for one in found] == [(n, "external") for n in names]


def test_files_of_other_weights(images, tmp_path):
    """A mirror of another size than the option's: that is its own, which no file name says."""
    arguments = ["--input_path", str(images), "--output_path", str(tmp_path / "out"), "--pt"]
    dino = str(tiny.save_encoder(tmp_path / "dino", "dinov2"))
    assert resolve(dino).parts[0].size != resolve("dinov2").parts[0].size
    main([*arguments, "--feature", "DINOv2", "--tower-alias", f"DINOv2={dino}"])
    assert len(list((tmp_path / "out").rglob("*_dino.pt"))) == 4


def test_a_join_is_found_as_it_was_extracted(tmp_path):
    """Its plain name finds the files of a part that adopted another's grid, unless it has some."""
    picture = Picture(tmp_path / "a.jpg", "a", 40, 50)
    for suffix in ("clip", "sd1.5@512"):
        torch.save(torch.rand(1, 3, 16, 16), tmp_path / f"a_{suffix}.pt")
    for asked in ("DIFT1.5+CLIP", "sd1.5+clip"):
        found, _ = find_towers([asked], tmp_path, [picture])
        assert [one.name for one in found] == ["sd1.5@512", "clip"]
    torch.save(torch.rand(1, 3, 24, 24), tmp_path / "a_sd1.5.pt")
    found, _ = find_towers(["sd1.5+clip"], tmp_path, [picture])
    assert [one.name for one in found] == ["sd1.5", "clip"]


def test_names_too_long_for_files(images, clip, tmp_path):
    """Refused before anything is extracted, naming the image."""
    path = next(images.rglob("*.jpg"))
    path.rename(path.with_name("a" * 230 + ".jpg"))
    arguments = ["--input_path", str(images), "--output_path", str(tmp_path / "out")]
    with pytest.raises(UsageError, match=r"bytes long, more than the .*leave --pt out"):
        main([*arguments, "--feature", clip, "--pt"])
    assert not (tmp_path / "out").exists()
    main([*arguments, "--feature", clip])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--protocol", "paper"], {"sd1.5": "bfloat16", "clip": "float32"}),
        (["--protocol", "paper", "--dtype", "float32"], {"sd1.5": "float32", "clip": "float32"}),
        (["--protocol", "paper", "--dtype", "float16"], {"sd1.5": "float16", "clip": "float16"}),
        ([], {"sd1.5": "float32", "clip": "float32"}),
    ],
)
def test_the_published_dtype(images, clip, tmp_path, law_log, flags, expected):
    """bfloat16 for diffusion options under `paper`, aloud, where --dtype does not say another."""
    arguments = ["--input_path", str(images), "--output_path", str(tmp_path / "out"), *flags]
    alias = ["--tower-alias", f"sd1.5={SD15}", "--tower-alias", f"clip={clip}"]
    main([*arguments, "--feature", "sd1.5@128+clip", *alias])
    spaces = FeatureStore(tmp_path / "out").spaces()
    ids = {SD15_ID: "sd1.5", "openai/clip-vit-large-patch14": "clip"}
    assert {ids[space.spec.id]: space.dtype for space in spaces} == expected
    said = [line for line in law_log if "in bfloat16, as the published" in line]
    assert len(said) == (expected["sd1.5"] == "bfloat16")


def test_only_what_depends_on_it_takes_the_published_dtype(images, tmp_path, law_log):
    """`compat: clean` mixes noise in float32, whatever the dtype: it stays in float32."""
    arguments = ["--input_path", str(images), "--output_path", str(tmp_path / "out")]
    feature = ["--feature", f"{SD15}@64:compat=clean", "--protocol", "paper"]
    main([*arguments, *feature])
    (space,) = FeatureStore(tmp_path / "out").spaces()
    assert space.dtype == "float32"
    assert not any("bfloat16" in line for line in law_log)


@pytest.mark.slow
def test_from_inside_the_folder(images, clip, tmp_path):
    """As the README says it; the folders beside the script shadow no package."""
    command = [sys.executable, "extract_feature.py", "--input_path", str(images)]
    command += ["--output_path", str(tmp_path / "out"), "--feature", clip]
    done = subprocess.run(command, cwd=ROOT / "C_score", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command[-1] = "DINOv22"
    done = subprocess.run(command, cwd=ROOT / "C_score", capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("extract_feature: error: unknown feature")
    command[3] = str(tmp_path / "none")
    done = subprocess.run(command, cwd=ROOT / "C_score", capture_output=True, text=True)
    assert done.returncode == 2
    assert "prepare_spair.sh" in done.stderr
    assert "Traceback" not in done.stderr
