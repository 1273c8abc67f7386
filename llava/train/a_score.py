"""A score as likelihood: how well a language model reads captions through a projector.

The token mean of the negative log-likelihood, in nats, over the first records in file order that
have an image and a scored token. No update, no shuffle; sums in float64 over single records, so
neither the batch size nor the number of processes is in the number.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from llava.data.collator import Collator
from llava.data.dataset import ConversationDataset
from llava.errors import LawError
from llava.launch import launch
from llava.log import progress
from llava.model.likelihood import answer_log_likelihood


@dataclass(frozen=True)
class Alignment:
    """The score and what it is made of; lower is better aligned, nats."""

    a_nll_token_mean: float
    """The headline: all scored tokens weigh the same."""
    a_nll_sample_mean: float
    """Mean over records of their own token means."""
    a_nll_sum_mean: float
    """Mean over records of their sums."""
    stderr: float
    """Of the token mean, records being drawn at random."""
    perplexity: float
    n_samples: int
    n_tokens: int
    records: list[int]
    """Index in the file of every record."""
    nll_sums: list[float]
    tokens: list[int]

    def plain(self) -> dict[str, Any]:
        """As JSON has it; `a_score` is the headline with its sign turned: higher is better."""
        return {"a_score": -self.a_nll_token_mean} | asdict(self)


def summarize(records: Sequence[int], sums: Sequence[float], tokens: Sequence[int]) -> Alignment:
    """The three means of records' sums of negative log-likelihoods [R] over their tokens [R]."""
    count, total = len(sums), sum(tokens)
    mean = math.fsum(sums) / total
    residuals = (s - mean * t for s, t in zip(sums, tokens, strict=True))
    spread = math.sqrt(math.fsum(r * r for r in residuals) / (count - 1)) if count > 1 else math.nan
    return Alignment(
        a_nll_token_mean=mean,
        a_nll_sample_mean=math.fsum(s / t for s, t in zip(sums, tokens, strict=True)) / count,
        a_nll_sum_mean=math.fsum(sums) / count,
        stderr=spread * math.sqrt(count) / total,
        perplexity=math.exp(mean),
        n_samples=count,
        n_tokens=total,
        records=list(records),
        nll_sums=list(sums),
        tokens=list(tokens),
    )


def score_alignment(
    model: torch.nn.Module,
    dataset: ConversationDataset,
    collator: Collator,
    samples: int,
    batch_size: int,
) -> Alignment:
    """Scores the first `samples` records of `dataset` with an image; every rank takes a share.

    Raises LawError where fewer are there.
    """
    chosen = _first_with_image(dataset, samples)
    place = launch()
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    mine = batches[place.rank :: place.world]
    device = next(model.parameters()).device
    found: list[tuple[int, int, float, int]] = []
    model.eval()
    for batch in progress(mine, "A score"):
        given = _moved(collator([dataset[i] for i in batch]), device)
        with torch.inference_mode():
            log_p_B, count_B = answer_log_likelihood(model, **given)
        for i, log_p, count in zip(batch, log_p_B.tolist(), count_B.tolist(), strict=True):
            found.append((i, dataset.record_index(i), -log_p, count))
    if place.world > 1:
        found = gather_object(found)
    found.sort()
    empty = [record for _, record, _, count in found if not count]
    if empty:
        raise LawError(
            f"records {', '.join(map(str, empty[:10]))}: their images are damaged, so nothing of "
            "them can be scored; mend them, or take them out of the data"
        )
    _, records, sums, tokens = zip(*found, strict=True)
    return summarize(records, sums, tokens)


def _first_with_image(dataset: ConversationDataset, samples: int) -> list[int]:
    chosen = list(itertools.islice(filter(dataset.shows_image, range(len(dataset))), samples))
    if len(chosen) < samples:
        raise LawError(
            f"only {len(chosen)} records have an image and a scored token, expected {samples}; "
            f"give more data or --a_score_samples {len(chosen)}"
        )
    return chosen


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()
    }


def write_protocol(data_path: str, samples: int, version: str, llm: str) -> str:
    """What the number depends on besides the tower and its projector, as a protocol's name."""
    return f"nll/{Path(data_path).stem}/first{samples}/{version}/token-mean/{Path(llm).name}"
