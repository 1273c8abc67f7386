"""A hash that tells a checkpoint's contents, quick where it is 14 GB."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from llava.model.checkpoint_layout import Checkpoint

COUNTED = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.index.json",
    "*.safetensors",
    "*.bin",
)
"""Files of a checkpoint that its answers depend on."""
SMALL = 1 << 21
"""Bytes up to which a file is hashed whole."""
PIECE = 1 << 12
"""Bytes at the beginning, the middle and the end of a tensor."""
BLOCK = 1 << 20


def fingerprint(path: str) -> str:
    """A hash of a checkpoint's contents; moving or copying it changes nothing.

    Of safetensors the header and three pieces of every tensor count, since training changes all of
    a tensor that it trains; of PyTorch's archives their checksums; of other files every byte. A hub
    id is told by its commit.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = Checkpoint(path).file("config.json")
        return f"{path}@{config.parent.name}" if config else path
    found = hashlib.sha256()
    for file in sorted({f for pattern in COUNTED for f in folder.glob(pattern) if f.is_file()}):
        found.update(f"{file.name} {file.stat().st_size}\n".encode())
        for piece in _pieces(file):
            found.update(piece)
    return found.hexdigest()[:16]


def _pieces(file: Path) -> Iterator[bytes]:
    if file.stat().st_size <= SMALL:
        return _whole(file)
    quick = {".safetensors": _of_tensors, ".bin": _checksums}.get(file.suffix)
    found = quick(file) if quick else None
    return _whole(file) if found is None else found


def _whole(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as handle:
        while block := handle.read(BLOCK):
            yield block


def _of_tensors(file: Path) -> Iterator[bytes] | None:
    """The header, and three pieces of every tensor; None for what is not in that format."""
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > file.stat().st_size:
            return None
        header = handle.read(length)
    try:
        entries = json.loads(header)
        spans = [entry["data_offsets"] for key, entry in entries.items() if key != "__metadata__"]
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return _read(file, header, sorted((8 + length + a, 8 + length + b) for a, b in spans))


def _read(file: Path, header: bytes, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    yield header
    with open(file, "rb") as handle:
        for begin, end in spans:
            last = max(begin, end - PIECE)
            for start in sorted({begin, (begin + last) // 2, last}):
                handle.seek(start)
                yield handle.read(min(PIECE, end - start))


def _checksums(file: Path) -> Iterator[bytes] | None:
    """Name, size and CRC-32 of every record of an archive as torch.save writes it; None where it is
    none, or was written without checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            archive.read(min(records, key=lambda record: record.file_size or SMALL))
    except (zipfile.BadZipFile, ValueError):
        return None
    return (f"{one.filename} {one.file_size} {one.CRC}\n".encode() for one in records)
