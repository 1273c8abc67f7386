"""How many records and images a sweep's data hold, counted where they are here."""

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

from llava.errors import UsageError
from llava.sweep.config import SweepConfig
from llava.sweep.planning.facts import facts

RECORD, IMAGE = re.compile(rb'"conversations"\s*:'), re.compile(rb'"image"\s*:(?!\s*null)')
"""Keys of LLaVA's JSON; inside of a text their quotes are escaped, so that no parse is needed."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Count:
    """Records of a data set, and where the number is from."""

    records: int
    images: int
    """Records that have one."""
    tokens: int
    """Of a record's text, on average."""
    source: str


def training_records(config: SweepConfig, stage: str, data_path: str) -> Count | None:
    """Of the data of `stage1` or `stage2`; None where a step of `prepare` will make them.

    Raises UsageError naming the key to set where nothing is known.
    """
    cost = config.cost
    name = Path(data_path.split(",")[0]).name
    known = next((entry for entry in facts().data_sets if entry.file == name), None)
    tokens = cost.tokens.get(stage) or (known.tokens if known else facts().text_tokens[stage])
    paths = [Path(part.strip()).expanduser() for part in data_path.split(",")]
    if all(path.is_file() for path in paths):
        counts = [_counted(path) for path in paths]
        records, images = (sum(numbers) for numbers in zip(*counts, strict=True))
        return Count(records, images, tokens, f"counted in {data_path}")
    if stage in cost.samples:
        share = known.images / known.records if known else 1
        records = cost.samples[stage]
        return Count(records, round(share * records), tokens, f"cost.samples.{stage}")
    if known:
        return Count(known.records, known.images, tokens, known.source)
    if config.prepare:
        return None
    raise UsageError(
        f"{stage}: {data_path or 'data_path'} is not there, and it is no data set whose size is "
        f"known; say how many records it has as cost: {{samples: {{{stage}: N}}}}"
    )


def _counted(path: Path) -> tuple[int, int]:
    if not path.stat().st_size:
        return 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return sum(1 for _ in RECORD.finditer(text)), sum(1 for _ in IMAGE.finditer(text))


def correspondence_images(config: SweepConfig) -> int | None:
    """Images that `law features` reads for the C score; None where `prepare` will make them."""
    c = config.correspondence
    if c.image_folder.is_dir():
        return images_in(c.image_folder)
    if "correspondence" in config.cost.samples:
        return config.cost.samples["correspondence"]
    if c.data.name in facts().correspondence:
        return facts().correspondence[c.data.name].images
    if config.prepare:
        return None
    raise UsageError(
        f"correspondence: {c.image_folder} is not there; say how many images it will have as "
        "cost: {samples: {correspondence: N}}"
    )


def images_in(folder: Path) -> int:
    """Images of a folder and those below."""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return sum(name.lower().endswith(SUFFIXES) for name in files)
