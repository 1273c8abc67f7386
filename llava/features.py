"""The feature store: what each tower gives for each image, computed once and read by everybody.

    STORE/<tower>@<size>-<frame>-<dtype>-<key>/space.json          what the features are
                                               <hash>.safetensors  some images' tokens [N, C]

A space holds one tower (never a combination) in one frame and dtype; its key is a hash over the
spec, the preprocessing version, frame and dtype. Inside, an image is found by the hash of its
bytes, so files may be renamed and shared by data sets. A shard is written under a temporary name
and renamed, carries a checksum per image and describes itself, so any number of processes can write
to one store, and what is damaged or foreign is seen and computed again.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llava.config import build, to_plain
from llava.errors import LawError, UsageError, unknown_name
from llava.files import write_bytes, write_json
from llava.log import get_logger
from llava.model.multimodal_encoder.diffusion.options import suffix
from llava.model.multimodal_encoder.preprocess import VERSION, check_frame
from llava.model.multimodal_encoder.spec import TowerSpec

logger = get_logger("features")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LIBRARIES = ("torch", "transformers", "pillow", "timm", "diffusers")
SHARD = re.compile(r"[0-9a-f]{24}\.safetensors")
IMAGE_KEY = re.compile(r"[0-9a-f]{64}")
OPEN_SHARDS = 64
LARGEST_HEADER = 100 << 20  # bytes; safetensors' own limit


def image_key(image: str | os.PathLike | bytes | Image.Image) -> str:
    """64 hex digits: SHA-256 of a file's bytes, or of a PIL image's mode, size and pixels."""
    if isinstance(image, Image.Image):
        digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
        if image.mode in ("P", "PA"):  # the same indices mean other colours under another palette
            digest.update(bytes(image.getpalette() or []))
        digest.update(image.tobytes())
        return digest.hexdigest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    try:
        with open(image, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise LawError(f"{image}: cannot be read: {error.strerror or error}") from error


def mirrored_key(key: str) -> str:
    """The key of an image turned left to right, from its own."""
    return hashlib.sha256(f"mirrored {key}".encode()).hexdigest()


class FeatureStore:
    """A folder of spaces."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)

    def spaces(self) -> list["Space"]:
        """Every space here, by folder name; a folder that is none is said and left out."""
        found = []
        for path in sorted(self.root.glob("*/space.json")) if self.root.is_dir() else []:
            try:
                found.append(Space.open(path.parent))
            except LawError as error:
                logger.warning("%s", error)
        return found

    def _folder(self, key: str) -> Path | None:
        """The folder of the space with this key, whatever it is called."""
        for folder in sorted(self.root.glob(f"*-{key[:12]}")):
            try:
                facts = json.loads((folder / "space.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(facts, dict) and facts.get("key") == key:
                return folder
        return None

    def find(self, spec: TowerSpec, frame: str, dtype: str | None = None) -> "Space":
        """The space of a spec and frame; the dtype may be left open where there is just one.

        Raises LawError that names what is here, and the command that makes what is not.
        """
        check_frame(frame)
        fitting = {
            name: folder
            for name in ([dtype] if dtype else DTYPES)
            if (folder := self._folder(space_key(spec, frame, name)))
        }
        if len(fitting) == 1:
            return Space.open(*fitting.values())
        if fitting:
            raise LawError(
                f"{self.root} holds {spec.id} as {' and '.join(fitting)}; say which with --dtype"
            )
        here = ", ".join(str(space) for space in self.spaces()) or "nothing"
        raise LawError(
            f"{self.root} has no features of {describe(spec, frame)}; it holds {here}. `law "
            f"features --model {spec.id}@{spec.size}{suffix(spec)} --frame {frame}"
            f"{select_flag(spec)} --images DIR --out {self.root}` makes them"
        )

    def space(self, spec: TowerSpec, frame: str, dtype: str) -> "Space":
        """The space of a spec, frame and dtype, made where it does not exist yet."""
        check_frame(frame)
        if dtype not in DTYPES:
            raise UsageError(unknown_name("dtype", dtype, DTYPES))
        key = space_key(spec, frame, dtype)
        folder = self._folder(key)
        if folder is None:
            folder = self.root / f"{_slug(spec)}-{frame}-{dtype}-{key[:12]}"
            libraries = library_versions()
            facts = {
                "format": 1,
                "key": key,
                "preprocessing": VERSION,
                "frame": frame,
                "dtype": dtype,
                "spec": to_plain(spec),
                "libraries": libraries,
            }
            write_json(folder / "space.json", facts)
        found = Space.open(folder)
        changed = {
            name: (found.libraries.get(name), now)
            for name, now in library_versions().items()
            if found.libraries.get(name) != now
        }
        if changed:
            logger.warning(
                "%s was begun with other versions: %s; features may differ in the last digits",
                folder.name,
                ", ".join(f"{name} {old}, now {new}" for name, (old, new) in changed.items()),
            )
        return found


@dataclass
class Space:
    """The features of one tower, in one frame and dtype."""

    folder: Path
    spec: TowerSpec
    frame: str
    dtype: str
    libraries: dict[str, str]
    damaged: dict[str, str] = field(default_factory=dict)
    """Shard -> why it is not read; extraction makes it again."""
    _where: dict[str, list[str]] = field(default_factory=dict, repr=False)
    """Image -> the shards that hold it: a second copy is read where the first is damaged."""
    _sums: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    _open: OrderedDict = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, folder: Path) -> "Space":
        """Reads what the space is and which images it holds; LawError where it is no space."""
        path = folder / "space.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            spec = build(TowerSpec, facts["spec"], str(path))
            space = cls(folder, spec, facts["frame"], facts["dtype"], facts["libraries"])
            key = facts["key"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LawError) as error:
            raise LawError(
                f"{path}: describes no feature space ({error}); move the folder away"
            ) from error
        if key != space_key(spec, space.frame, space.dtype, facts.get("preprocessing", VERSION)):
            raise LawError(f"{path}: its key does not fit its spec; move the folder away")
        space.refresh()
        return space

    def refresh(self) -> None:
        """Looks for shards that other processes have written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            known = path.name in self._sums or path.name in self.damaged
            if not known and SHARD.fullmatch(path.name):
                self._add(path)

    def _add(self, path: Path) -> None:
        try:
            sums = self._read_header(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.damaged[path.name] = str(error)
            return
        with self._lock:
            self.damaged.pop(path.name, None)
            self._sums[path.name] = sums
            for key in sums:
                self._where.setdefault(key, []).append(path.name)

    def _read_header(self, path: Path) -> dict[str, int]:
        """Image key -> CRC-32 of its bytes; ValueError where the file is not a whole shard."""
        size = path.stat().st_size
        with open(path, "rb") as handle:
            start = handle.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 0 < length <= min(size - 8, LARGEST_HEADER):
                raise ValueError("is cut short or no safetensors file")
            header = json.loads(handle.read(length))
        sums = json.loads(header.pop("__metadata__")["crc32"])
        expected = [STORED[self.dtype], [self.spec.tokens, self.spec.dim]]
        for key, entry in header.items():
            if not IMAGE_KEY.fullmatch(key) or [entry["dtype"], entry["shape"]] != expected:
                raise ValueError(f"holds a foreign entry '{key[:20]}'")
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end or sums.keys() != header.keys():
            raise ValueError(f"is cut short: {size} bytes, expected {8 + length + end}")
        return sums

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __str__(self) -> str:
        return f"{describe(self.spec, self.frame)} as {self.dtype} ({len(self)} images)"

    def read(self, key: str) -> torch.Tensor:
        """Tokens [N, C] of an image in the stored dtype, memory-mapped; treat them as read-only.

        Raises LawError where they are not here, or their bytes are not those that were written.
        """
        names = list(self._where.get(key, ()))
        for name in names:
            tokens = self._read(name, key)
            if tokens is not None:
                return tokens
        if not names:
            raise LawError(f"{self.folder}: no features of image {key[:12]}")
        raise LawError(
            f"{self.folder / names[0]}: {self.damaged[names[0]]}; extract again, which makes it "
            "anew"
        )

    def _read(self, name: str, key: str) -> torch.Tensor | None:
        """The image's tokens out of one shard; None, and the shard forgotten, where it is bad."""
        try:
            with self._lock:
                tokens, expected = self._shard(name).get_tensor(key), self._sums[name][key]
        except (OSError, KeyError, SafetensorError) as error:
            self._forget(name, f"cannot be read: {error}")
            return None
        if _crc(tokens) == expected:
            return tokens
        with self._lock:  # the shard's other images have checksums of their own
            self.damaged[name] = "bytes of it are not those that were written"
            if self._sums.get(name, {}).pop(key, None) is not None:
                self._drop(name, key)
        return None

    def verify(self, keys: Iterable[str]) -> list[str]:
        """Reads the images; those that no undamaged shard holds, in order, each once."""
        keys = list(dict.fromkeys(keys))
        for key in keys:
            for name in list(self._where.get(key, ())):
                self._read(name, key)
        return [key for key in keys if not self.sound(key)]

    def sound(self, key: str) -> bool:
        """Whether a shard holds the image of which no damage is known."""
        return any(name not in self.damaged for name in self._where.get(key, ()))

    def _drop(self, name: str, key: str) -> None:
        self._where[key].remove(name)
        if not self._where[key]:
            del self._where[key]

    def _forget(self, name: str, why: str) -> None:
        """Takes what a shard holds as missing, until it is written again."""
        with self._lock:
            self.damaged[name] = why
            self._open.pop(name, None)
            for key in self._sums.pop(name, {}):
                self._drop(name, key)

    def __getstate__(self) -> dict:
        """Without open files and the lock, so that a worker process may have a copy."""
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            # mapped, not loaded; kept open, but not more than a process may have
            self._open[name] = safe_open(self.folder / name, "pt")
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def write(self, tokens: Mapping[str, torch.Tensor]) -> None:
        """Adds a shard with the tokens [N, C] of some images, by image key.

        Raises LawError for tokens that are not finite: stored, they would poison every score.
        """
        shape = (self.spec.tokens, self.spec.dim)
        kept = {}
        for key, value in tokens.items():
            if tuple(value.shape) != shape:
                raise LawError(f"{self.spec.id} gave tokens {tuple(value.shape)}, expected {shape}")
            kept[key] = value.to("cpu", DTYPES[self.dtype]).contiguous()
            if not torch.isfinite(kept[key]).all():
                raise LawError(f"image {key[:12]}: {self.not_finite}")
        name = hashlib.sha256("".join(sorted(kept)).encode()).hexdigest()[:24] + ".safetensors"
        sums = {key: _crc(value) for key, value in sorted(kept.items())}
        self._forget(name, "is being written")
        write_bytes(self.folder / name, save(kept, {"crc32": json.dumps(sums)}))
        self._add(self.folder / name)

    @property
    def not_finite(self) -> str:
        """What to say of tokens that are NaN or infinite."""
        return not_finite(self.spec, self.dtype)

    @property
    def bytes_per_image(self) -> int:
        """What an image takes on disk."""
        return self.spec.tokens * self.spec.dim * DTYPES[self.dtype].itemsize


def not_finite(spec: TowerSpec, dtype: str) -> str:
    """What to say of a tower's tokens that are NaN or infinite."""
    wider = "" if dtype == "float32" else "; take --dtype float32"
    return f"{spec.id} gave NaN or infinite features in {dtype}{wider}"


def space_key(spec: TowerSpec, frame: str, dtype: str, preprocessing: int | None = None) -> str:
    """64 hex digits over what the features of an image depend on besides its bytes."""
    preprocessing = VERSION if preprocessing is None else preprocessing
    return hashlib.sha256(f"{spec.hash()} {preprocessing} {frame} {dtype}".encode()).hexdigest()


def describe(spec: TowerSpec, frame: str) -> str:
    """A spec and frame in words, with what differs from the usual."""
    usual = {f.name: f.default for f in dataclasses.fields(spec)}
    also = [
        f"{name} {getattr(spec, name)}"
        for name in ("layer", "select", "position_resize")
        if getattr(spec, name) not in (usual[name], "transformers-4")
        and (name != "layer" or spec.t is None)
    ]
    return " ".join([f"{spec.id}@{spec.size}{suffix(spec)}", frame, *also])


def select_flag(spec: TowerSpec) -> str:
    """What a `law features` command says, with a space before, for tokens other than patches."""
    return "" if spec.select == "patch" else f" --select {spec.select}"


def _slug(spec: TowerSpec) -> str:
    """The tower and its size as part of a folder name; of a long path, its last two parts."""
    return re.sub(r"[^\w.@-]+", "-", "--".join(Path(spec.id).parts[-2:]) + f"@{spec.size}")


def _crc(tokens: torch.Tensor) -> int:
    return zlib.crc32(tokens.contiguous().view(torch.uint8).numpy())


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what features come from."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
