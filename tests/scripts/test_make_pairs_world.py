"""The pairs' miniature: same seed, same bytes; a CLIP that all commands read; true stories.

The commands of docs/experiments/pairs.md run on a world of a few steps: what they print then says
nothing of the models, and that they fit together is what is tested. docs/experiments/pairs.md has
what the whole of it measures.
"""

import hashlib
import json
import random
import re
import shlex

import pytest
import torch
from make_pairs_world import main as make_pairs_world
from PIL import Image
from repository import ROOT
from tiny_world.dual import clip_tokenizer
from tiny_world.shape_pairs import DESCRIBE, GROUND, _cells, imagine_story, lines

from llava.__main__ import main as law
from llava.config import read_yaml
from llava.errors import UsageError
from llava.eval.pairs.shapes import CELL_PX, OBJECT_PAIRS, RELATIONS, SHADE, SHAPES, Scene
from llava.model.multimodal_encoder.builder import build_tower
from llava.model.multimodal_encoder.dual import DualEncoder
from llava.model.multimodal_encoder.registry import resolve
from llava.tokenization import load_tokenizer

SMALL = ["--pairs", "6", "--images", "48", "--reading", "2", "--looking", "2"]
DOCS = ROOT / "docs" / "experiments" / "pairs.md"
CONFIGS = ROOT / "configs" / "ablation"


def digest(folder):
    """SHA-256 of every file, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small one."""
    out = tmp_path_factory.mktemp("pairs") / "world"
    make_pairs_world(["--out", str(out), *SMALL])
    return out


def test_same_seed_same_bytes(world, tmp_path):
    """And another seed other pictures and weights; what is there is not written over."""
    make_pairs_world(["--out", str(tmp_path / "again"), *SMALL])
    assert digest(tmp_path / "again") == digest(world)
    make_pairs_world(["--out", str(tmp_path / "other"), "--seed", "1", *SMALL])
    one, other = digest(world), digest(tmp_path / "other")
    for name in ("clip/model.safetensors", "llm/model.safetensors", "pairs/pairs.jsonl"):
        assert one[name] != other[name], name
    with pytest.raises(UsageError, match="is there already"):
        make_pairs_world(["--out", str(world), *SMALL])
    with pytest.raises(UsageError, match="expected 1 or more of each"):
        make_pairs_world(["--out", str(tmp_path / "none"), *SMALL, "--looking", "0"])


def test_one_encoder_in_all_systems(world):
    """The folder is a tower, and a whole CLIP whose vision half is that tower."""
    tower = build_tower(resolve(str(world / "clip"), layer=4, select="cls"))
    dual = DualEncoder(resolve(str(world / "clip")).parts[0])
    picture = Image.open(world / "pairs" / "images" / "pair_00000_0.png")
    pixels = tower.preprocess([picture])
    assert torch.equal(pixels, dual.preprocess([picture]))
    vision = dual.model.vision_model
    embedding = dual.model.visual_projection(vision.post_layernorm(tower(pixels)[:, 0]))
    torch.testing.assert_close(embedding, dual.images(pixels), rtol=1e-5, atol=1e-6)


def test_captions_are_read_word_by_word(world):
    """By both tokenizers: every word is one token, and CLIP's end mark has the largest id."""
    captions = (world / "pairs" / "captions.txt").read_text().splitlines()
    clip = clip_tokenizer(captions)
    dual = DualEncoder(resolve(str(world / "clip")).parts[0])
    assert clip.eos_token_id == len(clip) - 1 == dual.model.config.text_config.eos_token_id
    tokenizer = load_tokenizer(world / "llm")
    for caption in captions:
        words = caption.removesuffix(".").split()
        for read in (clip, dual.tokenizer):
            ids = read(caption)["input_ids"]
            assert len(ids) in (len(words) + 2, len(words) + 3), read.convert_ids_to_tokens(ids)
        ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(words) + 1, tokenizer.convert_ids_to_tokens(ids)


def test_pairs_are_asked_as_stage_2_asks(world):
    """The same pairs and captions, each with the question; answers of stage 2 are the captions."""
    pairs, described = (
        [json.loads(line) for line in (world / "pairs" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pairs", "described")
    )
    assert described == [pair | {"question": DESCRIBE} for pair in pairs]
    told, asked = (
        json.loads((world / "pairs" / f"{name}.json").read_text())
        for name in ("train", "instructions")
    )
    for one, other in zip(told, asked, strict=True):
        assert one["image"] == other["image"]
        assert one["conversations"][1] == other["conversations"][1]
        assert other["conversations"][0]["value"] == f"<image>\n{DESCRIBE}"


@pytest.mark.parametrize("seed", range(8))
def test_cells_are_the_picture(seed):
    """What is told of a cell is what is painted there, and in which half it lies."""
    rng = random.Random(seed)
    scene = Scene.drawn(rng, *rng.choice(OBJECT_PAIRS), rng.choice(list(RELATIONS)))
    pixels = scene.picture().load()
    for number, told in enumerate(_cells(scene)):
        row, column = divmod(number, 4)
        assert told[-2:] == ["left" if column < 2 else "right", "above" if row < 2 else "below"]
        seen = {
            pixels[column * CELL_PX + x, row * CELL_PX + y]
            for x in range(CELL_PX)
            for y in range(CELL_PX)
        }
        inks = seen - {(scene.ground,) * 3}
        if told[0] == GROUND:
            assert not inks
            continue
        (ink,) = inks
        colour = SHAPES[" ".join(told[:2])]
        assert all(abs(a - b) <= SHADE for a, b in zip(ink, colour, strict=True))


def test_stories_are_true():
    """Both sentences say the same of the scene, from either thing; all words are in `lines`."""
    known = set(" ".join(lines()).replace(".", " ").split())
    rng = random.Random(3)
    words = []

    def read(text):
        words.append(text)
        return [len(words) - 1]

    for _ in range(30):
        words.clear()
        story = imagine_story(read, rng)
        said = [words[token].strip() for token in story.text]
        first, second = (text.removesuffix(".").split() for text in said)
        assert first[1:3] == second[-2:] and second[1:3] == first[-2:]
        relations = [
            next(name for name, r in RELATIONS.items() if f" {r.words} " in text) for text in said
        ]
        assert RELATIONS[relations[0]].opposite == relations[1]
        assert len(story.told) == 16
        assert {word for text in said for word in text.removesuffix(".").split()} <= known


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_documented_commands(tmp_path, monkeypatch, capsys):
    """One after the other as they stand, and what docs/experiments/pairs.md says comes of them.

    The same frozen encoder: the LLaVA that reads its patch tokens tells left from right in pairs
    that its twin with the class token and the CLIP itself do not tell apart.
    """
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```bash\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    make, *commands = [shlex.split(line) for line in block.splitlines()]
    assert make == ["python", "scripts/make_pairs_world.py", "--out", "runs/pairs_world"]
    make_pairs_world(make[2:])
    assert all(command[0] == "law" for command in commands)
    for command in commands:
        capsys.readouterr()
        law(command[1:])
        said = capsys.readouterr().out
        if command[1:3] == ["pairs", "table"]:
            assert "left/right pair" in said and "select=cls" in said
    found = {
        name: json.loads((tmp_path / "runs" / "pairs_world" / f"{name}.json").read_text())
        for name in ("clip", "patch", "cls")
    }
    assert [found[name]["facts"]["select_feature"] for name in ("patch", "cls")] == ["patch", "cls"]
    pairs = {
        name: one["results"][0]["by_axis"]["left/right"]["pair"] for name, one in found.items()
    }
    assert {one["of"] for one in pairs.values()} == {48}
    right = {name: one["right"] for name, one in pairs.items()}
    # measured: docs/experiments/pairs.md
    assert right["patch"] >= 8
    assert right["patch"] > 2 * max(right["cls"], right["clip"])


def test_configs_name_one_world():
    """Every path of the miniature's configs lies in the folder that docs make."""
    for path in sorted(CONFIGS.glob("pairs_world*.yaml")):
        flags = read_yaml(path)
        names = [v for v in flags.values() if isinstance(v, str) and "/" in v]
        names += [one["data"] for one in flags.get("benchmarks", [])]
        assert names and all(name.startswith("runs/pairs_world/") for name in names), path
