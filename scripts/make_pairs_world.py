"""Makes what docs/experiments/pairs.md is about: pairs of pictures, a language model, a small CLIP.

    python scripts/make_pairs_world.py --out W

W/pairs is the set of `law pairs make-synthetic` with training data, and besides instructions.json,
the captions as answers for stage 2, and described.jsonl, the pairs asked in the same way; W/llm a
LLaMA that has read about such pictures and seen none; W/clip a CLIP that was trained on stage 1's
pictures and captions. The same seed gives the same bytes on the same machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tiny_world.dual import save_dual
from tiny_world.language_model import save_language_model
from tiny_world.shape_pairs import DESCRIBE, imagine_story, lines
from tiny_world.tokenizer import save_tokenizer

from llava.errors import UsageError
from llava.eval.pairs.shapes import SIDE_PX
from llava.eval.pairs.synthetic import make_synthetic
from llava.exits import run_command
from llava.files import write_json, write_text
from llava.log import get_logger

logger = get_logger("pairs-world")

PIECES = 460
"""256 bytes, three special ones, and each word of the world and of its prompt."""


def main(argv: Sequence[str]) -> None:
    """Makes the world."""
    parser = argparse.ArgumentParser(
        prog="make_pairs_world.py", description="Make pairs, a language model and a CLIP for them."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=96, help="of the benchmark")
    parser.add_argument("--images", type=int, default=720, help="of training")
    parser.add_argument("--reading", type=int, default=300, help="steps of the language model")
    parser.add_argument("--looking", type=int, default=100, help="steps of the CLIP")
    arguments = parser.parse_args(argv)
    out, seed = arguments.out, arguments.seed
    if min(arguments.pairs, arguments.images, arguments.reading, arguments.looking) < 1:
        raise UsageError("--pairs, --images, --reading and --looking: expected 1 or more of each")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is there already; give a new folder")
    transformers.utils.logging.disable_progress_bar()
    make_synthetic(out / "pairs", arguments.pairs, seed, arguments.images, apart=True)
    records = json.loads((out / "pairs" / "train.json").read_text())
    _write_questions(out / "pairs", records)
    save_dual(out / "clip", records, out / "pairs", arguments.looking, seed, SIDE_PX)
    save_tokenizer(out / "llm", "small", PIECES, lines())
    save_language_model(out / "llm", seed, arguments.reading, imagine=imagine_story)
    logger.info("%s is made", out)


def _write_questions(folder: Path, records: list[dict[str, Any]]) -> None:
    """What stage 2 learns from, and the benchmark with the question that it learns to answer."""
    asked = []
    for record in records:
        answer = record["conversations"][1]
        question = {"from": "human", "value": f"<image>\n{DESCRIBE}"}
        asked.append(record | {"conversations": [question, answer]})
    write_json(folder / "instructions.json", asked)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    described = [json.dumps(pair | {"question": DESCRIBE}) + "\n" for pair in pairs]
    write_text(folder / "described.jsonl", "".join(described))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "make_pairs_world.py")
