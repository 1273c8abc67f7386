"""Names become specs: aliases, longest match, folders, sizes, and errors with a suggestion."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny

from llava import catalog
from llava.config import read_yaml
from llava.errors import ConfigError, LawError, UsageError
from llava.model.multimodal_encoder import known, registry
from llava.model.multimodal_encoder.registry import Asked, resolve
from llava.model.multimodal_encoder.spec import Family, TowerSpec

CLIP, CLIP336 = "openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336"
DINO, SIGLIP = "facebook/dinov2-large", "google/siglip-base-patch16-224"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("clip", [(CLIP, 224)]),
        ("CLIP@336", [(CLIP336, 336)]),
        ("clip336", [(CLIP336, 336)]),
        (CLIP336, [(CLIP336, 336)]),
        ("dinov2@448", [(DINO, 448)]),
        ("C+D@336", [(CLIP336, 336), (DINO, 336)]),
        ("C+D@224", [(CLIP, 224), (DINO, 224)]),
        ("clip336+dinov2", [(CLIP336, 336), (DINO, 336)]),
        ("dinov2+clip336", [(DINO, 336), (CLIP336, 336)]),
        (f"{CLIP}.{DINO}", [(CLIP, 224), (DINO, 224)]),
        (f"{CLIP336}.{DINO}", [(CLIP336, 336), (DINO, 336)]),
        (f"{DINO}.{DINO}", [(DINO, 224), (DINO, 224)]),
        (f"{DINO}@336.facebook/dinov2-base", [(DINO, 336), ("facebook/dinov2-base", 336)]),
        (["clip", "dinov2"], [(CLIP, 224), (DINO, 224)]),
        (["clip336.dinov2"], [(CLIP336, 336), (DINO, 336)]),
        ("siglip2", [("google/siglip2-base-patch16-224", 224)]),
    ],
)
def test_names(name, parts):
    """Each spelling gives these towers at these sizes."""
    assert [(part.id, part.size) for part in resolve(name).parts] == parts


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("C+D@336", f"{CLIP336}.{DINO}"),
        ("clip+dinov2@224", f"{CLIP}.{DINO}"),
        ("dinov2@224", DINO),
        ("dinov2@336", f"{DINO}@336"),
        ("dinov2@336.clip336", f"{DINO}.{CLIP336}"),
    ],
)
def test_full_name(name, full):
    """One name per representation, the catalog's where it has one; it resolves to itself."""
    assert resolve(name).name == full
    assert resolve(full) == resolve(name)


def test_every_paper_setting_parses():
    """All 13 settings parse to known ids and resolve at the paper's resolution (Table 2)."""
    for entry in catalog.representations().values():
        ids = [part.known for part in registry._parts(entry.id)]
        assert ".".join(ids) == entry.id
        found = resolve(entry.display)
        assert found.name == entry.id
        assert {part.size for part in found.parts} == {entry.resolution}


def test_a_dot_inside_an_id():
    """The name that a split on dots tears apart."""
    assert registry._parts(f"{SDXL}.{CLIP336}") == [Asked(SDXL), Asked(CLIP336)]
    assert resolve(f"{SDXL}.{CLIP336}").grid == (24, 24)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clipp", r"unknown tower 'clipp'; did you mean 'clip'\?"),
        ("", "unknown tower ''"),
        ("clip+", "unknown tower 'clip\\+'"),
        ("clip..dinov2", "unknown tower"),
        ("clip@", "unknown tower"),
        ("x" * 300, "unknown tower"),
        ("facebook/dinov2-larg", "did you mean 'facebook/dinov2-large'"),
        ("no/folder/here", "unknown tower"),
        (f"{CLIP}@336", f"takes 224 x 224 px only; at 336 px there is {CLIP336}"),
        ("dinov2@337", "takes multiples of 14 px, got 337; the nearest is 336"),
        ("dinov2@3", "3 px is less than one patch"),
        ("siglip+clip", "grid of 14 x 14.*one of 16 x 16.*grid_align: interpolate"),
        ("clip336+dinov2@224", "24 x 24.*16 x 16"),
        ([], "at least one tower"),
    ],
)
def test_errors(name, message):
    """What is wrong, what is near, what to type."""
    with pytest.raises(UsageError, match=message):
        resolve(name)


def test_options_are_checked():
    """Unknown join, align, layer and selection."""
    with pytest.raises(UsageError, match="did you mean 'append'"):
        resolve("clip", join="appendd")
    with pytest.raises(UsageError, match="grid_align"):
        resolve("clip", grid_align="interpolat")
    with pytest.raises(UsageError, match="hidden states 0 to 24"):
        resolve("clip", layer=25)
    with pytest.raises(UsageError, match="select: expected patch"):
        resolve("clip", select="patches")


def test_joined_grids():
    """append takes unequal grids, interleave does not, interpolation is for channels."""
    appended = resolve("siglip+clip", join="append")
    assert [part.dim for part in appended.parts] == [768, 1024]
    with pytest.raises(UsageError, match=r"768 and 1024 wide.*project each part first"):
        _ = appended.dim
    assert resolve("siglip+clip", grid_align="interpolate").grid == (16, 16)
    assert resolve("siglip+clip", grid_align="interpolate").dim == 1792
    with pytest.raises(UsageError, match="place by place"):
        resolve("siglip+clip", join="interleave", grid_align="interpolate")


def test_a_folder_with_dots_and_a_known_name(tmp_path, monkeypatch):
    """A local folder wins over a hub id of that name; a bare folder never over an alias."""
    monkeypatch.chdir(tmp_path)
    tiny.save_encoder(tmp_path / "run-1.0" / "dino.v2", "dinov2")
    tiny.save_encoder(tmp_path / "openai" / "clip-vit-large-patch14", "clip_vision_model")
    tiny.save_encoder(tmp_path / "clip", "dinov2")
    tiny.save_encoder(tmp_path / "mine", "dinov2")
    assert resolve("run-1.0/dino.v2").parts[0].family == "dinov2"
    assert resolve(CLIP).parts[0].dim == 24
    assert resolve("clip").parts[0].dim == 24  # the alias leads to the id, and that to the folder
    assert resolve("clip").parts[0].family == "clip"
    assert resolve("mine").parts[0].family == "dinov2"
    both = resolve(f"{CLIP}.run-1.0/dino.v2")
    assert [part.family for part in both.parts] == ["clip", "dinov2"]


def test_a_folder_is_its_bytes(tmp_path):
    """Moving a folder keeps the hash, changing a weight changes it."""
    folder = tiny.save_encoder(tmp_path / "a", "dinov2")
    before = resolve(str(folder)).parts[0]
    folder.rename(tmp_path / "b")
    moved = resolve(str(tmp_path / "b")).parts[0]
    assert moved.hash() == before.hash()
    tiny.save_encoder(tmp_path / "b", "dinov2", seed=1)
    assert resolve(str(tmp_path / "b")).parts[0].hash() != before.hash()


def test_facts_of_a_folder(tmp_path):
    """Size, crop, mean and resizing come from its two config files."""
    folder = tiny.save_encoder(tmp_path / "a", "dinov2", crop=32, image_size=56)
    spec = resolve(str(folder)).parts[0]
    assert (spec.size, spec.resize_to, spec.resize, spec.flexible) == (32, 37, "crop", True)
    assert spec.mean == (0.485, 0.456, 0.406)
    spec = resolve(str(tiny.save_encoder(tmp_path / "b", "siglip_vision_model"))).parts[0]
    assert (spec.size, spec.resize, spec.class_token) == (32, "squash", False)
    registers = resolve(str(tiny.save_encoder(tmp_path / "c", "dinov2_with_registers"))).parts[0]
    assert (registers.registers, registers.position_resize) == (4, "transformers-5")


def test_a_folder_without_processor_says_so(tmp_path, law_log):
    """What is usual for the family is taken, aloud."""
    folder = tiny.save_encoder(tmp_path / "a", "clip_vision_model")
    (folder / "preprocessor_config.json").unlink()
    assert resolve(str(folder)).parts[0].mean == resolve("clip").parts[0].mean
    assert "no preprocessor_config.json" in law_log[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "'llama'.*supported"),
        (lambda f: (f / "config.json").write_text("{}"), "model_type 'none'"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no \\*.safetensors"),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"size": 99, "crop_size": 99}'),
            "makes 99 x 99 px, but config.json wants 32 x 32",
        ),
        *(
            (
                lambda f, text=text: (f / "preprocessor_config.json").write_text(text),
                f"preprocessor_config.json: .*{message}",
            )
            for text, message in (
                ('{"do_normalize": false}', "do_normalize is false"),
                ('{"do_rescale": false}', "do_rescale is false"),
                ('{"rescale_factor": 0.0078431}', "rescale_factor is 0.0078431; expected 1/255"),
                ('{"resample": 4}', "resample is 4"),
                ('{"size": {"height": 32, "width": 30}}', "expected a square"),
                ('{"size": "big"}', "expected a number or height and width"),
                ('{"image_mean": 0.5}', "not iterable"),
                ('{"image_mean": [0.5]}', "expected three numbers"),
                ('{"size": {"shortest_edge": 32}, "do_center_crop": false}', "nothing is cropped"),
                ('{"do_center_crop": true, "crop_size": 32}', "needs both size and crop_size"),
            )
        ),
    ],
)
def test_folders_that_are_no_tower(tmp_path, change, message):
    """Each is refused with the file and what was expected."""
    folder = tiny.save_encoder(tmp_path / "a", "clip_vision_model")
    change(folder)
    with pytest.raises(LawError, match=message):
        resolve(str(folder))


def test_a_squash_written_as_a_crop(tmp_path):
    """Size and crop both {32, 32}: squashed, and the crop keeps all of it."""
    folder = tiny.save_encoder(tmp_path / "a", "dinov2")
    sides = {"height": 32, "width": 32}
    config = {"size": sides, "crop_size": sides, "do_center_crop": True, **tiny.IMAGENET}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    spec = resolve(str(folder)).parts[0]
    assert (spec.resize, spec.size) == ("squash", 32)


@pytest.mark.parametrize("spelling", ["own", "./own", "own/", "sub/../own", "{}/own"])
def test_one_folder_one_name(tmp_path, monkeypatch, spelling):
    """However it is written; an absolute path stays one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    tiny.save_encoder(tmp_path / "own", "dinov2")
    name = resolve(spelling.format(tmp_path)).name
    assert name == ("./own" if "{}" not in spelling else f"{tmp_path}/own")
    assert resolve(name) == resolve(spelling.format(tmp_path))


def test_names_of_the_paper_inside_combinations(monkeypatch, tmp_path):
    """`SDXL` and `DINOv2` are names of towers wherever they stand."""
    assert registry._parts("CLIP@336+DINOv2") == [Asked(CLIP336), Asked(DINO)]
    assert registry._parts("SD1.5.clip") == [Asked("runwayml/stable-diffusion-v1-5"), Asked(CLIP)]
    assert registry.parse_replacements(["clip=dinov2", "siglip=./x"]) == {
        CLIP: DINO,
        SIGLIP: "./x",
    }


def test_sizes_that_count_as_own():
    """`sizes` settles what a name leaves open, and gives way to what it says."""
    sizes = {DINO: 448}
    assert resolve("dinov2", sizes=sizes).parts[0].size == 448
    assert resolve("dinov2@336", sizes=sizes).parts[0].size == 336
    assert resolve("clip336+dinov2", sizes=sizes).parts[1].size == 336


def test_class_tokens_need_no_grid(tmp_path):
    """Unequal grids do not matter where only class tokens are joined."""
    found = resolve("clip336+openai/clip-vit-base-patch32", select="cls")
    assert found.dim == 1792


def test_old_processor_configs(tmp_path):
    """Sizes as plain numbers, as the first processors wrote them."""
    folder = tiny.save_encoder(tmp_path / "a", "clip_vision_model")
    old = {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3, **tiny.HALF}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    spec = resolve(str(folder)).parts[0]
    assert (spec.resize, spec.resize_to, spec.mean) == ("crop", 0, (0.5, 0.5, 0.5))


OWN = [
    tower
    for path in sorted(Path(known.__file__).with_name("families").glob("*.yaml"))
    for tower in known.read_family(read_yaml(path), path.name).towers
]
"""Installed packages may add more."""


@pytest.mark.parametrize("spec", OWN, ids=lambda spec: spec.id)
def test_facts(spec):
    """Every tower of ours: a whole grid, fields in range, a hash of its own."""
    rows, columns = spec.grid
    assert rows == columns > 1
    assert spec.family in known.families()
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    read = spec.depth - 1 if spec.t is None else spec.up_ft_index % spec.depth + 1
    assert spec.block == read
    assert sum(other.hash() == spec.hash() for other in known.towers().values()) == 1
    assert dataclasses.replace(spec, layer=spec.block).hash() == spec.hash()


def test_hashes_do_not_move():
    """Stored features and results rest on these: a change of them must be meant."""
    assert resolve("clip").parts[0].hash()[:16] == "9de02c0c48e2b853"
    assert resolve("dinov2").parts[0].hash()[:16] == "e9dff33094611cc8"


def test_each_field_counts():
    """What features depend on changes the hash; where weights lie and unset fields do not."""
    spec = resolve("dinov2").parts[0]
    for change in (
        {"size": 448, "resize_to": 512},
        {"layer": -1},
        {"select": "cls"},
        {"mean": (0.5, 0.5, 0.5)},
        {"position_resize": "transformers-5"},
        {"t": 0},
        {"seed": 0},
        {"interpolation": "bilinear"},
        {"options": {"a": 1}},
    ):
        assert dataclasses.replace(spec, **change).hash() != spec.hash(), change
    assert dataclasses.replace(spec, gated=True).hash() == spec.hash()


def test_plugins(monkeypatch, law_log):
    """Families of other packages join; broken ones are said and left out; clashes are errors."""

    class Point:
        name, value = "mine", "package:FAMILIES"

        def __init__(self, load):
            self.load = load

    spec = {"id": "mine/one", "size": 32, "patch": 8, "dim": 4, "depth": 1, "layer": -1}
    family = {
        "name": "mine",
        "tower": "json:JSONDecoder",
        "summary": "mine",
        "defaults": {"mean": [0, 0, 0], "std": [1, 1, 1], "resize": "squash"},
        "towers": [spec],
        "aliases": {"one": "mine/one"},
    }

    def use(*loads):
        monkeypatch.setattr(known, "entry_points", lambda group: [Point(x) for x in loads])
        for cached in (known.families, known.towers, registry._known):
            cached.cache_clear()

    try:
        use(lambda: [family], lambda: 1 / 0)
        assert resolve("one+mine/one").name == "mine/one.mine/one"
        assert registry.tower_class(resolve("one").parts[0]).__name__ == "JSONDecoder"
        assert "division by zero" in law_log[-1]
        use(lambda: [{**family, "aliases": {"CLIP": "mine/one"}}])
        with pytest.raises(ConfigError, match="'CLIP' is already of family 'clip'"):
            resolve("clip")
        use(lambda: [Family("clip", "a:B", "again")])
        with pytest.raises(ConfigError, match="already a family 'clip'"):
            resolve("clip")
    finally:
        monkeypatch.undo()
        use_real = (known.families, known.towers, registry._known)
        for cached in use_real:
            cached.cache_clear()


def test_a_spec_checks_itself():
    """Impossible facts are refused when they are stated."""
    good = dataclasses.asdict(resolve("clip").parts[0])
    for change, message in (
        ({"depth": 0}, "depth: expected a positive"),
        ({"patch": 500}, "less than one patch"),
        ({"layer": 99}, "hidden states"),
        ({"class_token": False, "select": "cls"}, "no class token"),
    ):
        with pytest.raises(ValueError, match=message):
            TowerSpec(**{**good, **change})
