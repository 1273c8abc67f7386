"""What'sUp A and B for lmms-eval: VQAScore's question about both captions of an image's axis.

A document is an image; a model is asked of either caption whether the image shows it, and chooses
the one to which "Yes" is likelier. That is `law pairs run --scorer vqa` with `choices: two`, from
the same files by the same reader; docs/pairs_embedding.md says where they have to be.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava.errors import LawError
from llava.eval.local_tasks import nats
from llava.eval.pairs.flags.vqa import QUESTION
from llava.eval.pairs.pictures import open_picture
from llava.eval.pairs.readers.whatsup import WhatsUp

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = "WHATSUP_DATA"
"""The variable that names the folder with the files of both sets."""
USUAL = "data/whatsup"
"""Where it is unset; as in configs/pairs/whatsup.yaml."""
FILES = {
    "whatsup_a": ("controlled_images_dataset.json", "controlled_images"),
    "whatsup_b": ("controlled_clevr_dataset.json", "controlled_clevr"),
}
"""Set -> its records, and the folder of its images."""

Decision = Mapping[str, Any]
"""`group`: what is right together; `right`: whether this image's choice is."""


def docs_a(dataset: "Dataset") -> "Dataset":
    """The images of set A, in place of the lines that were read."""
    return documents("whatsup_a")


def docs_b(dataset: "Dataset") -> "Dataset":
    """The images of set B, in place of the lines that were read."""
    return documents("whatsup_b")


def documents(name: str) -> "Dataset":
    """One document an image, the four of a set side by side, those of a pair side by side.

    Raises LawError for files that are missing or not as published.
    """
    from datasets import Dataset

    folder = Path(os.environ.get(FOLDER) or USUAL)
    records, images = (folder / part for part in FILES[name])
    if not records.is_file():
        raise LawError(
            f"{records}: no such file (seen from {Path.cwd()}); set {FOLDER} to the folder with "
            f"{' and '.join(FILES[name])}; `law pairs where whatsup` says where to get them"
        )
    rows = []
    for item in WhatsUp(name, records, images).read().items:
        pair_of = {image: number for number, pair in enumerate(item.pairs) for image in pair}
        for image, path in enumerate(item.images):
            captions = [item.captions[choice] for choice in item.choices[image]]
            rows.append(
                {
                    "id": f"{item.id}/{image}",
                    "set": item.id,
                    "pair": f"{item.id}/{pair_of[image]}",
                    "axis": item.axis(image),
                    "image": str(path),
                    "digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
                    "captions": captions,
                    "questions": [QUESTION.replace("{}", caption) for caption in captions],
                    "right": item.choices[image].index(item.right[image]),
                }
            )
    return Dataset.from_list(rows)


def visuals(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The RGB image of a document; LawError where it does not decode wholly."""
    return [open_picture(Path(doc["image"]))]


def chosen(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Whether the right caption has the smaller negative log-likelihood of "Yes"; a tie is wrong.

    `results` has a (nats per token, greedy or not) for either question. Raises LawError for what is
    no number.
    """
    nlls = [nats(one) for one in results]
    if any(nll != nll for nll in nlls):
        raise LawError(f"{doc['id']}: likelihoods of its captions are no numbers: {nlls}")
    others = [nll for place, nll in enumerate(nlls) if place != doc["right"]]
    right = nlls[doc["right"]] < min(others)
    return {
        "individual": float(right),
        "pair": {"group": doc["pair"], "size": 2, "right": bool(right)},
        "set": {"group": doc["set"], "size": 4, "right": bool(right)},
    }


def together(decisions: Sequence[Decision]) -> float:
    """The share of groups all of whose images are right; LawError where one lacks images."""
    groups: dict[str, list[Decision]] = defaultdict(list)
    for one in decisions:
        groups[one["group"]].append(one)
    for name, inside in groups.items():
        if len(inside) != inside[0]["size"]:
            raise LawError(
                f"{name}: {len(inside)} of {inside[0]['size']} images were asked about; with "
                "--limit take a multiple of 4, the images of a set"
            )
    return sum(all(one["right"] for one in inside) for inside in groups.values()) / len(groups)
