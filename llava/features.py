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
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from llava.config import build, to_plain
from llava.errors import LawError, UsageError, unknown_name
from llava.files import write_bytes, write_json
from llava.log import get_logger
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
        if image.mode == "P":  # the same indices mean other colours under another palette
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
        """Every space here, by folder name; folders that are none are not mentioned."""
        folders = sorted(self.root.glob("*/space.json")) if self.root.is_dir() else []
        return [Space.open(path.parent) for path in folders]

    def find(self, spec: TowerSpec, frame: str, dtype: str | None = None) -> "Space":
        """The space of a spec and frame; the dtype may be left open where there is just one.

        Raises LawError that names what is here, and the command that makes what is not.
        """
        check_frame(frame)
        fitting = [s for s in self.spaces() if s.spec.hash() == spec.hash() and s.frame == frame]
        if dtype:
            fitting = [space for space in fitting if space.dtype == dtype]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise LawError(
                f"{self.root} holds {spec.id} as {' and '.join(s.dtype for s in fitting)}; say "
                "which with --dtype"
            )
        here = ", ".join(str(space) for space in self.spaces()) or "nothing"
        raise LawError(
            f"{self.root} has no features of {describe(spec, frame)}; it holds {here}. Make them "
            f"with `law features --model {spec.id} --frame {frame} --images DIR --out {self.root}`"
        )

    def space(self, spec: TowerSpec, frame: str, dtype: str) -> "Space":
        """The space of a spec, frame and dtype, made where it does not exist yet."""
        check_frame(frame)
        if dtype not in DTYPES:
            raise UsageError(unknown_name("dtype", dtype, DTYPES))
        key = space_key(spec, frame, dtype)
        there = sorted(self.root.glob(f"*-{key[:12]}"))  # a moved tower has another name before it
        folder = there[0] if there else self.root / f"{_slug(spec)}-{frame}-{dtype}-{key[:12]}"
        if not (folder / "space.json").is_file():
            libraries = _libraries()
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
            for name, now in _libraries().items()
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
    _where: dict[str, str] = field(default_factory=dict, repr=False)
    _sums: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    _open: OrderedDict = field(default_factory=OrderedDict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> "Space":
        """Reads what the space is and which images it holds; LawError where it is no space."""
        path = folder / "space.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            spec = build(TowerSpec, facts["spec"], str(path))
            space = cls(folder, spec, facts["frame"], facts["dtype"], facts["libraries"])
            key = facts["key"]
        except (OSError, ValueError, KeyError, TypeError, LawError) as error:
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
            if path.name not in self._sums and SHARD.fullmatch(path.name):
                self._add(path)

    def _add(self, path: Path) -> None:
        try:
            sums = self._read_header(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.damaged[path.name] = str(error)
            return
        self.damaged.pop(path.name, None)
        self._sums[path.name] = sums
        self._where |= dict.fromkeys(sums, path.name)

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
        name = self._where.get(key)
        if name is None:
            raise LawError(f"{self.folder}: no features of image {key[:12]}")
        try:
            tokens = self._shard(name).get_tensor(key)
        except Exception as error:  # safetensors raises its own kinds, and OSError
            self.forget(name, f"cannot be read: {error}")
        else:
            if _crc(tokens) == self._sums[name][key]:
                return tokens
            self.forget(name, "its bytes are not those that were written")
        raise LawError(
            f"{self.folder / name}: {self.damaged[name]}; extract again, which makes it anew"
        )

    def forget(self, name: str, why: str) -> None:
        """Takes a shard's images as missing."""
        self.damaged[name] = why
        self._open.pop(name, None)
        for key in self._sums.pop(name, {}):
            if self._where.get(key) == name:
                del self._where[key]

    def verify(self) -> None:
        """Reads everything; what does not fit its checksum is forgotten and said."""
        for key in list(self):
            if key in self:
                try:
                    self.read(key)
                except LawError as error:
                    logger.warning("%s", error)

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
            if not torch.isfinite(value).all():
                raise LawError(
                    f"{self.spec.id} gave NaN or infinite features for image {key[:12]} in "
                    f"{self.dtype}; take --dtype float32"
                )
            kept[key] = value.to("cpu", DTYPES[self.dtype]).contiguous()
        name = hashlib.sha256("".join(sorted(kept)).encode()).hexdigest()[:24] + ".safetensors"
        sums = {key: _crc(value) for key, value in sorted(kept.items())}
        self._open.pop(name, None)
        write_bytes(self.folder / name, save(kept, {"crc32": json.dumps(sums)}))
        self._sums.pop(name, None)
        self._add(self.folder / name)

    @property
    def bytes_per_image(self) -> int:
        """What an image takes on disk."""
        return self.spec.tokens * self.spec.dim * DTYPES[self.dtype].itemsize


def space_key(spec: TowerSpec, frame: str, dtype: str, preprocessing: int = VERSION) -> str:
    """64 hex digits over what the features of an image depend on besides its bytes."""
    return hashlib.sha256(f"{spec.hash()} {preprocessing} {frame} {dtype}".encode()).hexdigest()


def describe(spec: TowerSpec, frame: str) -> str:
    """A spec and frame in words, with what differs from the usual."""
    usual = {f.name: f.default for f in dataclasses.fields(spec)}
    also = [
        f"{name} {getattr(spec, name)}"
        for name in ("layer", "select", "position_resize")
        if getattr(spec, name) not in (usual[name], "transformers-4")
    ]
    return " ".join([f"{spec.id}@{spec.size}", frame, *also])


def _slug(spec: TowerSpec) -> str:
    """The tower and its size as part of a folder name; of a long path, its last two parts."""
    return re.sub(r"[^\w.@-]+", "-", "--".join(Path(spec.id).parts[-2:]) + f"@{spec.size}")


def _crc(tokens: torch.Tensor) -> int:
    return zlib.crc32(tokens.contiguous().view(torch.uint8).numpy())


@functools.cache
def _libraries() -> dict[str, str]:
    """Versions of what features come from."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
