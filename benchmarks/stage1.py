"""Stage 1 beside transformers' own LLaVA, live and from the feature store, on one thread.

    python benchmarks/stage1.py                # SmolLM2-135M and CLIP-L/14 at 224, random weights
    python benchmarks/stage1.py --layers 4     # a quick look

All have the same float32 weights, images and captions; the projector alone is trained. `plain` is
LlavaForConditionalGeneration: the whole tower, logits at every position and cross entropy over
them. A step is forward and backward, and before them its samples' way from the disk: image files
decoded and preprocessed (for plain, too, by the project's code), or tokens of the tower read from
a feature store. FLOPs are of matrix products, attention and convolutions, forward and backward.
Seconds are of the quickest step; the ways take turns.

The bytes are the most that exist at once, forward and backward, in models that are a norm, the head
and its loss alone, on hidden states that are given; weights are not in them. Captions of 8 to 32
tokens are an assumption.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import NO_TIME, Seconds, flops, peak_bytes, quickest
from PIL import Image
from shapes import IMAGE_ID, IMAGE_TOKENS, TOWER, our_llava, plain_llava, smollm2, take_weights
from torch import nn
from transformers import LlamaForCausalLM

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.data.images import ImageSource
from llava.data.stored import StoredFeatures
from llava.features import FeatureStore, image_key
from llava.model.multimodal_encoder.processor import ImageProcessor
from llava.model.multimodal_encoder.registry import resolve
from llava.model.trainable import trainable


def write_images(folder: Path, count: int) -> list[str]:
    """JPEGs of a common size; their names."""
    drawn = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(count)]
    for name in names:
        noise = Image.fromarray(drawn.integers(0, 255, (47, 63, 3), np.uint8))
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return names


def captions(count: int) -> list[list[int]]:
    """Token ids."""
    drawn = random.Random(0)
    return [
        [drawn.randrange(1, IMAGE_ID) for _ in range(drawn.randint(8, 32))] for _ in range(count)
    ]


def our_batch(texts: list[list[int]], image: Callable[[int], dict]) -> dict:
    """Collated samples as the project's dataset gives them; `image(i)` is that of sample i."""
    samples = []
    for i, text in enumerate(texts):
        ids = torch.tensor([0, IMAGE_TOKEN_INDEX, *text])
        labels = ids.clone()
        labels[:2] = IGNORE_INDEX
        samples.append({"input_ids": ids, "labels": labels, "index": i, **image(i)})
    return Collator(pad_token_id=0)(samples)


def plain_batch(texts: list[list[int]], pixels_BCSS: torch.Tensor) -> dict:
    """What LlavaForConditionalGeneration takes: an id for every token of an image."""
    rows = [[0, *[IMAGE_ID] * IMAGE_TOKENS, *text] for text in texts]
    place_T = torch.arange(max(map(len, rows)))
    ids_BT = torch.tensor([row + [0] * (len(place_T) - len(row)) for row in rows])
    real_BT = place_T < torch.tensor([[len(row)] for row in rows])
    return {
        "input_ids": ids_BT,
        "labels": ids_BT.where(real_BT & (place_T > IMAGE_TOKENS), IGNORE_INDEX),
        "attention_mask": real_BT,
        "pixel_values": pixels_BCSS,
    }


def learn(model: nn.Module, batch: dict) -> float:
    """Forward and backward; the loss."""
    loss = model(**batch).loss
    loss.backward()
    return loss.item()


def stored_tokens(
    folder: Path, source: ImageSource, names: list[str], tokens_BNC: torch.Tensor
) -> StoredFeatures:
    """A feature store with the images' tokens."""
    (spec,) = source.processor.representation.parts
    keys = [image_key(source.read(name)) for name in names]
    FeatureStore(folder).space(spec, "own", "float32").write(
        dict(zip(keys, tokens_BNC, strict=True))
    )
    return StoredFeatures(folder, source.processor.representation, "own")


@dataclass
class Way:
    """A step, the part of it that reads samples, and what was measured."""

    read: Callable[[], dict]
    step: Callable[[dict], float]
    tower_flops: int
    logits: int
    """Positions that have them."""
    flops: int = 0
    loss: float = 0.0
    seconds: Seconds = NO_TIME
    reading: Seconds = NO_TIME

    def run(self) -> None:
        """Reads and learns."""
        self.loss = self.step(self.read())


def head_bytes(labels_BT: torch.Tensor) -> dict[str, int]:
    """Peak bytes, forward and backward, of models that are a norm, a head and its loss alone."""
    shape = smollm2(layers=0)
    hidden_BTH = torch.randn(*labels_BT.shape, shape.hidden_size, requires_grad=True)
    models = {"plain": LlamaForCausalLM(shape).train(), "ours": our_llava(shape, "sdpa")}
    found = {}
    for name, model in models.items():
        model.requires_grad_(False)
        given = {"inputs_embeds": hidden_BTH, "labels": labels_BT}
        found[name] = peak_bytes(lambda model=model, given=given: learn(model, given))
        hidden_BTH.grad = None
    return found


def main() -> None:
    """Prints FLOPs, seconds, ratios, agreement and bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30, help="of the language model")
    parser.add_argument("--samples", type=int, default=4, help="of a step")
    parser.add_argument("--times", type=int, default=3, help="steps, of which the quickest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = plain_llava(arguments.layers)
    ours = our_llava(smollm2(arguments.layers), "sdpa")
    take_weights(ours, plain)
    trainable(ours, stage=1)
    plain.requires_grad_(False)
    plain.model.multi_modal_projector.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        compare(plain, ours, Path(folder), arguments.samples, arguments.times)


def compare(plain: nn.Module, ours: nn.Module, folder: Path, count: int, times: int) -> None:
    """Measures the three ways on `count` samples a step, and prints what was found."""
    names, texts = write_images(folder, count), captions(count)
    source = ImageSource(folder, ImageProcessor(resolve(TOWER)))
    tower = ours.get_vision_tower().load_model()
    pixels_BCSS, _ = source.pixels(names)
    store = stored_tokens(folder / "store", source, names, tower(pixels_BCSS))
    labels_BT = plain_batch(texts, pixels_BCSS)["labels"]
    supervised = int((labels_BT != IGNORE_INDEX).sum())

    def live(i: int) -> dict:
        pixels, sizes = source.pixels([names[i]])
        return {"images": pixels, "image_sizes": sizes}

    def stored(i: int) -> dict:
        return {"image_features": store.features(source.read(names[i]))[None]}

    whole = flops(lambda: plain.model.vision_tower(pixels_BCSS, output_hidden_states=True))
    ways = {
        "plain": Way(
            lambda: plain_batch(texts, source.pixels(names)[0]),
            lambda batch: learn(plain, batch),
            whole,
            labels_BT.numel(),
        ),
        "live": Way(
            lambda: our_batch(texts, live),
            lambda batch: learn(ours, batch),
            flops(lambda: tower(pixels_BCSS)),
            supervised,
        ),
        "store": Way(
            lambda: our_batch(texts, stored), lambda batch: learn(ours, batch), 0, supervised
        ),
    }
    for way in ways.values():
        way.flops = flops(way.run)
    seconds = quickest({name: way.run for name, way in ways.items()}, times)
    reading = quickest({name: way.read for name, way in ways.items()}, times)
    for name, way in ways.items():
        way.seconds, way.reading = seconds[name], reading[name]
    report(ways, count, 4 * ours.config.hidden_size * ours.config.vocab_size)
    size = head_bytes(labels_BT)
    print(
        f"logits and loss: {size['plain'] / 1e6:.0f} MB at all {labels_BT.numel()} positions, "
        f"{size['ours'] / 1e6:.1f} MB at the {supervised} supervised: "
        f"1/{size['plain'] / size['ours']:.1f} (at most 1/8)"
    )


def report(ways: dict[str, Way], count: int, flops_of_logits: int) -> None:
    """The table, ratios and agreement; `flops_of_logits` are those of one position."""
    print(f"stage 1: {count} samples a step; shares are of its FLOPs")
    print(
        "        TFLOP   tower    head    rest  seconds  of CPU reading samples/s GFLOP/s      loss"
    )
    for name, way in ways.items():
        tower, head = way.tower_flops / way.flops, way.logits * flops_of_logits / way.flops
        print(
            f"{name:<6} {way.flops / 1e12:6.3f} {tower:7.1%} {head:7.1%} {1 - tower - head:7.1%} "
            f"{way.seconds.wall:8.2f} {way.seconds.cpu:7.2f} {way.reading.wall:7.3f} "
            f"{count / way.seconds.wall:9.3f} {way.flops / way.seconds.cpu / 1e9:7.0f} "
            f"{way.loss:9.5f}"
        )
    plain, live, store = ways["plain"], ways["live"], ways["store"]
    print(
        f"live / plain: FLOPs {live.flops / plain.flops:.3f} (at most 0.92), "
        f"seconds {live.seconds.wall / plain.seconds.wall:.3f} (at most 1), "
        f"of CPU {live.seconds.cpu / plain.seconds.cpu:.3f}"
    )
    print(
        f"store / live: samples/s {live.seconds.wall / store.seconds.wall:.2f} (at least 1.8), "
        f"by CPU seconds {live.seconds.cpu / store.seconds.cpu:.2f}"
    )
    away = max(abs(way.loss - plain.loss) for way in ways.values())
    print(f"losses differ by {away:.0e} (at most 1e-4)")


if __name__ == "__main__":
    main()
