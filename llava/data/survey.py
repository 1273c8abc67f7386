"""Reads every record once before training: which can be used, how long each is, what is left out.

What is left out has to be known before a run: the number of steps, the batches of every rank and
the order after a restart all rest on it. The result is kept on disk, under a hash of all that it
depends on; only image files themselves may change unseen.
"""

import io
import json
import multiprocessing
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.digest import digest
from llava.data.fitting import Fitter
from llava.data.images import CHECKS, ImageError, ImageSource
from llava.data.masks import Labeller, SampleError
from llava.data.records import Records
from llava.data.stored import StoredFeatures
from llava.errors import LawError, UsageError, unknown_name
from llava.files import write_bytes
from llava.log import get_logger, progress

logger = get_logger("data")

VERSION = 1
"""Of how samples are made; goes up when the same inputs give another survey."""
CHUNK = 512
"""Records that a process takes at once."""
ENOUGH = 1000
"""Bad images after which an error need not count on."""
SHOWN = 5
"""Reasons in a line of text; `Survey.plain` has them all."""


@dataclass
class Survey:
    """What of some records is trained on."""

    records: int
    """How many there are."""
    keep: np.ndarray
    """int64 [samples]: numbers of the records that are used, rising."""
    tokens: np.ndarray
    """int64 [samples]: length in the model, tokens of images included."""
    supervised: np.ndarray
    """int64 [samples]: positions with a label."""
    dropped: list[tuple[int, str]] = field(default_factory=list)
    """(record, why it is left out)."""
    cut: int = 0
    """Samples that the maximum length took something from."""
    unseen: int = 0
    """Samples with an image that their text does not speak of."""

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> records that are left out for it, the most frequent first; numbers as `N`."""
        found = Counter(_reason(why) for _, why in self.dropped)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def share_dropped(self) -> float:
        """Of all records, 0 to 1."""
        return len(self.dropped) / max(1, self.records)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        longest = int(self.tokens.max()) if len(self.tokens) else 0
        return {
            "records": self.records,
            "samples": len(self.keep),
            "tokens": int(self.tokens.sum()),
            "supervised_tokens": int(self.supervised.sum()),
            "longest": longest,
            "cut_to_maximum_length": self.cut,
            "images_not_in_text": self.unseen,
            "left_out": self.counts,
            "records_left_out": [{"record": i, "why": why} for i, why in self.dropped],
        }

    def __str__(self) -> str:
        reasons = [f"; {count} left out: {why}" for why, count in self.counts.items()]
        more = f"; {len(reasons) - SHOWN} more reasons" if len(reasons) > SHOWN else ""
        return (
            f"{len(self.keep)} of {self.records} records, {int(self.tokens.sum())} tokens, "
            f"{int(self.supervised.sum())} of them supervised, {self.cut} cut"
            + "".join(reasons[:SHOWN])
            + more
        )


def survey(
    records: Records,
    labeller: Labeller,
    images: ImageSource | None,
    tokens_per_image: int,
    max_length: int | None,
    *,
    features: StoredFeatures | None = None,
    verify_images: str = "exist",
    workers: int = 0,
    cache_dir: str | Path | None = None,
) -> Survey:
    """The same for any number of `workers` (processes; 0: this one).

    Records that cannot be used are left out; an image that fails `verify_images` (`none`, `exist`
    or `decode`; with `features` anything but `none` asks whether the store has it) is an error, or
    left out under the policy `skip`. Raises LawError that counts the bad images and names the
    first, and where no record can be used.
    """
    if verify_images not in CHECKS:
        raise UsageError(unknown_name("verify_images", verify_images, CHECKS))
    work = _Work(
        records,
        Fitter(labeller, images, tokens_per_image, max_length),
        features,
        verify_images if images else "none",
    )
    path = None if cache_dir is None else Path(cache_dir) / f"survey-{work.key()[:32]}.npz"
    if path is not None and (known := _read(path, work.key(), len(records))) is not None:
        logger.info("data, as surveyed before: %s", known)
        return known
    found = _joined(work, _parts(work, workers))
    logger.info("data: %s", found)
    if path is not None:
        _write(path, work.key(), found)
    return found


@dataclass
class _Part:
    """What a stretch of the records gave."""

    rows: list[tuple[int, int, int, bool, bool]] = field(default_factory=list)
    """(record, tokens, supervised, cut, unseen)."""
    dropped: list[tuple[int, str]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Images that are an error."""


@dataclass
class _Work:
    """All that a process needs for its share."""

    records: Records
    fitter: Fitter
    features: StoredFeatures | None
    verify: str

    def run(self, stretch: range) -> _Part:
        part = _Part()
        for i in stretch:
            try:
                fitted = self.fitter(self.records[i])
                for name in fitted.images:
                    self._check(name)
            except SampleError as error:
                part.dropped.append((i, str(error)))
            except ImageError as error:
                skips = self.fitter.images.policy == "skip"
                (part.dropped if skips else part.bad).append((i, str(error)))
            else:
                row = (i, fitted.tokens, fitted.supervised, fitted.cut, fitted.unseen)
                part.rows.append(row)
        return part

    def _check(self, name: str) -> None:
        images = self.fitter.images
        if self.features is None or self.verify == "none":
            images.check(name, self.verify)
        elif self.features.missing([images.read(name)]):
            raise ImageError(
                name, f"has no stored features; {self.features.command(images.folder)}"
            )

    def key(self) -> str:
        """64 hex digits over everything that the survey depends on."""
        stored = self.features and [space.folder.name for space in self.features.spaces]
        fitter = self.fitter
        images = fitter.images and {
            "folder": fitter.images.folder.absolute(),
            "towers": [spec.hash() for spec in fitter.images.processor.representation.parts],
            "grid": fitter.images.processor.representation.grid,
            "anyres": [fitter.images.anyres, fitter.images.pinpoints, fitter.images.merge],
            "policy": fitter.images.policy,
        }
        return digest(
            {
                "version": VERSION,
                "records": self.records.stamp,
                "labeller": fitter.labeller,
                "tokens_per_image": fitter.tokens_per_image,
                "max_length": fitter.max_length,
                "placeholder": IMAGE_TOKEN_INDEX,
                "images": images,
                "features": stored,
                "verify": self.verify,
            }
        )


def _parts(work: _Work, workers: int) -> Iterator[_Part]:
    """Every stretch's part, in order."""
    count = len(work.records)
    stretches = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    if workers < 1 or len(stretches) == 1:
        yield from progress(map(work.run, stretches), "survey", total=len(stretches))
        return
    # not forked: tokenizers and torch have threads by now
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(stretches)), _begin, (work,)) as pool:
        yield from progress(pool.imap(_run, stretches), "survey", total=len(stretches))


_work: _Work | None = None
"""Of a worker process."""


def _begin(work: _Work) -> None:
    global _work
    _work = work


def _run(stretch: range) -> _Part:
    return _work.run(stretch)


def _joined(work: _Work, parts: Iterable[_Part]) -> Survey:
    rows, dropped, bad = [], [], []
    for part in parts:
        rows += part.rows
        dropped += part.dropped
        bad += part.bad
        if len(bad) >= ENOUGH:
            break
    if bad:
        first, why = bad[0]
        count = f"at least {len(bad)}" if len(bad) >= ENOUGH else len(bad)
        raise LawError(
            f"{count} records have an image that cannot be used; the first is "
            f"{work.records.place(first)}: {why}. Mend them, or leave them out with --image_policy "
            "skip"
        )
    table = np.array(rows, np.int64).reshape(-1, 5)
    found = Survey(
        records=len(work.records),
        keep=table[:, 0].copy(),
        tokens=table[:, 1].copy(),
        supervised=table[:, 2].copy(),
        dropped=dropped,
        cut=int(table[:, 3].sum()),
        unseen=int(table[:, 4].sum()),
    )
    if not rows:
        raise LawError(f"no record can be used: {found}")
    return found


def _reason(why: str) -> str:
    """A reason without what is particular to one record."""
    why = re.sub(r"^image .*?: ", "image: ", why)
    return re.sub(r"\d+", "N", why)


def _write(path: Path, key: str, found: Survey) -> None:
    data = io.BytesIO()
    facts = {"cut": found.cut, "unseen": found.unseen, "dropped": found.dropped}
    np.savez(
        data,
        key=np.array(key),
        keep=found.keep,
        tokens=found.tokens,
        supervised=found.supervised,
        facts=np.array(json.dumps(facts)),
    )
    write_bytes(path, data.getvalue())


def _read(path: Path, key: str, count: int) -> Survey | None:
    """The survey that was written for `key`; None where there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            arrays = {name: stored[name] for name in ("keep", "tokens", "supervised")}
            found = Survey(count, **arrays, cut=facts["cut"], unseen=facts["unseen"])
            found.dropped = [(int(i), str(why)) for i, why in facts["dropped"]]
            _check_read(found, str(stored["key"]) == key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: cannot be used (%s); the data are surveyed anew", path, error)
        return None
    return found


def _check_read(found: Survey, same_key: bool) -> None:
    """Raises ValueError where a survey that was read does not hold together."""
    arrays = (found.keep, found.tokens, found.supervised)
    if not same_key:
        raise ValueError("it is of other data")
    if any(a.dtype != np.int64 or a.shape != (len(found.keep),) for a in arrays):
        raise ValueError("its columns differ in length")
    numbers = np.sort(np.concatenate([found.keep, [i for i, _ in found.dropped]]).astype(np.int64))
    if not np.array_equal(numbers, np.arange(found.records)):
        raise ValueError("it does not name every record once")
