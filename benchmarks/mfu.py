"""Model FLOPs utilisation of both stages on one CUDA GPU, at LLaMA-7B's shape in bfloat16.

    python benchmarks/mfu.py --peak 989     # TFLOP/s in dense bfloat16, as the GPU's maker says
    python benchmarks/mfu.py --peak 312 --rows 4 --attention flash_attention_2

Random weights and ids; 576 tokens an image, which are given: no tower runs. Stage 1 has captions of
24 tokens, stage 2 packed rows of 2048 tokens in the mix of stage2.py. Stage 1 counts 4 FLOPs per
parameter and token (forward, and backward to what goes into the frozen weights), stage 2 counts 6.
Parameters are the decoder blocks'; projector, head, attention's products, and what gradient
checkpointing computes again are not counted. A step is forward and backward, without the optimizer,
whose states a run spreads over its GPUs. Without a CUDA device it says so and measures nothing.
"""

import argparse
import time

import torch
from shapes import llama_7b, our_llava
from stage2 import CAPACITY, Dialogues
from torch import nn
from transformers.utils import is_flash_attn_2_available

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.data.packing import pack
from llava.model.segments import SEGMENTS
from llava.model.trainable import trainable

IMAGE_TOKENS, CAPTION = 576, 24
WARM, TIMED = 2, 5


def captioned(count: int, vocabulary: int, dim: int) -> tuple[dict, int]:
    """A batch of stage 1, and its tokens."""
    ids_BL = torch.randint(1, vocabulary, (count, 2 + CAPTION))
    ids_BL[:, 1] = IMAGE_TOKEN_INDEX
    labels_BL = ids_BL.clone()
    labels_BL[:, :2] = IGNORE_INDEX
    batch = {
        "input_ids": ids_BL,
        "labels": labels_BL,
        "attention_mask": torch.ones_like(ids_BL, dtype=torch.bool),
        "image_features": torch.randn(count, IMAGE_TOKENS, dim),
    }
    return batch, count * (1 + IMAGE_TOKENS + CAPTION)


def packed(rows: int, vocabulary: int) -> tuple[dict, int]:
    """A batch of stage 2, and its tokens."""
    samples = Dialogues(64 * rows, vocabulary, IMAGE_TOKENS)
    packs = pack(samples.lengths, CAPACITY)[:rows]
    batch = Collator(pad_token_id=0, packed=True)([[samples[i] for i in one] for one in packs])
    return batch, int(sum(samples.lengths[one].sum() for one in packs))


def seconds_of(model: nn.Module, batch: dict) -> float:
    """Of a step, on average, once the kernels are warm."""
    for step in range(WARM + TIMED):
        if step == WARM:
            torch.cuda.synchronize()
            start = time.perf_counter()
        model(**batch).loss.backward()
        model.zero_grad()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / TIMED


def main() -> None:
    """Prints seconds, tokens per second and utilisation of both stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=float, required=True, help="of the GPU, TFLOP/s")
    parser.add_argument("--samples", type=int, default=32, help="of a step of stage 1")
    parser.add_argument("--rows", type=int, default=8, help="of a step of stage 2")
    fastest = "flash_attention_2" if is_flash_attn_2_available() else SEGMENTS
    parser.add_argument("--attention", default=fastest)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("NOT RUN: no CUDA device here")
        return
    torch.manual_seed(0)
    shape = llama_7b()
    with torch.device("cuda"):
        model = our_llava(shape, arguments.attention, torch.bfloat16)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    report(model, arguments)


def report(model: nn.Module, arguments: argparse.Namespace) -> None:
    """Runs and prints both stages."""
    parameters = sum(p.numel() for p in model.get_model().layers.parameters())
    vocabulary = model.config.vocab_size
    device = next(model.parameters()).device
    work = {
        1: (4, *captioned(arguments.samples, vocabulary, model.config.mm_hidden_size)),
        2: (6, *packed(arguments.rows, vocabulary)),
    }
    print(
        f"{torch.cuda.get_device_name()}, {arguments.attention}, {parameters / 1e9:.2f}e9 in blocks"
    )
    for stage, (per_token, batch, tokens) in work.items():
        trainable(model, stage)
        given = {name: value.to(device) for name, value in batch.items()}
        seconds = seconds_of(model, given)
        rate = per_token * parameters * tokens / seconds / 1e12
        memory = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"stage {stage}: {tokens} tokens in {seconds:.3f} s, {tokens / seconds:.0f} tokens/s, "
            f"{rate:.0f} TFLOP/s, utilisation {rate / arguments.peak:.1%}, peak {memory:.0f} GB"
        )


if __name__ == "__main__":
    main()
