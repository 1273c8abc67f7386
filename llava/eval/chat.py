"""`law chat`: asks a trained model about images; the answer, and nothing else, is on stdout."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from llava.errors import LawError, UsageError
from llava.eval.answering import Answering, Decoding
from llava.eval.conversing import Conversing
from llava.extraction import decode
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.registry import parse_replacements


def parser() -> argparse.ArgumentParser:
    """LLaVA's flags and ours; words are joined by `-` or `_`."""
    made = argparse.ArgumentParser(prog="law chat", description="Ask a trained model about images.")
    made.add_argument(
        "--model-path",
        "--model_path",
        required=True,
        help="a LLaVA; or a projector of stage 1 or adapters, with --model-base",
    )
    made.add_argument(
        "--model-base", "--model_base", help="language model of a projector or of adapters"
    )
    made.add_argument(
        "--conv-mode", "--conv_mode", help="conversation template; unset: that of training"
    )
    made.add_argument(
        "--image-file", "--image_file", action="append", default=[], help="may be given repeatedly"
    )
    made.add_argument("--sep", default=",", help="between several names in one --image-file")
    made.add_argument("--query", help="one question; without it, questions are read line by line")
    made.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    made.add_argument("--top_p", type=float)
    made.add_argument("--num_beams", type=int, default=1)
    made.add_argument("--max_new_tokens", type=int, default=512)
    made.add_argument("--seed", type=int, help="of sampling")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument(
        "--dtype", help="float32, bfloat16 or float16; unset: bfloat16 on CUDA, float32 on a CPU"
    )
    made.add_argument("--load-8bit", "--load_8bit", action="store_true")
    made.add_argument("--load-4bit", "--load_4bit", action="store_true")
    made.add_argument(
        "--tower-alias", "--tower_alias", action="append", default=[], metavar="ID=FOLDER"
    )
    return made


def main(argv: Sequence[str]) -> None:
    """Answers --query, or lines of stdin until it ends."""
    arguments = parser().parse_args(argv)
    if arguments.temperature < 0:
        raise UsageError(f"--temperature {arguments.temperature}: expected 0 or more")
    names = [name for given in arguments.image_file for name in given.split(arguments.sep)]
    images = [open_image(name) for name in names]
    tokenizer, model, processor, _ = load_pretrained_model(
        arguments.model_path,
        arguments.model_base,
        get_model_name_from_path(arguments.model_path),
        arguments.load_8bit,
        arguments.load_4bit,
        device=arguments.device,
        dtype=arguments.dtype,
        tower_replacements=parse_replacements(arguments.tower_alias),
    )
    conversing = Conversing(
        Answering.of(tokenizer, model, processor, arguments.conv_mode),
        Decoding(
            arguments.max_new_tokens,
            arguments.temperature,
            arguments.top_p,
            arguments.num_beams,
            arguments.seed,
        ),
    )
    if arguments.query is not None:
        print(conversing.ask(arguments.query, images))
        return
    for line in sys.stdin:
        if line.strip():
            print(conversing.ask(line.strip(), images), flush=True)
            images = []


def open_image(name: str) -> Image.Image:
    """The RGB image of a file; LawError for an address, or a file that is no image."""
    if name.startswith(("http://", "https://")):
        raise UsageError(f"--image-file {name}: download it first; only local files are opened")
    path = Path(name)
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise LawError(f"--image-file {name}: cannot be read: {error.strerror}") from error
    except LawError as error:
        raise LawError(f"--image-file {name}: {error}") from error
