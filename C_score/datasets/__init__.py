"""Sets of image pairs with corresponding keypoints: SPair-71k, PF-Pascal, AP-10K, a user's CSV.

`read_pairs` is the way in; `pairs.py` says what it gives, `frame.py` where the keypoints live.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from C_score.datasets.pairs import Category, PairSet, Picture
from llava.errors import UsageError, unknown_name

__all__ = ["DATASETS", "Category", "PairSet", "Picture", "read_pairs"]

DATASETS = {
    "spair": "C_score.datasets.spair",
    "pfpascal": "C_score.datasets.pfpascal",
    "ap10k": "C_score.datasets.ap10k",
    "csv": "C_score.datasets.keypoint_csv",
}
"""Name on the command line -> module with `read(data, split, categories, sample)`."""


def read_pairs(
    dataset: str,
    data: str | os.PathLike,
    split: str = "test",
    *,
    categories: Sequence[str] | None = None,
    sample: int = 0,
) -> PairSet:
    """The pairs of a set.

    Args:
        dataset: one of DATASETS.
        data: the set's folder, or the CSV file.
        split: trn, val or test; AP-10K also test_cross_species and the like; a CSV has only test.
        categories: only these; all where None.
        sample: 0 for all pairs, the benchmark. k > 0 draws k pairs of every category WITH
            replacement, as the reference's TEST_SAMPLE does (its default of 20 is no benchmark).

    Raises:
        UsageError: unknown set, split or category, with the nearest name.
        LawError: anything in the files that is not as it should be, with file and mending.
    """
    import importlib

    if dataset not in DATASETS:
        raise UsageError(unknown_name("dataset", dataset, DATASETS))
    if sample < 0:
        raise UsageError(f"sample is {sample}; expected 0 (all pairs) or the pairs of a category")
    if categories is not None and not categories:
        raise UsageError("no category is chosen; leave `categories` out to score all")
    module = importlib.import_module(DATASETS[dataset])
    return module.read(Path(data), split, categories, sample)
