"""A small CLIP that keeps both of its halves, with a tokenizer of CLIP's own kind.

Whatever reads a CLIP reads this one: its vision half is a tower, and with the other its captions
have scores. The training is that of contrast.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import CLIPModel

from tiny_world.contrast import READER, WORDS, look, save_processor, train, untrained

PLACES = 0.6
"""Deviation of the table of positions at the start: patch tokens say where they lie as loudly as
what they show. With transformers' .02 a training as short as this hardly raises it."""
MARKS = ("<|startoftext|>", "<|endoftext|>")
"""CLIP's; the second pads, too."""
STOP = "."
WORD_END = "</w>"


def save_dual(
    folder: Path, records: Sequence[dict[str, Any]], images: Path, steps: int, seed: int, side: int
) -> CLIPModel:
    """Trains on records of one caption each, writes all of it to `folder`, and gives it.

    `side` is that of the input, pixels. The same seed gives the same bytes on the same machine.
    """
    captions = [record["conversations"][1]["value"] for record in records]
    tokenizer = clip_tokenizer(captions)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = untrained(seed, side, end, begin, tokenizer.pad_token_id)
    nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=PLACES)
    tokenizer.save_pretrained(folder)
    save_processor(folder, side)
    model.save_pretrained(folder)  # so that its preprocessing is known
    length = READER["max_position_embeddings"]
    read = tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt")
    seen = look([images / record["image"] for record in records], folder)
    train(model, seen, read["input_ids"], steps, seed)
    model.save_pretrained(folder)
    return model


def clip_tokenizer(captions: Sequence[str]) -> transformers.CLIPTokenizer:
    """CLIP's own class with every word of the captions as one token; the end mark's id is the last.

    A word is put together from its letters, from the left.
    """
    words = sorted({word.lower() for text in captions for word in WORDS.findall(text)})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*letters, *(letter + WORD_END for letter in letters), STOP + WORD_END]
    merges: list[tuple[str, str]] = []
    for word in words:
        merges += _joins(_pieces(word, merges))
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: place for place, piece in enumerate([*dict.fromkeys(pieces), *MARKS])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)


def _pieces(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """What a word falls into with some merges, the first of which counts most."""
    pieces = [*word[:-1], word[-1] + WORD_END]
    for merge in merges:
        place = 0
        while place + 1 < len(pieces):
            if (pieces[place], pieces[place + 1]) == merge:
                pieces[place : place + 2] = ["".join(merge)]
            place += 1
    return pieces


def _joins(pieces: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of pieces, in the order in which they are joined to one."""
    so_far = pieces[0]
    for piece in pieces[1:]:
        yield so_far, piece
        so_far += piece
