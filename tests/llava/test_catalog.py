"""The shared names: unique, complete against the paper, and open for a user's own."""

import pytest

from llava import catalog

TABLE_2 = {
    "CLIP@224": ("OpenAI CLIP ViT-L/14", 224, "feed-forward"),
    "CLIP@336": ("OpenAI CLIP ViT-L/14", 336, "feed-forward"),
    "OpenCLIP": ("OpenCLIP ViT-L/14", 224, "feed-forward"),
    "SigLIP": ("SigLIP ViT-L/16", 224, "feed-forward"),
    "DINOv2": ("DINOv2 ViT-L/14", 224, "feed-forward"),
    "SD1.5": ("Stable Diffusion 1.5", 768, "diffusion"),
    "SD2.1": ("Stable Diffusion 2.1", 768, "diffusion"),
    "SDXL": ("Stable Diffusion XL", 768, "diffusion"),
    "SDim": ("SD Image Variations", 768, "diffusion"),
    "SD3": ("Stable Diffusion 3", 512, "diffusion"),
    "DiT": ("DiT", 512, "diffusion"),
    "C+D@224": ("CLIP + DINOv2 ViT-L/14", 224, "combination"),
    "C+D@336": ("CLIP + DINOv2 ViT-L/14", 336, "combination"),
}
"""Table 2 of the paper: display name -> encoder, resolution, family."""

LAW = {
    "mmbench_en_dev": "vision",
    "mme": "vision",
    "ok_vqa_val2014": "vision",
    "seedbench": "vision",
    "mmmu_val": "ocr",
    "textvqa_val": "ocr",
    "vizwiz_vqa_val": "ocr",
    "scienceqa_img": "ocr",
}
"""The paper's eight benchmarks and their groups (section 5.1)."""

FILES = [
    ("benchmarks.yaml", catalog.Benchmark, catalog.benchmarks, catalog.benchmark_id),
    (
        "representations.yaml",
        catalog.Representation,
        catalog.representations,
        catalog.representation_id,
    ),
]


def test_the_thirteen_settings_of_table_2():
    """Names, encoders, sizes and families as printed."""
    found = {
        entry.display: (entry.encoder, entry.resolution, entry.family)
        for entry in catalog.representations().values()
    }
    assert found == TABLE_2


def test_the_eight_benchmarks_of_the_law():
    """Four of vision, four of OCR, and no other in the law."""
    found = {name: entry.group for name, entry in catalog.benchmarks().items() if entry.in_law}
    assert found == LAW
    assert sorted(found.values()) == ["ocr"] * 4 + ["vision"] * 4


def test_benchmarks_outside_of_the_law_are_in_no_group():
    """The paper groups its eight only."""
    others = [entry for entry in catalog.benchmarks().values() if not entry.in_law]
    assert others
    assert {entry.group for entry in others} == {"other"}


@pytest.mark.parametrize(("file", "cls", "table", "resolve"), FILES)
def test_names_are_unique(file, cls, table, resolve):
    """No id, display name or alias means two things, whatever its case; the file is asked, since
    a mapping by id would hide an id that stands there twice."""
    entries = catalog._read(file, cls)
    owner = {}
    for place, entry in enumerate(entries):
        for name in (entry.id, entry.display, *entry.aliases):
            assert owner.setdefault(name.lower(), place) == place, name
        assert len({name.lower() for name in entry.aliases}) == len(entry.aliases), entry.id
    assert len(entries) == len(table())


@pytest.mark.parametrize(("file", "cls", "table", "resolve"), FILES)
def test_every_name_resolves_in_any_case(file, cls, table, resolve):
    """Ids, display names and aliases lead to the id."""
    for name, entry in table().items():
        assert name == entry.id
        for known in (entry.id, entry.display, *entry.aliases):
            for written in (known, known.lower(), known.upper()):
                assert resolve(written) == entry.id


@pytest.mark.parametrize(("file", "cls", "table", "resolve"), FILES)
def test_names_have_no_stray_space(file, cls, table, resolve):
    """A name with a space at its end could never be typed; nor is an id or display name empty."""
    for entry in table().values():
        for name in (entry.id, entry.display, *entry.aliases):
            assert name
            assert name == name.strip()


@pytest.mark.parametrize("name", ["", "my/own-tower", "MyBench", "clip@337", "mmee"])
def test_unknown_names_stay(name):
    """A name that is not listed is the user's own, case included."""
    assert catalog.representation_id(name) == name
    assert catalog.benchmark_id(name) == name
    assert catalog.display_representation(name) == name
    assert catalog.display_benchmark(name) == name
    assert catalog.group(name) == "other"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("ScienceQA (Img)", "scienceqa_img"),
        ("MMBench", "mmbench_en_dev"),
        ("seedbench:seed_image", "seedbench"),
        ("SEED-Bench (Img)", "seedbench"),
        ("OKVQA", "ok_vqa_val2014"),
        ("MME", "mme"),
    ],
)
def test_benchmark_aliases(alias, name):
    """The display names of the paper and lmms-eval's own names."""
    assert catalog.benchmark_id(alias) == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("clip@336", "openai/clip-vit-large-patch14-336"),
        ("dinov2", "facebook/dinov2-large"),
        ("sd1.5", "runwayml/stable-diffusion-v1-5"),
        ("C+D@336", "openai/clip-vit-large-patch14-336.facebook/dinov2-large"),
        ("clip", "openai/clip-vit-large-patch14"),
    ],
)
def test_representation_aliases(alias, name):
    """Those that the design promises."""
    assert catalog.representation_id(alias) == name


def test_display_names():
    """What tables and figures print."""
    assert catalog.display_benchmark("scienceqa_img") == "ScienceQA (Img)"
    assert catalog.display_representation("facebook/dinov2-large") == "DINOv2"
    assert catalog.group("mme") == "vision"


def test_group_takes_any_name_of_a_benchmark():
    """An alias is in the group of its benchmark, never silently in `other`."""
    assert catalog.group("MMBench") == "vision"
    assert catalog.group("textvqa") == "ocr"


def test_combinations_are_made_of_listed_towers():
    """The id of a combination is the ids of its parts joined by a point."""
    single = {
        entry.id for entry in catalog.representations().values() if entry.family != "combination"
    }
    combined = [e for e in catalog.representations().values() if e.family == "combination"]
    assert len(combined) == 2
    for entry in combined:
        first = next(name for name in single if entry.id.startswith(name + "."))
        assert entry.id.removeprefix(first + ".") in single


def test_units_are_known():
    """Every benchmark has a unit that the results table accepts."""
    from llava.results import UNITS

    assert {entry.unit for entry in catalog.benchmarks().values()} <= set(UNITS)


def test_one_name_for_two_is_refused():
    """The catalog itself refuses what the test above checks."""
    entry = next(iter(catalog.benchmarks().values()))
    other = catalog.Benchmark("other", entry.display.upper(), "other", "m", "percent", [])
    with pytest.raises(ValueError, match="names both"):
        catalog._aliases(lambda: {"a": entry, "b": other})
