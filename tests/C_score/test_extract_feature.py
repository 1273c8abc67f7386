"""extract_feature.py: the original README's command line, option names and files."""

import dataclasses
import subprocess
import sys

import pytest
import tiny
import torch
from repository import ROOT

from C_score.extract_feature import main
from C_score.options import options, representation, suffix_of
from llava.errors import UsageError
from llava.features import FeatureStore
from llava.model.multimodal_encoder.registry import resolve

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


def test_paper_sizes_give_way():
    """The published size is a tower's own there; what a name or a partner asks for counts first."""
    assert representation("dinov2@336", "paper").parts[0].size == 336
    assert {p.grid for p in representation("clip336+dinov2", "paper").parts} == {(24, 24)}
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
    [("DINOV22", "did you mean 'DINOv2'"), ("clipp", "did you mean 'CLIP'|'clip'"), ("x/y", "x/y")],
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


def test_suffixes():
    """Options by name and by tower; of other names, the name itself as part of a file name."""
    assert suffix_of("DINOv2") == suffix_of("facebook/dinov2-large") == "dino"
    assert suffix_of("facebook/dinov2-base") == "facebook--dinov2-base"


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
