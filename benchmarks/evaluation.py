"""Evaluation in batches beside one question at a time, in one run on one thread.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py             # SmolLM2-135M, CLIP-L/14
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --layers 4  # a quick look

plain  what lmms-eval's own `llava` does: each question runs the tower, then `generate`; each choice
       of a multiple-choice question runs both
ours   what `law_llava` does: batches of 8; tower tokens of an image, and what the choices of a
       question begin with, are computed once

Random weights, float32; four questions about each image, as MME has two and SEED-Bench up to seven.
"""

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measure import timed
from PIL import Image
from shapes import our_llava, plain_llava, smollm2, take_weights
from torch import nn
from transformers import PreTrainedTokenizerBase

from llava.eval.answering import Answering, Decoding, Question
from llava.mm_utils import process_images
from llava.tokenization import load_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from tiny_world.tokenizer import save_tokenizer

ABOUT_ONE_IMAGE = 4
NEW_TOKENS = 5
CHOICES = ("a red square", "a blue cross", "two green triangles", "nothing of that kind")


def built(layers: int) -> nn.Module:
    """Our LLaVA of both shapes, with its tower."""
    model = our_llava(smollm2(layers), "sdpa").eval()
    plain = plain_llava(layers)
    take_weights(model, plain)
    model.config.mm_vision_tower = "clip"
    model.config.conversation_version = "vicuna_v1"
    return model


def asked(count: int) -> list[Question]:
    """Questions of different lengths about photographs of noise."""
    drawn = np.random.default_rng(0)
    images = [
        Image.fromarray(drawn.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        for _ in range(-(-count // ABOUT_ONE_IMAGE))
    ]

    def question(place: int) -> Question:
        text = "<image>\nWhat is in the image? " + "Look closely. " * (place % 5)
        image = images[place % len(images)]
        return Question(lambda: ([text], [image]), len(text))

    return [question(place) for place in range(count)]


def one_by_one(answering: Answering, questions: Sequence[Question]) -> list[str]:
    """Tower and `generate` for every question."""
    answers = []
    for question in questions:
        turns, images = question.open()
        ids = answering.prompts.ids(turns)[None]
        model = answering.model
        with torch.inference_mode():
            new = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=answering.pad,
                images=process_images(images, answering.cache.processor, model.config),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
            )
        answers.append(answering.tokenizer.decode(new[0], skip_special_tokens=True))
    return answers


def scored_one_by_one(answering: Answering, questions: Sequence[Question]) -> list[float]:
    """Tower and a forward pass, with all logits, for every choice."""
    found = []
    for question in questions:
        turns, images = question.open()
        for choice in CHOICES:
            row = answering.prompts.labelled([*turns, choice])
            model = answering.model
            with torch.inference_mode():
                pixels = process_images(images, answering.cache.processor, model.config)
                made = model(
                    input_ids=torch.tensor([row.input_ids]),
                    labels=torch.tensor([row.labels]),
                    images=pixels,
                )
            found.append(made.loss.item())
    return found


def main() -> None:
    """Prints seconds and ratios."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30, help="of the language model")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--scored", type=int, default=8, help="multiple-choice questions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), "llama")
        compare(load_tokenizer(folder), built(arguments.layers), arguments)


def compare(tokenizer: PreTrainedTokenizerBase, model: nn.Module, arguments: Namespace) -> None:
    """Both ways, answers first."""

    def answering() -> Answering:
        """Nothing kept from before."""
        return Answering.of(tokenizer, model, model.get_vision_tower().image_processor, None, 8)

    questions = asked(arguments.questions)
    decoding = Decoding(NEW_TOKENS, more={"min_new_tokens": NEW_TOKENS})
    said: dict[str, list] = {}
    plain = timed(lambda: said.update(plain=one_by_one(answering(), questions)))
    ours = timed(lambda: said.update(ours=answering().answers(questions, decoding)))
    same = sum(a == b for a, b in zip(said["plain"], said["ours"], strict=True))
    count = len(questions)
    print(
        f"{count} answers of {NEW_TOKENS} tokens: ours {ours.wall:.1f} s, plain {plain.wall:.1f} s,"
        f" ratio {plain.wall / ours.wall:.1f}; {same} of {count} the same"
    )
    some = asked(arguments.scored)
    repeated = [question for question in some for _ in CHOICES]
    plain = timed(lambda: said.update(plain=scored_one_by_one(answering(), some)))
    ours = timed(lambda: said.update(ours=answering().scores(repeated, list(CHOICES) * len(some))))
    far = max(abs(a - b.mean_nll) for a, b in zip(said["plain"], said["ours"], strict=True))
    print(
        f"{len(repeated)} choices: ours {ours.wall:.1f} s, plain {plain.wall:.1f} s, ratio "
        f"{plain.wall / ours.wall:.1f}; {far:.0e} nats apart at most"
    )


if __name__ == "__main__":
    main()
