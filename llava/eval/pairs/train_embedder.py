"""`law pairs train-embedder`: adapters with which a LLaVA gives embeddings, as VLM2Vec trains them.

Flags are called as those of `law train`; defaults are those of arXiv 2411.05195
(docs/pairs_embedding.md). They are read here, apart from the training, so that --help is quick.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from llava.errors import UsageError

WORK = "llava.train.embedding.run"
"""Has `train(arguments)`; of a higher level, so by name."""
LEAST = {
    "batch_size": 2,
    "chunk_size": 1,
    "max_steps": 1,
    "warmup_steps": 0,
    "save_steps": 0,
    "logging_steps": 1,
    "lora_r": 1,
    "max_length": 4,
}


def main(argv: Sequence[str], prog: str = "law pairs train-embedder") -> None:
    """Trains, or goes on with, an embedder."""
    arguments = _parser(prog).parse_args(list(argv))
    for name, least in LEAST.items():
        if getattr(arguments, name) < least:
            raise UsageError(f"--{name} {getattr(arguments, name)}: expected {least} or more")
    if arguments.temperature <= 0 or arguments.learning_rate <= 0:
        raise UsageError("--temperature and --learning_rate: expected more than 0")
    importlib.import_module(WORK).train(arguments)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Train a LLaVA to give embeddings of images and texts."
    )
    _add_what(parser)
    _add_how(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_name_or_path", required=True, metavar="RUN", help="a whole LLaVA (stage 2)"
    )
    parser.add_argument(
        "--data_path", required=True, metavar="JSON", help="conversations; several joined by ','"
    )
    parser.add_argument(
        "--image_folder", required=True, metavar="DIR", help="what image paths start at"
    )
    parser.add_argument(
        "--output_dir", required=True, type=Path, metavar="DIR", help="adapters and checkpoints"
    )
    parser.add_argument(
        "--tower_alias", "--tower-alias", nargs="+", default=[], metavar="ID=FOLDER"
    )
    parser.add_argument("--device", default="", help="cpu, cuda:0, ...; default: a GPU if any")
    parser.add_argument("--dtype", help="of what is frozen; bfloat16 on CUDA, float32 on a CPU")


def _add_how(parser: argparse.ArgumentParser) -> None:
    numbers = {
        "lora_r": (int, 8, "rank of the adapters"),
        "lora_alpha": (int, 64, "their scale times the rank"),
        "lora_dropout": (float, 0.1, "before them"),
        "learning_rate": (float, 2e-5, "the highest"),
        "warmup_steps": (int, 100, "steps up to it; from there it falls to 0, both straight"),
        "weight_decay": (float, 0.0, "of AdamW"),
        "max_grad_norm": (float, 1.0, "gradients are cut to this length; 0: not at all"),
        "max_steps": (int, 1000, "updates in all"),
        "batch_size": (int, 256, "pairs that are told apart, over all processes"),
        "chunk_size": (int, 1, "of them that are in memory at once"),
        "temperature": (float, 0.02, "that cosines are divided by"),
        "max_length": (int, 512, "tokens of a text"),
        "seed": (int, 0, "of adapters, order, turns and dropout"),
        "save_steps": (int, 100, "between checkpoints; 0: at the end alone"),
        "save_total_limit": (int, 2, "checkpoints that are kept"),
        "logging_steps": (int, 10, "between lines of log.jsonl"),
    }
    for name, (kind, default, what) in numbers.items():
        parser.add_argument(
            f"--{name}",
            f"--{name.replace('_', '-')}",
            type=kind,
            default=default,
            help=f"{what} (default: {default})",
        )
    parser.add_argument("--dora", action="store_true", help="DoRA in place of LoRA")
    parser.add_argument(
        "--no-question", "--no_question", action="store_true", help="images without the question"
    )
    parser.add_argument("--gradient_checkpointing", "--gradient-checkpointing", action="store_true")
    parser.add_argument(
        "--resume_from_checkpoint",
        "--resume-from-checkpoint",
        metavar="WHAT",
        help="unset: the newest; auto: the newest good one; False: begin anew; or a folder",
    )
