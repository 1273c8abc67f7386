"""A small CLIP, trained here and now on the world's own images and captions; its eye is kept.

Image and caption of a scene are to be nearer to each other than to the others of a batch (Radford
et al. 2021, figure 3). What is written is the vision tower alone, as `save_pretrained` has it.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from llava.files import write_json
from llava.log import progress
from llava.model.multimodal_encoder.preprocess import pixels
from llava.model.multimodal_encoder.registry import resolve
from tiny_world.encoders import IMAGENET
from tiny_world.schedule import one_cycle

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
EYE = {"num_hidden_layers": 4, "patch_size": 8, **SHAPE}
READER = {"num_hidden_layers": 2, "max_position_embeddings": 24, **SHAPE}
WORDS = re.compile(r"\w+|,")
PAD, BEGIN, FIRST_WORD = 0, 1, 3
"""Ids. 2 is left out: transformers takes a CLIP that ends in 2 for one of its early conversions,
whose end mark is the largest id."""
BATCH = 64
RATE = 2e-3


def save_trained_encoder(
    folder: Path, records: Sequence[dict[str, Any]], images: Path, steps: int, seed: int, side: int
) -> CLIPModel:
    """Trains on records of one caption each, writes the vision tower, and gives the whole CLIP.

    `side` is that of the input, pixels. The same seed gives the same bytes on the same machine.
    """
    captions = [record["conversations"][1]["value"] for record in records]
    ids = read(captions, vocabulary(captions))
    model = untrained(seed, side, int(ids.max()), BEGIN, PAD)
    _save(model, folder, side)  # so that its preprocessing is known
    train(model, look([images / record["image"] for record in records], folder), ids, steps, seed)
    _save(model, folder, side)
    return model


def untrained(seed: int, side: int, end: int, begin: int, pad: int) -> CLIPModel:
    """A random CLIP; the ids are those of a text's marks, `end` being the last of all."""
    torch.manual_seed(seed)
    return CLIPModel(
        CLIPConfig(
            vision_config={"image_size": side, **EYE},
            text_config={
                "vocab_size": end + 1,
                "eos_token_id": end,
                "bos_token_id": begin,
                "pad_token_id": pad,
                **READER,
            },
            projection_dim=SHAPE["hidden_size"],
        )
    )


def train(model: CLIPModel, seen: torch.Tensor, ids: torch.Tensor, steps: int, seed: int) -> None:
    """On pixels [images, 3, S, S] and the ids [images, length] of their captions, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _train(model, seen, ids, steps, random.Random(seed))  # noqa: S311
    finally:
        torch.set_num_threads(threads)


def vocabulary(captions: Sequence[str]) -> dict[str, int]:
    """Word -> id, in the order of the alphabet."""
    words = sorted({word for text in captions for word in WORDS.findall(text)})
    return {word: place for place, word in enumerate(words, FIRST_WORD)}


def read(captions: Sequence[str], words: dict[str, int]) -> torch.Tensor:
    """Ids [texts, length]; a text ends with the id after the last word's."""
    end = FIRST_WORD + len(words)
    rows = [[BEGIN, *(words[word] for word in WORDS.findall(text)), end] for text in captions]
    ids = torch.full((len(rows), READER["max_position_embeddings"]), PAD)
    for row, line in zip(ids, rows, strict=True):
        row[: len(line)] = torch.tensor(line)
    return ids


def look(paths: Sequence[Path], folder: Path) -> torch.Tensor:
    """Pixels [images, 3, S, S] as the tower in `folder` takes them."""
    (spec,) = resolve(str(folder.absolute())).parts
    return torch.cat([pixels([Image.open(path)], spec, "own") for path in paths])


def _train(
    model: CLIPModel, seen: torch.Tensor, ids: torch.Tensor, steps: int, rng: random.Random
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = one_cycle(optimizer, RATE, steps)
    model.train()
    for _ in progress(range(steps), "vision tower"):
        rows = rng.sample(range(len(ids)), min(BATCH, len(ids)))
        loss = model(input_ids=ids[rows], pixel_values=seen[rows], return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _save(model: CLIPModel, folder: Path, side: int) -> None:
    """The vision tower with its processor's config."""
    eye = CLIPVisionModel(model.config.vision_config)
    eye.load_state_dict(model.vision_model.state_dict())
    eye.save_pretrained(folder)
    save_processor(folder, side)


def save_processor(folder: Path, side: int) -> None:
    """What a CLIP of `side` pixels does to images before it sees them."""
    write_json(
        folder / "preprocessor_config.json",
        {"resample": 3, "do_resize": True, "do_normalize": True, "size": {"shortest_edge": side}}
        | {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
        | IMAGENET,
    )
