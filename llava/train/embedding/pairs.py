"""What an embedder learns from: images with a question, and the answers, out of conversations.

A record with one image gives one pair in an epoch, a turn of it drawn from (seed, record, epoch)
alone; so a run that goes on draws as one that was never killed, however many processes share it.
"""

import functools
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.images import ImageError, path_inside
from llava.data.records import Records, images_of
from llava.data.sampler import ShuffledSampler
from llava.errors import LawError, UsageError
from llava.eval.embedding import Entry, instruction
from llava.extraction import decode
from llava.log import get_logger, progress

logger = get_logger("embedding")

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True)
class Pair:
    """An image with its question, and the answer."""

    query: Entry
    target: Entry


class Pairs:
    """The pairs of a file of conversations, in batches that `seed` tells."""

    def __init__(
        self, data_path: str, image_folder: str, batch_size: int, seed: int, questions: bool = True
    ):
        """Reads every record once; LawError for an image that is missing or too few records."""
        self.records = Records(data_path)
        self.folder = Path(image_folder)
        self.batch_size, self.seed, self.questions = batch_size, seed, questions
        if not self.folder.is_dir():
            raise LawError(
                f"--image_folder {image_folder}: no such folder (seen from {Path.cwd()})"
            )
        self.usable = self._look()
        if len(self.usable) < batch_size:
            raise UsageError(
                f"{data_path}: {len(self.usable)} of {len(self.records)} records have one image "
                f"and an answer, fewer than --batch_size {batch_size}; give more, or take less"
            )

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch; what is left over waits for the next one."""
        return len(self.usable) // self.batch_size

    def batch(self, step: int, first: int = 0, count: int | None = None) -> list[Pair]:
        """The pairs of step `step` (from 0), `count` of them from the `first`."""
        epoch, inside = divmod(step, self.per_epoch)
        start = inside * self.batch_size + first
        count = self.batch_size - first if count is None else count
        chosen = self._order(epoch)[start : start + count]
        return [self._pair(self.usable[place], epoch) for place in chosen]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one object lives as long as its run
    def _order(self, epoch: int) -> list[int]:
        sampler = ShuffledSampler(len(self.usable), self.seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    def _look(self) -> list[int]:
        """Numbers of the records with one image, which is there, and an answered turn."""
        usable = []
        for i in progress(range(len(self.records)), "records"):
            if self.records.image_counts[i] != 1:
                continue
            record = self.records[i]
            if not turns(record):
                continue
            name = images_of(record)[0]
            try:
                path = path_inside(self.folder, name)
            except ImageError as error:
                raise LawError(f"{self.records.place(i)}: {error}") from None
            if not path.is_file():
                raise LawError(f"{self.records.place(i)}: image {path} is not there")
            usable.append(i)
        if len(usable) < len(self.records):
            logger.info(
                "%d of %d records are left out: not one image, or no answer",
                len(self.records) - len(usable),
                len(self.records),
            )
        return usable

    def _pair(self, i: int, epoch: int) -> Pair:
        record = self.records[i]
        draw = random.Random(f"{self.seed} {i} {epoch}")  # noqa: S311
        asked, answer = draw.choice(turns(record))
        where, path = self.records.place(i), path_inside(self.folder, images_of(record)[0])

        def opened() -> Image.Image:
            try:
                return decode(path.read_bytes())
            except (OSError, LawError) as error:
                raise LawError(f"{where}: image {path}: {error}") from None

        text = instruction(asked if self.questions else "")
        return Pair(Entry(text, opened, where), Entry(answer, None, where))


def turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(question, answer) of every answered turn, without marks of images; empty questions too."""
    found, said = [], record.get("conversations") or []
    for before, turn in itertools.pairwise(said):
        if before.get("from") in ASKS and turn.get("from") in ANSWERS:
            asked, answer = (
                str(one.get("value") or "").replace(DEFAULT_IMAGE_TOKEN, " ").strip()
                for one in (before, turn)
            )
            if answer:
                found.append((asked, answer))
    return found
