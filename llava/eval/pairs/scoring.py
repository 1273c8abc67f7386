"""Scores of whole benchmarks, piece by piece, so that a run that was killed goes on.

Items are scored in pieces of a fixed size; a piece that is done is a line of a file beside the
result. A piece is the same whether the run was interrupted or not, so its batches are, and so are
its numbers to the last digit. The file's first line says what the scores depend on; lines of
something else, and a last line that was cut off, are not read. Of several processes each takes
every n-th piece and has a file of its own; all files are read, whichever number of processes wrote
them.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from llava.errors import LawError, UsageError
from llava.eval.pairs.items import Benchmark, Item
from llava.eval.pairs.scorer import Scorer
from llava.files import write_text
from llava.launch import Launch, launch
from llava.log import get_logger, progress

logger = get_logger("pairs")

Piece = tuple[str, int, tuple[Item, ...]]
"""(benchmark, place of its first item, items)."""
Done = dict[tuple[str, int], list[np.ndarray]]
"""(benchmark, place of its first item) -> [I, C] of its items."""
PIECE = 64
"""Items scored at once."""
VERSION = 1
"""Goes up when the same scorer and benchmark give other scores."""

WHERE = ("model", "model_base", "run_dir")
"""Facts of a checkpoint's place, which may be written in several ways."""


def benchmark_digest(benchmark: Benchmark) -> str:
    """16 hex digits of what is asked, the images' bytes among it; where they lie does not count.

    LawError for an image that cannot be read.
    """
    found = hashlib.sha256(f"{benchmark.chooses} {benchmark.protocol}".encode())
    known: dict[Path, str] = {}
    for item in benchmark.items:
        for path in item.images:
            if path not in known:
                known[path] = _digest_of(path)
        facts = (item.captions, item.right, item.choices, item.pairs, item.axes, item.question)
        images = [known[path] for path in item.images]
        found.update(json.dumps([item.id, images, *facts]).encode() + b"\n")
    return found.hexdigest()[:16]


def fingerprint(facts: dict[str, Any], digests: dict[str, str]) -> str:
    """16 hex digits of all that the scores of several benchmarks depend on.

    Where the model lies counts only if the facts have no `fingerprint` of its content.
    """
    if facts.get("fingerprint"):
        facts = {name: value for name, value in facts.items() if name not in WHERE}
    whole = json.dumps([VERSION, PIECE, facts, digests], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def score_all(
    scorer: Scorer, benchmarks: Sequence[Benchmark], out: Path, mark: str
) -> dict[str, list[np.ndarray]] | None:
    """Benchmark -> [I, C] of every item, in order; None in processes other than the first.

    Pieces that stand beside `out` already are not scored again. `mark` is the fingerprint of all
    that they depend on.
    """
    place = launch()
    pieces = list(_pieces(benchmarks))
    done = _read_all(out, mark)
    if done:
        logger.info("%s: %d of %d pieces are scored already", out, len(done), len(pieces))
    _meet(place)  # all have read before the first writes
    mine = pieces[place.rank :: place.world]
    waiting = [piece for piece in mine if piece[:2] not in done]
    _score(scorer, waiting, _beside(out, place.rank), mark)
    _meet(place)  # all have written before the first reads
    if place.rank:
        return None
    done = _read_all(out, mark)
    found: dict[str, list[np.ndarray]] = {}
    for name, start, _ in pieces:
        if (name, start) not in done:
            raise LawError(
                f"{out}: the scores of {name} from item {start} on are gone from beside it; does "
                "another run write there? Give each its own --out"
            )
        found.setdefault(name, []).extend(done[name, start])
    return found


def forget(out: Path) -> None:
    """Removes the pieces beside a result that is written."""
    for path in _files(out):
        path.unlink()


def _score(scorer: Scorer, pieces: Sequence[Piece], path: Path, mark: str) -> None:
    """Appends the scores of pieces to a file, each as soon as it is there."""
    if not _read(path, mark):
        write_text(path, json.dumps({"fingerprint": mark}) + "\n")
    with open(path, "a", encoding="utf-8") as handle:
        for name, start, items in progress(pieces, f"pieces of {PIECE} items"):
            scores = scorer.scores(items)
            _check_shapes(name, items, scores)
            line = {"benchmark": name, "start": start, "scores": [plain(one) for one in scores]}
            handle.write(json.dumps(line) + "\n")
            handle.flush()
            os.fsync(handle.fileno())


def plain(scores_IC: np.ndarray) -> list[list[float | None]]:
    """A matrix as JSON has it, None for NaN; floats lose no digit."""
    return [[None if np.isnan(one) else one for one in row] for row in scores_IC.tolist()]


def matrix(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """float64 [I, C] of what `plain` gave."""
    return np.array(rows, np.float64)


def _digest_of(path: Path) -> str:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error


def _pieces(benchmarks: Sequence[Benchmark]) -> Iterator[Piece]:
    for benchmark in benchmarks:
        for start in range(0, len(benchmark.items), PIECE):
            yield benchmark.name, start, benchmark.items[start : start + PIECE]


def _check_shapes(name: str, items: Sequence[Item], scores: Sequence[np.ndarray]) -> None:
    """Refuses a scorer's answer that is none, before it is written."""
    wanted = [(len(item.images), len(item.captions)) for item in items]
    found = [np.shape(one) for one in scores]
    if found != wanted:
        raise LawError(f"{name}: the scorer gave matrices {found[:3]}, expected {wanted[:3]}")


def _meet(place: Launch) -> None:
    """Waits until all processes are here."""
    if place.world == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        if "MASTER_ADDR" not in os.environ:
            raise UsageError(
                f"{place.world} processes that do not know each other (MASTER_ADDR is not set); "
                "start them with torchrun: torchrun --nproc_per_node GPUS -m llava.eval.pairs run "
                "..."
            )
        # words only go between them, and one may take hours longer than another
        distributed.init_process_group("gloo", timeout=timedelta(days=2))
    distributed.barrier()


def _beside(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}.scores{rank or ''}.jsonl")


def _files(out: Path) -> list[Path]:
    name = re.compile(re.escape(out.name) + r"\.scores\d*\.jsonl")
    return sorted(path for path in out.parent.iterdir() if name.fullmatch(path.name))


def _read_all(out: Path, mark: str) -> Done:
    return {key: scores for path in _files(out) for key, scores in _read(path, mark).items()}


def _read(path: Path, mark: str) -> Done:
    """(benchmark, first item) -> scores of the pieces that a file holds; a torn end is cut off."""
    try:
        whole = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = whole.split("\n")[:-1]  # what follows the last line end was not written whole
    try:
        records = [json.loads(line) for line in lines]
        if not records or records[0] != {"fingerprint": mark}:
            return {}
        done = {
            (record["benchmark"], record["start"]): [matrix(one) for one in record["scores"]]
            for record in records[1:]
        }
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s: is damaged (%s); its pieces are scored anew", path, error)
        return {}
    if not whole.endswith("\n"):
        write_text(path, "".join(f"{line}\n" for line in lines))
    return done
