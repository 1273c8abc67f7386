"""Which of SEED-Bench's questions `seedbench_img` asks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def about_images(dataset: "Dataset") -> "Dataset":
    """The questions about one image, in their order; no image is opened."""
    kinds = dataset["data_type"]
    return dataset.select([place for place, kind in enumerate(kinds) if kind == "image"])
