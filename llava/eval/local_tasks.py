"""A benchmark of one's own: local images and a JSON of questions, as a task of lmms-eval.

    python -m llava.eval.local_tasks --out tasks --name mine --records mine.json --kind generate

writes tasks/mine.yaml; `--tasks mine --include_path tasks` then goes for lmms-eval and for
`law evaluate`, and nothing is read from a hub. A record is

    {"id": 7, "image": "a.png", "question": "What colour is it?", "answer": ["grey", "gray"]}

`image` may be a list, or missing. Kind `generate` lets the model answer: right is what equals one
of the answers given, but for case, blanks and a full stop at the end. Kind `choice` has `choices`,
one of which is the answer, and takes the one that is likeliest per token. A `type` may stand in a
record: what samples call `doc_id` n is line n of mine.jsonl, from 0, and has it.

Images stay where they are. They are found from the task's folder, so the two can be moved together;
one that is named by an absolute path is found there.
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from llava.catalog import benchmark_id, benchmark_sets, benchmarks
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import LawError, UsageError, unknown_name
from llava.exits import run_command
from llava.files import write_text
from llava.log import get_logger

if TYPE_CHECKING:
    from datasets import Dataset

logger = get_logger("eval")

KEYS = ("id", "image", "question", "answer", "choices", "type")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
HELPER = "local_task.py"
HELPER_TEXT = '''\
"""Written by llava.eval.local_tasks: images are found from this folder."""

from pathlib import Path

from llava.eval.local_tasks import documents


def docs(dataset):
    """The records of a task in this folder."""
    return documents(dataset, Path(__file__).resolve().parent)
'''

# The data are read as lines of text: a reader of JSON guesses types, and takes an id or an answer
# such as 2024-01-01 for a point in time.
TASK = """\
# Written by llava.eval.local_tasks; the texts around a question may be changed here.
task: "{name}"
dataset_path: text
dataset_kwargs:
  data_files:
    test: "{name}.jsonl"
test_split: test
process_docs: !function local_task.docs
doc_to_visual: !function llava.eval.local_tasks.visuals
doc_to_text: !function llava.eval.local_tasks.prompt
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: {post_prompt}
metadata:
  version: 1.0
  # Of all images, so that results with other ones are not taken for results with these.
  images: "{images}"
"""
KINDS = {
    "generate": """\
output_type: generate_until
doc_to_target: answers
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
  do_sample: false
process_results: !function llava.eval.local_tasks.exact_match
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "choice": """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
# A conversation's template writes the blank before an answer itself.
target_delimiter: ""
process_results: !function llava.eval.local_tasks.likeliest
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
}
"""What the two kinds of task have for themselves."""


def write_local_task(
    folder: str | os.PathLike,
    name: str,
    records: str | os.PathLike | Iterable[Mapping[str, Any]],
    images: str | os.PathLike,
    kind: str = "generate",
    post_prompt: str = "",
) -> Path:
    """Writes <folder>/<name>.yaml and what it needs, over an older one; returns its path.

    `records` are mappings, or a file of JSON or JSON lines; their images lie under `images`.
    `post_prompt` follows every question. Every record and every image's header is looked at before
    anything is written. Raises LawError that names the record, UsageError for `name` or `kind`.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"task '{name}': expected letters, digits, '_', '-' and '.'")
    if benchmark_id(name) in benchmarks() or name in benchmark_sets():
        raise UsageError(f"task '{name}': a published benchmark has this name; take another")
    if kind not in KINDS:
        raise UsageError(unknown_name("kind", kind, KINDS))
    where = "record"
    if isinstance(records, str | os.PathLike):
        where = f"{records}: record"
        records = read_records(records)
    folder, base = Path(folder).resolve(), Path(images).resolve()
    rows: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(records, 1):
        row = _row(record, f"{where} {number}", kind)
        told = f"{where} {number} ('{row['id']}')"
        if row["id"] in rows:
            raise LawError(f"{told}: an earlier record has this id")
        located = [_located(image, base, folder, told) for image in row["images"]]
        row["digests"] = [_digest(base / image, told) for image in row["images"]]
        row["images"] = located
        rows[row["id"]] = row
    if not rows:
        raise LawError(f"{where}s: there are none")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
    text = TASK.format(
        name=name,
        post_prompt=json.dumps(post_prompt, ensure_ascii=False),
        images=_hash(json.dumps([row["digests"] for row in rows.values()]).encode()),
    )
    write_text(folder / f"{name}.jsonl", "".join(lines))
    write_text(folder / HELPER, HELPER_TEXT)
    write_text(folder / f"{name}.yaml", text + KINDS[kind])
    return folder / f"{name}.yaml"


def read_records(path: str | os.PathLike) -> list[Any]:
    """The list in a file of JSON, or the lines of one of JSON lines; LawError for neither."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LawError(f"{path}: cannot be read: {error}") from error
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise LawError(f"{path}: neither a JSON list nor JSON lines: {error}") from error


def _row(record: Any, told: str, kind: str) -> dict[str, Any]:
    """What is written of one record, its images still as it names them."""
    if not isinstance(record, Mapping):
        raise LawError(f"{told}: expected an object, got {type(record).__name__}")
    for key in record:
        if key not in KEYS:
            raise LawError(f"{told}: {unknown_name('key', str(key), KEYS)}")
    found: dict[str, Any] = {"id": _text(record.get("id"), f"{told}: id")}
    told = f"{told} ('{found['id']}')"
    found["images"] = _texts(_given(record, "image"), f"{told}: image")
    found["question"] = _text(record.get("question"), f"{told}: question")
    marks = found["question"].count(DEFAULT_IMAGE_TOKEN)
    if marks not in (0, len(found["images"])):
        raise LawError(
            f"{told}: {marks} {DEFAULT_IMAGE_TOKEN} in the question and {len(found['images'])} "
            "images; leave the marks out, or write one for each image"
        )
    if kind == "choice":
        found |= _choice(record, told)
    elif "choices" in record:
        raise LawError(f"{told}: choices are for kind choice, and this is {kind}")
    else:
        found["answers"] = _texts(record.get("answer"), f"{told}: answer")
        if not found["answers"]:
            raise LawError(f"{told}: answer: expected at least one")
    return found | {"type": _text(record["type"], f"{told}: type") if "type" in record else ""}


def _choice(record: Mapping[str, Any], told: str) -> dict[str, Any]:
    """The choices, and which of them is right."""
    choices = _texts(_given(record, "choices"), f"{told}: choices")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise LawError(f"{told}: choices: expected two or more, all different, got {choices}")
    answer = _text(record.get("answer"), f"{told}: answer")
    if answer not in choices:
        raise LawError(f"{told}: answer '{answer}' is none of its choices {choices}")
    return {"choices": choices, "answer": choices.index(answer)}


def _given(record: Mapping[str, Any], key: str) -> Any:
    """What stands under `key`; nothing and null are an empty list."""
    value = record.get(key)
    return [] if value is None else value


def _texts(value: Any, told: str) -> list[str]:
    """One text, or a list of them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_text(one, told) for one in value]
    return [_text(value, told)]


def _text(value: Any, told: str) -> str:
    """A text, or a number's; LawError for anything else, and for blanks alone."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        got = "nothing" if value is None else type(value).__name__
        raise LawError(f"{told}: expected text, got {got}")
    if not value.strip():
        raise LawError(f"{told}: is empty")
    return value.strip()


def _located(name: str, base: Path, folder: Path, told: str) -> str:
    """An image's path as seen from the task's folder; LawError where no image is there."""
    path = base / name
    try:
        with Image.open(path):
            pass
    except FileNotFoundError:
        raise LawError(f"{told}: image {name} is not in {base}") from None
    except UnidentifiedImageError:
        raise LawError(f"{told}: image {path}: no image format that PIL knows") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise LawError(f"{told}: image {path}: cannot be read: {error}") from error
    return name if Path(name).is_absolute() else Path(os.path.relpath(path, folder)).as_posix()


def _digest(path: Path, told: str) -> str:
    """Tells an image's bytes; LawError where they cannot be read."""
    try:
        return _hash(path.read_bytes())
    except OSError as error:
        raise LawError(f"{told}: image {path}: cannot be read: {error.strerror}") from error


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def documents(dataset: "Dataset", folder: Path) -> "Dataset":
    """lmms-eval's documents of the lines of a task's data, images as absolute paths.

    Raises LawError for an image that is no longer there, or no longer what it was.
    """
    from datasets import Dataset, Features, List, Value

    lines = [json.loads(line) for line in dataset["text"]]
    texts, text = List(Value("string")), Value("string")
    kinds = {"images": texts, "answers": texts, "choices": texts, "answer": Value("int64")}
    for line in lines:
        line["images"] = [os.path.normpath(folder / name) for name in line["images"]]
        missing = [path for path in line["images"] if not Path(path).is_file()]
        if missing:
            raise LawError(
                f"record '{line['id']}': image {missing[0]} is not there; a task's folder and its "
                "images are moved together"
            )
        digests = line.pop("digests", None)
        if digests is None:
            raise LawError(
                f"record '{line['id']}': nothing tells its images from others, since an older "
                "version wrote the task; write it again"
            )
        for path, digest in zip(line["images"], digests, strict=True):
            if _digest(Path(path), f"record '{line['id']}'") != digest:
                raise LawError(
                    f"record '{line['id']}': image {path} is not the one that the task was written "
                    "with; put that back, or write the task again"
                )
    return Dataset.from_list(lines, Features({key: kinds.get(key, text) for key in lines[0]}))


def visuals(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The RGB images of a document, in order; LawError for one that does not decode wholly."""
    from llava.extraction import decode

    opened = []
    for path in doc["images"]:
        try:
            opened.append(decode(Path(path).read_bytes()))
        except OSError as error:
            raise LawError(
                f"record '{doc['id']}': image {path}: cannot be read: {error.strerror}"
            ) from error
        except LawError as error:
            raise LawError(f"record '{doc['id']}': image {path}: {error}") from error
    return opened


def prompt(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The question between the texts that the task's YAML puts around it."""
    around = lmms_eval_specific_kwargs
    return around.get("pre_prompt", "") + doc["question"] + around.get("post_prompt", "")


def exact_match(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the model's answer is one of those accepted, else 0."""
    accepted = {normalised(answer) for answer in doc["answers"]}
    return {"exact_match": float(normalised(results[0]) in accepted)}


def normalised(answer: str) -> str:
    """Without case, blanks around and doubled, and a full stop at the end."""
    return " ".join(answer.casefold().split()).removesuffix(".").rstrip()


def likeliest(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """`acc`: 1 where the right choice has the smallest negative log-likelihood per token, else 0.

    `results` has a (nats per token, greedy or not) for every choice, which lmms-eval 0.7.3 hands
    over as text and then cannot read itself. Raises LawError for one that is not a number.
    """
    nlls = [nats(one) for one in results]
    if any(math.isnan(nll) for nll in nlls):
        raise LawError(f"record '{doc['id']}': likelihoods of its choices are no numbers: {nlls}")
    return {"acc": float(nlls.index(min(nlls)) == doc["answer"])}


def nats(result: Any) -> float:
    """Nats per token: the likelihood in a pair, or in the text of one."""
    first = result.strip("()").partition(",")[0] if isinstance(result, str) else result[0]
    return float(first)


def main(argv: Sequence[str]) -> None:
    """Writes one task."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.local_tasks",
        description="Make a task of lmms-eval out of local images and questions.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the task's folder")
    parser.add_argument("--name", required=True, help="what --tasks will call it")
    parser.add_argument(
        "--records", type=Path, required=True, metavar="FILE", help="questions: JSON or JSON lines"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="unset: the folder of the records"
    )
    parser.add_argument("--kind", default="generate", choices=KINDS)
    parser.add_argument(
        "--post_prompt",
        default="",
        metavar="TEXT",
        help="follows every question; \\n is a new line",
    )
    arguments = parser.parse_args(argv)
    written = write_local_task(
        arguments.out,
        arguments.name,
        arguments.records,
        arguments.images or arguments.records.parent,
        arguments.kind,
        arguments.post_prompt.replace("\\n", "\n"),
    )
    logger.info("%s is made: --tasks %s --include_path %s", written, arguments.name, arguments.out)


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "local_tasks")
