"""Stage 2 with packed batches beside padded and length-grouped ones, in one run on one thread.

    python benchmarks/stage2.py                # SmolLM2-135M's shape, random weights
    python benchmarks/stage2.py --layers 4     # a quick look

    random   4 samples a batch, in any order
    grouped  by modality and length as LLaVA does it, dealt out to 8 processes
    sorted   by length as transformers does it (its LengthGroupedSampler)
    packed   whole samples in rows of up to 2048 tokens, each attending to itself

Language model and projector are trained, in float32, on 256 tokens an image that are given: a tower
costs the same in all. A step is forward, backward and AdamW.

The lengths stand for LLaVA's 665K instructions and are an assumption, no measurement: 6 % have no
image (40K of the 665K are ShareGPT's) and a long tail, the others have 256 image tokens and shorter
dialogues; all are cut at 2048 tokens, half of the text is supervised.

Each way plans its batches over the whole set. Ordered by size, a few at even distances are run and
stand for all; the column `padding` is of the whole set.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from measure import NO_TIME, Seconds, timed
from shapes import IMAGE_TOKENS, TOWER_DIM, our_llava, smollm2
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.data.packing import pack
from llava.data.sampler import ModalityLengthSampler, ShuffledSampler
from llava.model.segments import SEGMENTS

CAPACITY, BATCH, RANKS = 2048, 4, 8
TEXT_ONLY = 0.06
TEXT_TOKENS = {False: (1000, 1.0), True: (200, 0.7)}
"""Has an image -> median text tokens, standard deviation of their logarithm."""


class Dialogues(torch.utils.data.Dataset):
    """Random ids in the mix's lengths, as the project's dataset gives them with stored features."""

    def __init__(self, count: int, vocabulary: int, image_tokens: int = IMAGE_TOKENS):
        drawn = np.random.default_rng(0)
        self.has_image = drawn.random(count) >= TEXT_ONLY
        median, spread = np.array([TEXT_TOKENS[bool(image)] for image in self.has_image]).T
        text = np.maximum(drawn.lognormal(np.log(median), spread).astype(int), 16)
        self.lengths = np.minimum(text + image_tokens * self.has_image, CAPACITY)
        self.modality_lengths = np.where(self.has_image, self.lengths, -self.lengths)
        self._vocabulary, self._image_tokens = vocabulary, image_tokens
        self._features = torch.randn(1, image_tokens, TOWER_DIM)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> dict:
        image = bool(self.has_image[i])
        text = int(self.lengths[i]) - self._image_tokens * image
        ids = torch.randint(
            1, self._vocabulary, (text,), generator=torch.Generator().manual_seed(i)
        )
        labels = ids.clone()
        labels[: text - text // 2] = IGNORE_INDEX
        if not image:
            return {"input_ids": ids, "labels": labels, "index": i}
        place, nothing = torch.tensor([IMAGE_TOKEN_INDEX]), torch.tensor([IGNORE_INDEX])
        return {
            "input_ids": torch.cat([ids[:1], place, ids[1:]]),
            "labels": torch.cat([labels[:1], nothing, labels[1:]]),
            "index": i,
            "image_features": self._features,
        }


@dataclass
class Way:
    """How samples become batches, the attention that runs them, and what was measured."""

    attention: str
    batches: list[list[int]]
    lengths: np.ndarray
    collate: Callable[[list[int]], dict]
    seconds: Seconds = NO_TIME
    tokens: int = 0
    positions: int = 0
    supervised: int = 0

    def real(self, batch: list[int]) -> int:
        """Tokens of samples."""
        return int(self.lengths[batch].sum())

    def size(self, batch: list[int]) -> int:
        """Positions that the model works on."""
        if self.attention == SEGMENTS:
            return self.real(batch)
        return len(batch) * int(self.lengths[batch].max())

    @property
    def padding(self) -> float:
        """Share of the positions that is no token, over the whole set."""
        return 1 - sum(map(self.real, self.batches)) / sum(map(self.size, self.batches))

    def some(self, count: int) -> list[list[int]]:
        """Batches at even distances in the order of their size."""
        ordered = sorted(self.batches, key=self.size)
        return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]

    def run(self, batch: list[int], step: Callable[[dict], None]) -> None:
        """Times a step, and counts what it worked on."""
        given = self.collate(batch)
        self.seconds += timed(lambda: step(given))
        self.tokens += self.real(batch)
        self.positions += self.size(batch)
        self.supervised += int((given["labels"] != IGNORE_INDEX).sum())


def all_ways(samples: Dialogues) -> dict[str, Way]:
    """By the project's samplers, packing and collator, and by transformers' length grouping."""
    lengths = samples.lengths
    generator = torch.Generator().manual_seed(0)
    orders = {
        "random": ShuffledSampler(len(samples), seed=0),
        "grouped": ModalityLengthSampler(BATCH, RANKS, samples.modality_lengths, seed=0),
        "sorted": LengthGroupedSampler(BATCH, lengths=lengths.tolist(), generator=generator),
    }
    padded, packed = Collator(pad_token_id=0), Collator(pad_token_id=0, packed=True)

    def rows(batch: list[int]) -> dict:
        return padded([samples[i] for i in batch])

    def one_row(batch: list[int]) -> dict:
        return packed([[samples[i] for i in batch]])

    ways = {}
    for name, order in orders.items():
        indices = list(order)
        batches = [indices[i : i + BATCH] for i in range(0, len(indices), BATCH)]
        ways[name] = Way("sdpa", batches, lengths, rows)
    ways["packed"] = Way(SEGMENTS, pack(lengths, CAPACITY, seed=0), lengths, one_row)
    return ways


def disagreement(model: nn.Module, packed: Way, padded: Way) -> float:
    """How far the loss of a pack is from that of its samples as padded rows."""
    batch = next(batch for batch in packed.batches if len(batch) == BATCH)
    losses = []
    for way in (packed, padded):
        model.set_attn_implementation(way.attention)
        with torch.no_grad():
            losses.append(model(**way.collate(batch)).loss.item())
    return abs(losses[0] - losses[1])


def main() -> None:
    """Prints tokens per second, padding, ratios and agreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--samples", type=int, default=20_000, help="of the set that is planned")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = smollm2(arguments.layers)
    model = our_llava(shape, "sdpa")
    samples = Dialogues(arguments.samples, shape.vocab_size)
    ways = all_ways(samples)
    away = disagreement(model, ways["packed"], ways["random"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: dict) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(ways["random"].collate([0]))  # makes the optimizer's state, outside of the timing
    turns = zip(*(way.some(arguments.steps) for way in ways.values()), strict=True)
    for batches in turns:
        for way, batch in zip(ways.values(), batches, strict=True):
            model.set_attn_implementation(way.attention)
            way.run(batch, step)
    report(model, ways, samples)
    print(f"losses of a pack's samples, packed and padded, differ by {away:.0e} (at most 1e-4)")


def report(model: nn.Module, ways: dict[str, Way], samples: Dialogues) -> None:
    """The table and the ratios. FLOPs are 6 per parameter and position, without attention's own."""
    head = model.get_output_embeddings().weight.numel()
    blocks = sum(p.numel() for p in model.get_model().layers.parameters())
    print(
        f"stage 2: {len(samples)} samples of {samples.lengths.mean():.0f} tokens on average, "
        f"{1 - samples.has_image.mean():.1%} without an image"
    )
    print("         padding  tokens  positions  seconds  of CPU  tokens/s  GFLOP/s    head")
    for name, way in ways.items():
        of_head = 6 * head * way.supervised
        work = 6 * blocks * way.positions + of_head
        print(
            f"{name:<8} {way.padding:7.1%} {way.tokens:7d} {way.positions:10d} "
            f"{way.seconds.wall:8.1f} {way.seconds.cpu:7.1f} {way.tokens / way.seconds.wall:9.1f} "
            f"{work / way.seconds.cpu / 1e9:8.0f} {of_head / work:7.1%}"
        )
    packed = ways.pop("packed")
    for (name, way), least in zip(ways.items(), (1.3, 1, 1), strict=True):
        share = packed.tokens / way.tokens
        print(
            f"packed / {name}: tokens/s {share * way.seconds.wall / packed.seconds.wall:.2f} "
            f"(at least {least}), by CPU seconds {share * way.seconds.cpu / packed.seconds.cpu:.2f}"
        )


if __name__ == "__main__":
    main()
