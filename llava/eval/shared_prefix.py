"""Likelihoods of rows that begin alike: what they share is computed once, and kept in a cache.

The choices of a question share its image and its text, several texts about an image share the
image; with hundreds of tokens of an image in every row, that is nearly all of the work.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.masks import Labelled
from llava.errors import LawError
from llava.model.likelihood import AnswerLikelihood, answer_likelihood
from llava.model.segments import SEGMENTS


@dataclass(frozen=True)
class Group:
    """Rows that begin alike."""

    length: int
    """Ids that they share; all of their images are among them, no supervised token is."""
    rows: tuple[int, ...]


def groups(rows: Sequence[Labelled], images: Sequence[Hashable]) -> list[Group] | None:
    """Which rows begin alike, in the order of their first ones; None where sharing saves nothing.

    `images` says of each row which ones it is about. A row with an image right before its answer,
    as in stage 1, cannot be taken apart, for the first token of an answer is predicted by what
    stands before it.
    """
    together: dict[Hashable, list[int]] = {}
    for place, (row, seen) in enumerate(zip(rows, images, strict=True)):
        end = _images_end(row.input_ids)
        if _free(row) < max(end, 1):
            return None
        together.setdefault((seen, tuple(row.input_ids[:end])), []).append(place)
    if len(together) == len(rows):
        return None
    found = []
    for places in together.values():
        alike = _alike([rows[place].input_ids for place in places])
        free = min(_free(rows[place]) for place in places)
        found.append(Group(min(alike, free), tuple(places)))
    return found


def shared_likelihood(
    model: nn.Module, rows: Sequence[Labelled], found: Sequence[Group], pad: int, **images: Any
) -> AnswerLikelihood:
    """What `answer_likelihood` gives for the rows, each group's beginning computed once.

    `images` are the model's arguments for those of every group's first row, in order. Raises
    LawError for a row beyond the model's maximum length.
    """
    device = model.get_input_embeddings().weight.device
    first = [torch.tensor(rows[group.rows[0]].input_ids[: group.length]) for group in found]
    mask = pad_sequence([torch.ones_like(one) for one in first], batch_first=True)
    ids = pad_sequence(first, batch_first=True, padding_value=pad)
    with torch.inference_mode():
        embeddings, mask, position = model.embed_prompt(ids.to(device), mask.to(device), **images)
        begun = model.base_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=position, use_cache=True
        )
        cache = begun.past_key_values
        owner = torch.tensor([g for g, group in enumerate(found) for _ in group.rows])
        places = [place for group in found for place in group.rows]
        lengths = mask.sum(1)[owner.to(device)]
        rest = [(rows[p], found[g].length) for p, g in zip(places, owner.tolist(), strict=True)]
        _check_length(model, lengths.tolist(), rest)
        rest_ids = [torch.tensor(row.input_ids[start:]) for row, start in rest]
        rest_mask = pad_sequence([torch.ones_like(one) for one in rest_ids], batch_first=True)
        labels = [torch.tensor(row.labels[start:]) for row, start in rest]
        cache.batch_select_indices(owner)  # on the CPU: layers may be on several devices
        scored = answer_likelihood(
            model,
            input_ids=pad_sequence(rest_ids, batch_first=True, padding_value=pad).to(device),
            labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX).to(device),
            attention_mask=torch.cat([mask[owner.to(device)], rest_mask.to(device)], 1),
            position_ids=lengths[:, None] + torch.arange(rest_mask.shape[1], device=device),
            past_key_values=cache,
        )
    back = torch.tensor(places, device=device).argsort()
    return AnswerLikelihood(scored.sum_B[back], scored.count_B[back], scored.greedy_B[back])


def can_share(model: nn.Module) -> bool:
    """Whether the model's attention goes on from a cache."""
    return model.config._attn_implementation != SEGMENTS


def _images_end(ids: Sequence[int]) -> int:
    """The place behind the last image."""
    images = [place for place, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX]
    return images[-1] + 1 if images else 0


def _alike(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with."""
    for place, column in enumerate(zip(*rows, strict=False)):
        if len(set(column)) > 1:
            return place
    return min(map(len, rows))


def _free(row: Labelled) -> int:
    """Ids before the one that predicts the first supervised token."""
    first = next(place for place, label in enumerate(row.labels) if label != IGNORE_INDEX)
    return first - 1


def _check_length(
    model: nn.Module, lengths: Sequence[int], rest: Sequence[tuple[Labelled, int]]
) -> None:
    longest = getattr(model.config, "tokenizer_model_max_length", None)
    for length, (row, start) in zip(lengths, rest, strict=True):
        whole = length + len(row.input_ids) - start
        over = 0 if longest is None else whole - longest
        if over <= 0:
            model.check_positions(whole)
        else:
            raise LawError(
                f"{over} tokens of an answer lie beyond the model's maximum length of {longest}; "
                "shorten the question, or ask about fewer images"
            )
