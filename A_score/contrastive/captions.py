"""Captions out of LLaVA's conversations: each time another answer, the question left out."""

import random
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.records import Records, images_of
from llava.errors import LawError
from llava.log import get_logger, progress

logger = get_logger("a-score")

ANSWERERS = ("gpt", "assistant")
"""Whose turns are answers; others ask, or are the system's."""


class Captions:
    """The records of a file that have one image and an answer; the others are counted."""

    def __init__(self, records: Records, seed: int = 0):
        """Reads every record once; LawError where none is left."""
        self.records, self.seed = records, seed
        single = [i for i, count in enumerate(records.image_counts) if count == 1]
        self.keep = [i for i in progress(single, "captions") if answers(records[i])]
        if not self.keep:
            raise LawError(
                f"none of {len(records)} records has one image and an answer; expected LLaVA's "
                "conversations with images"
            )
        if left_out := len(records) - len(self.keep):
            logger.info("%d records without one image and an answer are left out", left_out)

    def __len__(self) -> int:
        return len(self.keep)

    def image(self, i: int) -> str:
        """The image's path, as the record has it."""
        return images_of(self.records[self.keep[i]])[0]

    def caption(self, i: int, epoch: int) -> str:
        """One of the record's answers, drawn by seed, epoch and the record's id."""
        record = self.records[self.keep[i]]
        name = record.get("id", self.keep[i])
        draw = random.Random(f"{self.seed} {epoch} {name}")  # a draw of data  # noqa: S311
        return draw.choice(answers(record))

    def every(self) -> list[str]:
        """All answers that could be drawn, each once, sorted."""
        return sorted({one for i in self.keep for one in answers(self.records[i])})


def answers(record: dict[str, Any]) -> list[str]:
    """The record's answers without blanks around them, empty ones left out."""
    told = [turn["value"] for turn in record["conversations"] if turn["from"] in ANSWERERS]
    return [text for one in told if (text := one.replace(DEFAULT_IMAGE_TOKEN, "").strip())]
