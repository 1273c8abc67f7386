"""What plans rest on where neither data nor YAML say it: known data, lengths, expected runs."""

import functools
from dataclasses import dataclass
from pathlib import Path

from llava.config import build, read_yaml


@dataclass(frozen=True)
class DataSet:
    """Training data that many use."""

    file: str
    """Name of its JSON."""
    records: int
    images: int
    """Records that have one."""
    tokens: int
    """Of a record's text, on average."""
    source: str


@dataclass(frozen=True)
class Correspondences:
    """A set of image pairs with keypoints."""

    images: int
    pairs: int


@dataclass(frozen=True)
class Question:
    """A benchmark's question, on average."""

    text: int
    answer: int
    utilisation: float
    """Share of the GPU's peak that answering reaches."""


@dataclass(frozen=True)
class Runs:
    """How many of `candidates` a policy finetunes until it stops."""

    mean: float
    """For one benchmark."""
    most: int
    candidates: int
    source: str
    together: int | None = None
    """For several benchmarks at once, where it was counted."""


@dataclass(frozen=True)
class Facts:
    """facts.yaml beside this file."""

    data_sets: list[DataSet]
    correspondence: dict[str, Correspondences]
    text_tokens: dict[str, int]
    longest_caption: int
    question: Question
    runs: dict[str, Runs]


@functools.cache
def facts() -> Facts:
    """All of them."""
    path = Path(__file__).with_name("facts.yaml")
    return build(Facts, read_yaml(path), path.name)
