"""The pairs' miniature: same seed, same bytes; a CLIP that all commands read; true stories.

The commands of docs/experiments/pairs.md run on a world of a few steps: what they print then says
nothing of the models, and that they fit together is what is tested. docs/experiments/pairs.md has
what the whole of it measures.
"""

import hashlib
import json
import random
from pathlib import Path

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
def test_the_commands_fit_together(world, tmp_path, capsys):
    """Of docs/experiments/pairs.md, on few steps; the two LLaVAs stand side by side at the end."""

    def config(name):
        text = (CONFIGS / f"{name}.yaml").read_text().replace("runs/pairs_world", str(world))
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    score = ["pairs", "run", "--out"]
    clip = str(tmp_path / "clip.json")
    law([*score, clip, *config("pairs_world"), "--scorer", "clip", "--model", str(world / "clip")])
    results = [clip]
    for select in ("patch", "cls"):
        stage1, stage2 = (str(tmp_path / f"{select}_stage{n}") for n in (1, 2))
        given = ["--mm_vision_select_feature", select, "--max_steps", "2"]
        law(["train", *config("pairs_world_stage1"), *given, "--output_dir", stage1])
        given += ["--pretrain_mm_mlp_adapter", f"{stage1}/mm_projector.bin"]
        law(["train", *config("pairs_world_stage2"), *given, "--output_dir", stage2])
        results.append(str(tmp_path / f"{select}.json"))
        asked = config("pairs_world_described")
        law([*score, results[-1], *asked, "--scorer", "vqa", "--model-path", stage2])
    found = [json.loads(Path(path).read_text()) for path in results]
    assert [one["results"][0]["pair"]["of"] for one in found] == [6, 6, 6]
    assert [one["facts"].get("select_feature") for one in found[1:]] == ["patch", "cls"]
    capsys.readouterr()
    law(["pairs", "table", *results[1:], "--axes"])
    said = capsys.readouterr().out
    assert "left/right pair" in said and "select=cls" in said


def test_configs_name_one_world():
    """Every path of the miniature's configs lies in the folder that docs make."""
    for path in sorted(CONFIGS.glob("pairs_world*.yaml")):
        flags = read_yaml(path)
        names = [v for v in flags.values() if isinstance(v, str) and "/" in v]
        names += [one["data"] for one in flags.get("benchmarks", [])]
        assert names and all(name.startswith("runs/pairs_world/") for name in names), path
