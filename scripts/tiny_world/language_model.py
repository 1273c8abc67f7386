"""A small LLaMA that has read about scenes, and so can be told about one by a projector.

It learns from words alone: a scene is told, and then comes its caption, or a question with its
answer. Some scenes are told in notes. The others are told as an image could be: for every patch of
a grid the sum of some words' embeddings (colour, shape, place), a little disturbed. No image and no
encoder takes part; how to make such sums of an encoder's tokens is what stage 1 learns.
"""

import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llava.log import progress
from llava.tokenization import load_tokenizer, text_encoder
from tiny_world.scenes import PLACES, Scene, imagine
from tiny_world.schedule import one_cycle
from tiny_world.texts import caption, notes, some_questions

WIDTH, LAYERS, HEADS = 96, 3, 4
BATCH = 32
RATE = 3e-3
START = {"weights": 0.08, "embeddings": 0.5}
"""Standard deviations at the start. With transformers' 0.02 the model hardly learns to look back at
what it was told within the steps taken here."""
IN_WORDS, CAPTIONS = 0.3, 0.6
"""Shares: of texts that begin with notes in words; of those that go on with a caption."""
FORGOTTEN, UNSEEN = 0.1, 0.3
"""Of a patch's words; of a shape's patches, which then show background."""
NOISE = 0.1
"""Of the patches, beside the embeddings' own deviation."""


@dataclass(frozen=True)
class Telling:
    """How the scenes are told that a model learns from."""

    rows: int = 4
    """Of the grid of patches, as the encoders have it; every quarter of an image has several."""
    placeless: float = 0
    """Share of the grids whose patches do not say where they lie, as those of encoders without a
    sense of position: the place is to be known from their order."""


@dataclass(frozen=True)
class Story:
    """A text and what it is about.

    Attributes:
        told: ids by position; the embeddings of a position's ids are added.
        text: ids that the model learns to say after it.
    """

    told: list[list[int]]
    text: list[int]


def save_language_model(
    folder: Path,
    seed: int,
    steps: int,
    telling: Telling = Telling(),
    imagine: Callable[[Callable[[str], list[int]], random.Random], Story] | None = None,
) -> None:
    """Trains for `steps` steps, on one thread, and writes the model beside its tokenizer.

    `imagine` gives a story of another world (`imagine_story` of shape_pairs.py), from what reads a
    text's ids and what draws. The same seed gives the same bytes on the same machine. With 0 steps
    the weights are random.
    """
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=START["weights"],
    )
    model = LlamaForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight, std=START["embeddings"])
    if steps:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            rng = random.Random(seed)  # noqa: S311
            encoder = text_encoder(tokenizer)
            read = functools.cache(lambda text: encoder.encode(text, first=False).ids)
            story = imagine or functools.partial(imagine_story, telling=telling)
            stories = [story(read, rng) for _ in range(steps * BATCH)]
            _train(model, stories, tokenizer.bos_token_id, tokenizer.eos_token_id)
        finally:
            torch.set_num_threads(threads)
    model.save_pretrained(folder)


def imagine_story(
    read: Callable[[str], list[int]], rng: random.Random, telling: Telling = Telling()
) -> Story:
    """A text about a scene that is not held out; `read` gives a text's ids."""
    scene = imagine(rng)
    asked = " ".join(some_questions(scene, 1, rng)[0])
    text = caption(scene) if rng.random() < CAPTIONS else asked
    if rng.random() < IN_WORDS:
        told = [[token] for token in read(f"{notes(scene, rng)}\n")]
    else:
        told = [
            [token for word in patch if rng.random() > FORGOTTEN for token in read(word)]
            for patch in _seen(scene, rng, telling)
        ]
    return Story(told, read(f"{text}\n"))


def _seen(scene: Scene, rng: random.Random, telling: Telling) -> Iterator[list[str]]:
    """What can be said about every patch of an image, row by row."""
    things = {thing.place: thing for thing in scene.things}
    rows = telling.rows
    placeless = telling.placeless and rng.random() < telling.placeless
    for patch in range(rows * rows):
        row, column = divmod(patch, rows)
        place = PLACES[2 * (2 * row // rows) + 2 * column // rows]
        where = [] if placeless else place.split()
        thing = things.get(place)
        if thing is None or rng.random() < UNSEEN:
            yield [scene.background, "background", *where]
        else:
            yield [thing.colour, thing.shape, *where]


class _Pieces:
    """The pieces that occur, numbered from 0; all others together are the last number.

    The loss is that over the whole vocabulary: pieces that never occur share one row of the head,
    which counts as often as there are such pieces.
    """

    def __init__(self, model: LlamaForCausalLM, used: set[int]):
        vocabulary = model.config.vocab_size
        self.ids = torch.tensor(sorted(used))
        self.number = {int(token): place for place, token in enumerate(self.ids)}
        self.embeddings = nn.Parameter(model.model.embed_tokens.weight.detach()[self.ids].clone())
        head = model.lm_head.weight.detach()
        self.head = nn.Parameter(torch.cat([head[self.ids], head[:1]]))
        self.counts = torch.zeros(len(self.head))
        self.counts[-1] = math.log(vocabulary - len(self.ids))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, pieces + 1] of [tokens, width]."""
        return hidden @ self.head.T + self.counts

    @torch.no_grad()
    def write(self, model: LlamaForCausalLM) -> None:
        """Puts the rows where they belong."""
        model.model.embed_tokens.weight[self.ids] = self.embeddings
        model.lm_head.weight[:] = self.head[-1]
        model.lm_head.weight[self.ids] = self.head[:-1]


def _train(model: LlamaForCausalLM, stories: list[Story], bos: int, eos: int) -> None:
    stories = [Story([[bos], *story.told], [*story.text, eos]) for story in stories]
    used = {token for story in stories for ids in [*story.told, story.text] for token in ids}
    pieces = _Pieces(model, used)
    trained = [*model.model.layers.parameters(), *model.model.norm.parameters()]
    trained += [pieces.embeddings, pieces.head]
    optimizer = torch.optim.AdamW(trained, RATE, betas=(0.9, 0.95), weight_decay=0.01)
    steps = len(stories) // BATCH
    schedule = one_cycle(optimizer, RATE, steps)
    for step in progress(range(steps), "language model"):
        told, labels = _batch(stories[step * BATCH : (step + 1) * BATCH], pieces)
        given = told @ pieces.embeddings
        given = given + NOISE * START["embeddings"] * torch.randn_like(given)
        hidden = model.model(inputs_embeds=given).last_hidden_state[:, :-1]
        said = labels[:, 1:] >= 0
        loss = nn.functional.cross_entropy(pieces.logits(hidden[said]), labels[:, 1:][said])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    pieces.write(model)


def _batch(stories: list[Story], pieces: _Pieces) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares of the pieces [B, T, pieces], and labels [B, T] where a text is to be said, else -1.

    A position of several words is divided by the root of their number: as long as that of one.
    """
    length = max(len(story.told) + len(story.text) for story in stories)
    told = torch.zeros(len(stories), length, len(pieces.ids))
    labels = torch.full((len(stories), length), -1)
    for row, story in enumerate(stories):
        for place, ids in enumerate([*story.told, *([token] for token in story.text)]):
            for token in ids:
                told[row, place, pieces.number[token]] += len(ids) ** -0.5
        text = [pieces.number[token] for token in story.text]
        labels[row, len(story.told) : len(story.told) + len(text)] = torch.tensor(text)
    return told, labels
