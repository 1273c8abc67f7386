"""Small stand-ins for the data of the paper's eight benchmarks, so that lmms-eval's tasks run."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, DatasetDict
from tiny import picture

LETTERS = "ABCD"
COUNT = 12
"""Documents of a benchmark, or what they are made from."""


def _image(i: int) -> Any:
    return picture(24 + i, 20, seed=i)


def _mmbench() -> list[dict[str, Any]]:
    """Questions of two, three and four options, each in all rotations, as CircularEval wants."""
    rows = []
    for q in range(COUNT):
        count = 2 + q % 3
        texts = [f"thing {q}{k}" for k in range(count)]
        for turn in range(count):
            turned = texts[turn:] + texts[:turn]
            options = {c: turned[k] if k < count else "nan" for k, c in enumerate(LETTERS)}
            rows.append(
                {
                    "index": q + 1_000_000 * turn,
                    "question": f"Which is it, {q}?",
                    "hint": "nan" if q % 2 else f"It is {q}.",
                    "answer": LETTERS[turned.index(texts[0])],
                    **options,
                    "category": f"kind {q % 2}",
                    "image": _image(q),
                    "source": "made",
                    "L2-category": "all",
                    "comment": "",
                    "split": "dev",
                }
            )
    return rows


def _mme() -> list[dict[str, Any]]:
    """Three images of two categories of perception, two of cognition, two questions each."""
    categories = ["color", "color", "color", "OCR", "OCR", "OCR", *["code_reasoning"] * 2]
    return [
        {
            "question_id": f"{category}/{i}.png",
            "image": _image(i),
            "question": f"Is it {answer} {i}? Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        for i, category in enumerate(categories)
        for answer in ("Yes", "No")
    ]


def _vqa(**more: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [
        {
            "question_id": i,
            "image": _image(i),
            "question": f"what is seen in number {i}?",
            "answers": ["yes" if i % 3 else "no"] * (4 + i % 6) + ["cat"] * 3,
            **{name: make(i) for name, make in more.items()},
        }
        for i in range(COUNT)
    ]


def seed() -> list[dict[str, Any]]:
    """Every third question is about a video of three frames."""
    return [
        {
            "question_id": str(i),
            "question": f"Which is {i}?",
            **{f"choice_{c.lower()}": f"choice {c} of {i}" for c in LETTERS},
            "answer": LETTERS[i % 4],
            "data_type": "image" if i % 3 else "video",
            "image": [_image(i)] * (1 if i % 3 else 3),
        }
        for i in range(COUNT)
    ]


def _mmmu() -> list[dict[str, Any]]:
    """Multiple choice and open questions of two subjects; some are about two images."""
    rows = []
    for i in range(COUNT):
        choice, two = i % 4 != 3, i % 5 == 4
        shown = "<image 1> and <image 2>" if two else "<image 1>"
        rows.append(
            {
                "id": f"validation_{'Art' if i % 2 else 'Math'}_{i}",
                "question": f"What is {shown}?",
                "options": str([f"option {i}{c}" for c in LETTERS]) if choice else "[]",
                "question_type": "multiple-choice" if choice else "open",
                "answer": LETTERS[i % 4] if choice else "Yes",
                "image_1": _image(i),
                "image_2": _image(i + 50),
            }
        )
    return rows


def _scienceqa() -> list[dict[str, Any]]:
    return [
        {
            "image": _image(i),
            "question": f"Which one, {i}?",
            "choices": [f"one {i}", f"two {i}", f"three {i}"],
            "answer": i % 3,
            "hint": "" if i % 2 else "Look.",
        }
        for i in range(COUNT)
    ]


DATA: dict[tuple[str, str | None], tuple[str, Callable[[], list[dict[str, Any]]]]] = {
    ("lmms-lab-encoder/MMBench", "en"): ("dev", _mmbench),
    ("lmms-lab-encoder/MME", None): ("test", _mme),
    ("lmms-lab-encoder/OK-VQA", None): ("val2014", _vqa),
    ("lmms-lab-encoder/SEED-Bench", None): ("test", seed),
    ("lmms-lab-encoder/MMMU", None): ("validation", _mmmu),
    ("lmms-lab-encoder/textvqa", None): (
        "validation",
        lambda: _vqa(ocr_tokens=lambda i: [f"word{i}", "STOP"]),
    ),
    ("lmms-lab-encoder/VizWiz-VQA", None): ("val", lambda: _vqa(category=lambda i: "other")),
    ("lmms-lab-encoder/ScienceQA", "ScienceQA-IMG"): ("test", _scienceqa),
}
"""Data set as its task names it -> split, and its documents."""


def load_dataset(path: str, name: str | None = None, **_: Any) -> DatasetDict:
    """In place of `datasets.load_dataset`; FileNotFoundError for another data set."""
    if (path, name) not in DATA:
        raise FileNotFoundError(f"{path} is not there")
    split, rows = DATA[path, name]
    return DatasetDict({split: Dataset.from_list(rows())})
