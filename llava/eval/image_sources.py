"""Images of a benchmark: where they come from, and a seeded draw among them.

    an lmms-eval task     what its doc_to_visual shows of the split that it evaluates
    a folder              every image file in it and below
    a JSON or JSONL file  what its records name under `image`, as LLaVA's data do

A candidate is a question of a task, else an image; it has a name that does not depend on the order
of the data. A draw goes through candidates in the order of a hash over seed and name and takes the
images that were not met before, told by their content, so the first of a long draw are a short one,
and no image is opened that the draw does not reach.
"""

import hashlib
import json
import re
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from llava import catalog
from llava.data.images import ImageError, path_inside
from llava.data.scan import scan
from llava.errors import LawError, UsageError, nearest
from llava.eval.harness import load_tasks, task_manager
from llava.extraction import decode, find_images
from llava.features import image_key
from llava.log import progress
from llava.model.multimodal_encoder.preprocess import to_rgb

ID_FIELDS = ("image_id", "question_id", "id", "index")
"""What data sets call the name of an image or a question; the first that a task has counts."""
UNSAFE = re.compile(r"[^A-Za-z0-9._@=+-]+")
LONGEST = 120
"""Letters of a file's name, so that what is put around it fits into 255 bytes."""


@dataclass(frozen=True)
class Picture:
    """An image as its source gives it."""

    image: Image.Image
    """In RGB."""
    data: bytes | None = None
    """The file it comes out of, where there is one."""

    @property
    def given(self) -> bytes | Image.Image:
        """What it is known by in a feature store."""
        return self.image if self.data is None else self.data

    @cached_property
    def content(self) -> str:
        """64 hex digits over the file's bytes, or over RGB pixels, as `law_llava` has them."""
        return image_key(self.given)


class ImageSource(ABC):
    """Candidates of a draw. `kind` and `where` are a word and words for people."""

    kind: str
    where: str

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the candidates, each once."""

    @abstractmethod
    def pictures(self, name: str) -> list[Picture]:
        """The images of a candidate, opened now; LawError naming what cannot be."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the images are, as plain values; `kind` is one of them."""


class FileImages(ImageSource):
    """Images in files: name -> path."""

    def __init__(self, kind: str, where: str, files: Mapping[str, Path]):
        self.kind, self.where, self.files = kind, where, files

    @property
    def names(self) -> Sequence[str]:
        """Paths inside the folder, or as the JSON has them."""
        return list(self.files)

    def pictures(self, name: str) -> list[Picture]:
        """The one image."""
        return [_read(self.files[name], f"image {name} of {self.where}")]

    def facts(self) -> dict[str, Any]:
        """Where they are."""
        return {"kind": self.kind, "path": self.where, "candidates": len(self.files)}


class TaskImages(ImageSource):
    """Images that an lmms-eval task shows.

    Names are the data set's own, else the number of the question. Where several questions have one
    name, they come in the order of what they say, and have `+2`, `+3` from the second on.
    """

    kind = "task"

    def __init__(self, name: str, task: Any):
        self.where = f"task {name}"
        self.name, self.task = name, task
        if getattr(task.config, "doc_to_visual", None) is None:
            raise UsageError(f"task {name} shows no images (it has no doc_to_visual)")

    @cached_property
    def _rows(self) -> dict[str, int]:
        """Name -> which document; columns of images stay closed."""
        rows: dict[str, list[int]] = {}
        for row, own in enumerate(self._own_names()):
            rows.setdefault(own, []).append(row)
        found = {}
        for own in sorted(rows):
            first, *others = sorted(rows[own], key=self._said if len(rows[own]) > 1 else None)
            found[own] = first
            count = 1
            for row in others:
                count += 1
                while f"{own}+{count}" in rows:
                    count += 1
                found[f"{own}+{count}"] = row
        return found

    def _said(self, row: int) -> str:
        """A document without its images; where two say the same, their order counts."""
        document = self.task.eval_docs_no_media[row]
        return json.dumps(document, sort_keys=True, default=lambda value: type(value).__name__)

    def _own_names(self) -> list[str]:
        docs = self.task.eval_docs_no_media
        for column in ID_FIELDS:
            named = list(docs[column]) if column in docs.column_names else []
            if named and all(isinstance(one, int | str) and str(one).strip() for one in named):
                return [str(one) for one in named]
        return [str(row) for row in range(len(docs))]

    @property
    def names(self) -> Sequence[str]:
        """Of the questions."""
        return list(self._rows)

    def pictures(self, name: str) -> list[Picture]:
        """What doc_to_visual gives: none, one or several."""
        where = f"question {name} of {self.where}"
        _refuse_truncated()
        try:
            shown = self.task.doc_to_visual(self.task.eval_docs[self._rows[name]])
        except LawError:
            raise
        except Exception as error:  # a task's own code, and decoders, raise almost anything
            raise LawError(
                f"{where}: its images cannot be had: {type(error).__name__}: {error}"
            ) from error
        return [_shown(one, where) for one in shown or []]

    def facts(self) -> dict[str, Any]:
        """The task, its data set and split, and the version of lmms-eval."""
        config = self.task.config
        return {
            "kind": self.kind,
            "task": self.name,
            "dataset": config.dataset_path,
            "dataset_name": config.dataset_name,
            "split": config.test_split or config.validation_split,
            "lmms_eval": version("lmms_eval"),
            "candidates": len(self._rows),
        }


def _refuse_truncated() -> None:
    # importing lmms-eval switches this on for the process: what is missing would be grey
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def _shown(one: Any, where: str) -> Picture:
    if isinstance(one, Image.Image):
        _refuse_truncated()  # a task's own code may have imported more
        try:
            one.load()
            return Picture(to_rgb(one))
        except LawError as error:
            raise LawError(f"{where}: {error}") from error
        except Exception as error:  # decoders of damaged files raise almost anything
            raise LawError(f"{where}: does not decode: {error}") from error
    if isinstance(one, str) and Path(one).is_file():
        return _read(Path(one), where)
    raise LawError(f"{where}: it shows {type(one).__name__} '{str(one)[:80]}', expected an image")


def _read(path: Path, where: str) -> Picture:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise LawError("is no file")
        data = path.read_bytes()
        return Picture(decode(data), data)
    except OSError as error:
        raise LawError(f"{where}: {path} cannot be read: {error.strerror or error}") from error
    except LawError as error:
        raise LawError(f"{where}: {path} {error}") from error


def find_sources(
    benchmarks: Sequence[str],
    images: Sequence[str] = (),
    image_folder: str | Path | None = None,
    include: Iterable[str | Path] = (),
) -> dict[str, ImageSource]:
    """Benchmark, as the results table calls it -> its images.

    A name may be an alias, or that of a set (`paper8`). `images` are PATH where there is one
    benchmark, else BENCHMARK=PATH; without a path a benchmark is an lmms-eval task (`task:metric`
    is that task). `image_folder` is what a JSON's paths begin at, else its own folder; `include`
    holds YAMLs of further tasks. Raises UsageError for what cannot be meant, LawError for data that
    cannot be had.
    """
    sets = catalog.benchmark_sets()
    asked = [one for name in benchmarks for one in sets.get(name, [name])]
    names = list(dict.fromkeys(map(catalog.benchmark_id, asked)))
    paths = _paths(names, images)
    found: dict[str, ImageSource] = {
        name: _from_path(path, image_folder) for name, path in paths.items()
    }
    tasks = {name: _task_of(name) for name in names if name not in paths}
    if tasks:
        manager = task_manager(list(tasks.values()), include)
        found |= {name: _from_task(task, manager) for name, task in tasks.items()}
    return {name: found[name] for name in names}


def _paths(names: Sequence[str], images: Sequence[str]) -> dict[str, Path]:
    """Benchmark -> path, out of what --images says."""
    found: dict[str, Path] = {}
    for text in images:
        before, sign, path = text.partition("=")
        name = catalog.benchmark_id(before)
        if not sign or name not in names:
            if len(names) > 1:
                near = nearest(before, names) if sign else None
                raise UsageError(
                    f"--images {text}: expected BENCHMARK=PATH, since there are {len(names)} "
                    f"benchmarks" + (f"; did you mean {near}={path}?" if near else "")
                )
            name, path = names[0], text
        if name in found:
            raise UsageError(f"--images: two paths for {name}")
        found[name] = Path(path)
    return found


def _from_path(path: Path, image_folder: str | Path | None) -> ImageSource:
    if path.is_dir():
        files = {one.relative_to(path).as_posix(): one for one in find_images([path])}
        return FileImages("folder", str(path), files)
    if not path.is_file():
        raise LawError(f"--images {path}: no such file or folder (seen from {Path.cwd()})")
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise UsageError(f"--images {path}: expected a folder of images, a .json or a .jsonl file")
    base = Path(image_folder or path.parent)
    if not base.is_dir():
        raise LawError(f"--image_folder {base}: no such folder (seen from {Path.cwd()})")
    files = {}
    for number, (_, _, record) in enumerate(scan(path)):
        image = record.get("image")
        for name in image if isinstance(image, list) else [] if image is None else [image]:
            if not isinstance(name, str) or not name:
                raise LawError(f"{path}: record {number}: `image`: expected a path, found {name!r}")
            try:
                files[name] = path_inside(base, name)
            except ImageError as error:
                raise LawError(f"{path}: record {number}: {error} (--image_folder)") from None
    if not files:
        raise LawError(f"{path}: no record has an image (`image`: a path, or a list of paths)")
    return FileImages("json", str(path), files)


def _task_of(benchmark: str) -> str:
    """The lmms-eval task whose questions a benchmark's images are of."""
    known = catalog.benchmarks().get(benchmark)
    return (known and known.task) or benchmark.partition(":")[0]


def _from_task(task: str, manager: Any) -> ImageSource:
    _refuse_truncated()  # some tasks decode images when they are loaded
    loaded = load_tasks([task], manager)
    if list(loaded) != [task]:
        raise UsageError(
            f"--benchmark {task} is a group of {', '.join(loaded)}; name those that are meant"
        )
    return TaskImages(task, loaded[task])


@dataclass(frozen=True)
class Drawn:
    """One image of a draw."""

    id: str
    """Stands for it in file names; no other image of the source has it."""
    content: str
    """Of the image, see `Picture`."""
    name: str
    """Of the candidate that shows it."""
    place: int = 0
    """Which of the candidate's images it is."""

    def picture(self, source: ImageSource) -> Picture:
        """The image, opened again; LawError where it is another by now."""
        pictures = source.pictures(self.name)
        if self.place >= len(pictures) or pictures[self.place].content != self.content:
            raise LawError(f"{self.name} of {source.where}: the image changed; start again")
        return pictures[self.place]


def draw(source: ImageSource, n: int, seed: int) -> list[Drawn]:
    """`n` images of different content, in the order of the draw; LawError where there are fewer."""
    ids = dict(zip(source.names, file_names(source.names), strict=True))
    drawn: dict[str, Drawn] = {}
    order = sorted(ids, key=lambda name: _digest(f"{seed} {name}"))
    for name in progress(order, f"images of {source.where}", total=n):
        if len(drawn) == n:
            break
        for place, picture in enumerate(source.pictures(name)):
            own = ids[name] + (f"~{place + 1}" if place else "")
            if len(drawn) < n:
                drawn.setdefault(picture.content, Drawn(own, picture.content, name, place))
    if len(drawn) < n:
        raise LawError(
            f"{source.where}: {n} images are to be drawn and {len(drawn)} different ones are "
            "there; lower --n"
        )
    return list(drawn.values())


def file_names(names: Sequence[str]) -> list[str]:
    """Names as parts of file names, `/` written `--`; what cannot stand so ends in a hash."""
    plain = [UNSAFE.sub("-", name.replace("/", "--"))[:LONGEST] for name in names]
    count = Counter(name.casefold() for name in plain)
    return [
        safe if _stands(name, safe) and count[safe.casefold()] == 1 else _hashed(name, safe)
        for name, safe in zip(names, plain, strict=True)
    ]


def _stands(name: str, safe: str) -> bool:
    return safe == name.replace("/", "--") and not safe.startswith((".", "-")) and safe != ""


def _hashed(name: str, safe: str) -> str:
    return f"{safe.strip('.-')}-{_digest(name)[:12]}".lstrip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
