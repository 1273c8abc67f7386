"""Makes a tiny world to train in: towers, a language model, captions, conversations, images.

    python scripts/make_tiny.py --out tiny

Everything of this repository's training then runs on one CPU thread in minutes, and really learns:
tiny/README.txt has the commands. Images show coloured shapes. The towers are random; the language
model has been trained, here and now, on words about such scenes, and has seen no image.
The same seed gives the same bytes on the same machine.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from tiny_world.encoders import SIDE, save_encoder
from tiny_world.language_model import save_language_model
from tiny_world.records import captions, instructions, mismatched, quiz
from tiny_world.tokenizer import KINDS, save_tokenizer

from llava.errors import UsageError
from llava.eval.local_tasks import write_local_task
from llava.exits import run_command
from llava.files import write_json, write_text
from llava.log import get_logger

logger = get_logger("tiny")

TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "dinov2": "dinov2"}
TOWER_SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
PLACES = 0.4
"""Of the towers' tokens: enough to tell from one token in which quarter it lies."""
STEPS = 600
README = """\
A tiny world, made by scripts/make_tiny.py.

llm/                         a LLaMA that has read about scenes of coloured shapes
towers/clip, siglip, dinov2  random encoders, {side} px, 16 tokens
captions.json                stage 1; instructions.json: stage 2
*_heldout.json               scenes that neither training nor the language model has met
captions_mismatched.json     the held-out captions, each with another scene's image
tasks                        questions about held-out scenes, as tasks of lmms-eval: tiny_vqa lets a
                             model answer, tiny_choice asks which of all answers is the likeliest

Run these in the repository's root. Stage 1 teaches the projector to tell the language model what
the tower sees:

  MODEL={llm} DATA={here}/captions.json IMAGES={here}/images TOWER={here}/towers/clip \\
    OUTPUT={here}/runs/stage1 GPUS=0 GLOBAL_BATCH=16 bash scripts/v1_5/train/pretrain.sh \\
    --num_train_epochs 2 --learning_rate 5e-3 --gradient_checkpointing False \\
    --dataloader_num_workers 0 --logging_steps 25

How well held-out captions are read, in nats per token; with images of other scenes it is worse:

  MODEL={llm} DATA={here}/captions_heldout.json IMAGES={here}/images TOWER={here}/towers/clip \\
    PROJECTOR={here}/runs/stage1/mm_projector.bin OUTPUT={here}/runs/a_score GPUS=0 \\
    bash A_score/compute.sh

  MODEL={llm} DATA={here}/captions_mismatched.json IMAGES={here}/images TOWER={here}/towers/clip \\
    PROJECTOR={here}/runs/stage1/mm_projector.bin OUTPUT={here}/runs/mismatched GPUS=0 \\
    bash A_score/compute.sh

Stage 2 teaches both to answer:

  MODEL={llm} DATA={here}/instructions.json IMAGES={here}/images TOWER={here}/towers/clip \\
    PROJECTOR={here}/runs/stage1/mm_projector.bin OUTPUT={here}/runs/stage2 GPUS=0 \\
    GLOBAL_BATCH=16 bash scripts/v1_5/train/finetune.sh \\
    --num_train_epochs 2 --learning_rate 1e-3 --gradient_checkpointing False \\
    --dataloader_num_workers 0 --logging_steps 25

  law chat --model-path {here}/runs/stage2 --image-file {here}/images/{example} \\
    --query "How many shapes are there?"

How many of the questions about held-out scenes are answered rightly:

  law evaluate --run {here}/runs/stage2 --tasks tiny_vqa,tiny_choice --include_path {here}/tasks
"""


def main(argv: Sequence[str]) -> None:
    """Writes the world."""
    parser = argparse.ArgumentParser(
        prog="make_tiny.py", description="Make a tiny world to train LLaVA in."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captions", type=int, default=3000, help="records of stage 1")
    parser.add_argument("--instructions", type=int, default=3000, help="records of stage 2")
    parser.add_argument("--held-out", type=int, default=200, help="held-out records of each")
    parser.add_argument(
        "--tokenizer", default="llama", choices=KINDS, help="32,000 real pieces, or few of its own"
    )
    parser.add_argument(
        "--untrained", action="store_true", help="a random language model: shapes only, at once"
    )
    parser.add_argument(
        "--quick", action="store_true", help="--untrained, small tokenizer, 32 records of each"
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.untrained, arguments.tokenizer = True, "small"
        arguments.captions = arguments.instructions = arguments.held_out = 32
    counts = (arguments.captions, arguments.instructions, arguments.held_out)
    if min(counts) < 1:
        raise UsageError(f"records: expected 1 or more of each kind, got {min(counts)}")
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise UsageError(f"--out {arguments.out}: is there already; give a new folder")
    transformers.utils.logging.disable_progress_bar()
    make(arguments.out, arguments.seed, counts, arguments.tokenizer, not arguments.untrained)
    logger.info("%s is made; %s says what to type", arguments.out, arguments.out / "README.txt")


def make(
    out: Path, seed: int, counts: tuple[int, int, int], tokenizer: str, trained: bool = True
) -> None:
    """Writes everything; `counts` are captions, instructions, and held-out ones of each."""
    captions_count, instructions_count, held_out = counts
    images = out / "images"
    files = {
        "captions": captions(images, "captions", captions_count, seed),
        "captions_heldout": captions(images, "captions_heldout", held_out, seed, held_out=True),
        "instructions": instructions(images, "instructions", instructions_count, seed),
        "instructions_heldout": instructions(
            images, "instructions_heldout", held_out, seed, held_out=True
        ),
    }
    files["captions_mismatched"] = mismatched(files["captions_heldout"])
    for name, records in files.items():
        write_json(out / f"{name}.json", records)
    asked = quiz(images, "questions_heldout", held_out, seed)
    write_local_task(out / "tasks", "tiny_choice", asked, images, "choice")
    answered = [{key: one[key] for key in one if key != "choices"} for one in asked]
    write_local_task(out / "tasks", "tiny_vqa", answered, images, "generate")
    for place, (name, kind) in enumerate(TOWERS.items()):
        folder = out / "towers" / name
        save_encoder(folder, kind, seed + place, resize_to=SIDE, places=PLACES, **TOWER_SHAPE)
    save_tokenizer(out / "llm", tokenizer)
    save_language_model(out / "llm", seed, STEPS if trained else 0)
    example = files["captions_heldout"][0]["image"]
    here = shlex.quote(str(out))
    text = README.format(here=here, llm=f"{here}/llm", side=SIDE, example=example)
    write_text(out / "README.txt", text)


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "make_tiny.py")
