"""Makes what configs/miniature.yaml is about: scenes, texts, a language model, small encoders.

    python scripts/make_miniature.py world --out W
    python scripts/make_miniature.py language-model --out L
    python scripts/make_miniature.py towers --world W --out T

The world is that of scripts/make_tiny.py, coloured shapes, made for many short runs: stage 1 and 2
see the same images, so encoders run once; words are single tokens; grids are 6 x 6. The language
model has read about scenes and seen none. Of the towers three are random and one, `clip`, was
trained on the world's images and captions. The same seed gives the same bytes on the same machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from tiny_world.contrast import save_trained_encoder
from tiny_world.correspondence import save_correspondence
from tiny_world.encoders import save_encoder
from tiny_world.language_model import Telling, save_language_model
from tiny_world.records import both, captions, mismatched, quiz
from tiny_world.tokenizer import save_tokenizer

from llava.errors import UsageError
from llava.eval.local_tasks import write_local_task
from llava.exits import run_command
from llava.files import write_json
from llava.log import get_logger

logger = get_logger("miniature")

GRID = 6
"""Rows of patches: three to a quarter, so that a shape has patches for its middle and corners."""
PATCH = 8
SIDE = GRID * PATCH
PIECES = 500
TASK = "shapes"
RANDOM = {
    "random-clip": "clip_vision_model",
    "random-siglip": "siglip_vision_model",
    "random-dinov2": "dinov2",
}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "image_size": SIDE}
POSITIONS = 0.4
"""Of the random towers' tokens: enough to tell from one token in which quarter it lies."""
TOLD = Telling(rows=GRID, placeless=0.5)


def main(argv: Sequence[str]) -> None:
    """Makes one part."""
    arguments = parser().parse_args(argv)
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is there already; give a new folder")
    transformers.utils.logging.disable_progress_bar()
    arguments.make(arguments)
    logger.info("%s is made", out)


def parser() -> argparse.ArgumentParser:
    """Of all parts."""
    found = argparse.ArgumentParser(
        prog="make_miniature.py", description="Make the world, models and data of the miniature."
    )
    parts = found.add_subparsers(required=True, metavar="PART")
    world = parts.add_parser("world", help="images, records, questions, keypoints")
    world.set_defaults(make=make_world)
    world.add_argument("--images", type=int, default=1600, help="of training")
    world.add_argument("--held-out", type=int, default=200, help="captions of the A score")
    world.add_argument("--questions", type=int, default=400, help="of the benchmark")
    world.add_argument("--pairs", type=int, default=150, help="of each kind of shape")
    model = parts.add_parser("language-model", help="a LLaMA that has read about scenes")
    model.set_defaults(make=make_language_model)
    model.add_argument("--steps", type=int, default=250)
    towers = parts.add_parser("towers", help="one trained encoder, three random ones")
    towers.set_defaults(make=make_towers)
    towers.add_argument("--world", type=Path, required=True, metavar="DIR")
    towers.add_argument("--steps", type=int, default=250)
    for part in (world, model, towers):
        part.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
        part.add_argument("--seed", type=int, default=0)
    return found


def make_world(arguments: argparse.Namespace) -> None:
    """Writes everything that is no model."""
    out, seed = arguments.out, arguments.seed
    images = out / "images"
    told, asked = both(images, "training", arguments.images, seed)
    held_out = captions(images, "held_out", arguments.held_out, seed, held_out=True)
    files = {"captions": told, "instructions": asked, "captions_heldout": held_out}
    for name, records in (files | {"captions_mismatched": mismatched(held_out)}).items():
        write_json(out / f"{name}.json", records)
    # apart from the others: no encoder runs over the benchmark's images before it is asked
    questions = quiz(out, "questions", arguments.questions, seed)
    answered = [{key: one[key] for key in one if key != "choices"} for one in questions]
    write_local_task(out / "tasks", TASK, answered, out, "generate")
    # as many images as leave several pairs to choose among
    save_correspondence(out / "correspondence", 40 + arguments.pairs, arguments.pairs, seed)


def make_language_model(arguments: argparse.Namespace) -> None:
    """Trains it on text alone."""
    save_tokenizer(arguments.out, "small", PIECES)
    save_language_model(arguments.out, arguments.seed, arguments.steps, TOLD)


def make_towers(arguments: argparse.Namespace) -> None:
    """Trains one, draws the others."""
    world, out, seed = arguments.world, arguments.out, arguments.seed
    for place, (name, kind) in enumerate(RANDOM.items()):
        save_encoder(out / name, kind, seed + place, SIDE, POSITIONS, **SHAPE)
    records = json.loads((world / "captions.json").read_text())
    save_trained_encoder(out / "clip", records, world / "images", arguments.steps, seed, SIDE)


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "make_miniature.py")
