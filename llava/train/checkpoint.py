"""Checkpoints of which one good one always exists.

A checkpoint is written under `.saving/`, sealed with the size and checksum of its files, and only
then renamed to `checkpoint-N`; older ones go once the new one was read back. So a folder of that
name was once whole, and what happened to it since is found before training starts from it.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava.errors import LawError, UsageError
from llava.files import write_json
from llava.log import get_logger

logger = get_logger("checkpoint")

NAME = re.compile(r"checkpoint-([0-9]+)")
SEAL = "checkpoint.json"
SAVING = ".saving"
WHOLE = 1 << 30
"""Files up to this size, bytes, are checked to the last byte; of larger ones a part is."""
BLOCK = 1 << 20
AUTO = "auto"


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoint-N`."""

    folder: Path
    step: int

    def fault(self) -> str:
        """What is wrong with it, in a few words; empty where it is as it was written."""
        path = self.folder / SEAL
        try:
            files = json.loads(path.read_text(encoding="utf-8"))["files"]
            expected = {str(name): (int(b), int(crc)) for name, (b, crc) in files.items()}
        except FileNotFoundError:
            return f"has no {SEAL}, so it was not finished or something else wrote it"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{SEAL} cannot be read: {error}"
        for name, (size, crc) in sorted(expected.items()):
            file = self.folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, expected {size}"
            if checksum(file) != crc:
                return f"{name} is not what was written"
        return ""


def checkpoints(output_dir: str | os.PathLike) -> list[Checkpoint]:
    """Every `checkpoint-N` of a run, oldest first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda one: one.step)


def checksum(path: Path) -> int:
    """CRC-32 of a file; of one above `WHOLE`, of its blocks at even distances, ends included."""
    size, crc = path.stat().st_size, 0
    blocks = -(-size // BLOCK)
    stride = max(1, -(-size // WHOLE))
    with open(path, "rb") as handle:
        for block in sorted({*range(0, blocks, stride), max(0, blocks - 1)}):
            handle.seek(block * BLOCK)
            crc = zlib.crc32(handle.read(BLOCK), crc)
    return crc


def seal(folder: Path) -> None:
    """Writes the size and checksum of every file of a folder into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(
        folder / SEAL,
        {
            "format": 1,
            "files": {
                path.relative_to(folder).as_posix(): [path.stat().st_size, checksum(path)]
                for path in files
            },
        },
    )


def publish(saved: Path, output_dir: Path, keep: int | None) -> Path:
    """Seals what was saved, gives it its name, and removes all but the newest `keep` checkpoints.

    Nothing is removed before the new one was read back; LawError where that fails.
    """
    seal(saved)
    folder = output_dir / saved.name
    if folder.exists():  # of a run that went on from an older one
        shutil.rmtree(folder)
    saved.rename(folder)
    new = Checkpoint(folder, int(NAME.fullmatch(folder.name)[1]))
    if fault := new.fault():
        raise LawError(f"{folder}: {fault} right after it was saved; older checkpoints were kept")
    rotate(output_dir, new, keep)
    return folder


def rotate(output_dir: Path, new: Checkpoint, keep: int | None) -> None:
    """Removes the oldest checkpoints until `keep` are left; never the new one."""
    if keep is None or keep <= 0:
        return
    older = [one for one in checkpoints(output_dir) if one != new]
    for one in older[: max(0, len(older) + 1 - keep)]:
        shutil.rmtree(one.folder)
        logger.info("removed %s: --save_total_limit %d", one.folder.name, keep)


LAYOUTS = {
    "stage 1": ("mm_projector.bin",),
    "LoRA": ("adapter_config.json",),
    "whole model": ("model.safetensors", "model.safetensors.index.json"),
}
"""Kind of run -> files that only it leaves."""


def refuse_other_runs(output_dir: Path, kind: str) -> None:
    """Raises UsageError where a folder holds a run of another kind than one of `LAYOUTS`."""
    places = [output_dir, *(one.folder for one in checkpoints(output_dir))]
    for other, names in LAYOUTS.items():
        found = [place / name for place in places for name in names if (place / name).is_file()]
        if other != kind and found:
            raise UsageError(
                f"--output_dir {output_dir} holds a run of another kind ({other}: "
                f"{found[0].name}), and this is one of {kind}; choose another folder"
            )


@contextlib.contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """The folder is this run's alone; LawError where another run has it."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / ".lock", "a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LawError(f"{output_dir}: another run is writing here; choose another") from None
        yield


def clear_unfinished(output_dir: Path) -> None:
    """Removes what a killed run was about to save."""
    shutil.rmtree(output_dir / SAVING, ignore_errors=True)


def set_aside(output_dir: Path, start: Path | None) -> None:
    """Renames checkpoints that this run will not have come by: of later steps than `start`.

    All of them where it begins anew (None), or goes on from a checkpoint of another folder: else
    the next start would take one of the run before for the newest of this one.
    """
    own = start is not None and start.parent.resolve() == output_dir.resolve()
    step = int(NAME.fullmatch(start.name)[1]) if own else -1
    for one in checkpoints(output_dir):
        if one.step > step:
            aside = one.folder.with_name(f"{one.folder.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            one.folder.rename(aside)
            logger.warning(
                "%s is now %s: training goes on from %s",
                one.folder.name,
                aside.name,
                start or "the beginning",
            )


def choose(output_dir: str | os.PathLike, asked: str | None) -> Path | None:
    """The checkpoint that a run goes on from, or None for a new run.

    Unset or `True` takes the newest, and raises LawError where that is damaged, naming the newest
    good one; `auto` takes the newest good one; `False` begins anew; anything else is a folder.
    """
    word = (asked or "").lower()
    if word == "false":
        return None
    if word not in ("", "true", AUTO):
        return _asked_for(Path(asked or ""))
    found = checkpoints(output_dir)
    if not found:
        if word == "true":
            raise UsageError(f"--resume_from_checkpoint True: {output_dir} has no checkpoint-N")
        return None
    faults: list[str] = []
    for one in reversed(found):
        fault = one.fault()
        if not fault and (word == AUTO or not faults):
            for text in faults:
                logger.warning("%s; going on from %s", text, one.folder.name)
            return one.folder
        if not fault:
            raise LawError(
                f"{faults[0]}; the newest good one is {one.folder}: --resume_from_checkpoint auto "
                f"takes it, --resume_from_checkpoint False begins anew"
            )
        faults.append(f"{one.folder}: {fault}")
    raise LawError(
        f"{'; '.join(faults)}; no good checkpoint is left in {output_dir}. "
        "--resume_from_checkpoint False begins anew"
    )


def _asked_for(folder: Path) -> Path:
    match = NAME.fullmatch(folder.name)
    if not folder.is_dir() or not match:
        raise UsageError(
            f"--resume_from_checkpoint {folder}: expected a folder checkpoint-N, auto, True or "
            "False"
        )
    if fault := Checkpoint(folder, int(match[1])).fault():
        good = [one for one in checkpoints(folder.parent) if not one.fault()]
        newest = f"; the newest good one is {good[-1].folder}" if good else ""
        raise LawError(f"{folder}: {fault}{newest}")
    return folder
