"""What of a record goes into one sequence, and how long that is in the model.

An image stands in the ids as one placeholder and in the model as many tokens, so a sequence is cut
here, where both are known: the model then never cuts, and no supervised token is lost unseen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.images import ImageSource
from llava.data.masks import Labelled, Labeller, SampleError
from llava.data.records import images_of


@dataclass
class Fitted:
    """A record as it is trained on."""

    input_ids: list[int]
    """An image as IMAGE_TOKEN_INDEX."""
    labels: list[int]
    images: list[str]
    """Those that the text speaks of, in its order."""
    tokens: int
    """Of the sequence in the model, those of the images included."""
    supervised: int
    """Positions with a label."""
    cut: bool
    """Whether the maximum length took something away."""
    unseen: bool = False
    """Whether the record has images that its text never speaks of; they are not looked at."""


@dataclass
class Fitter:
    """Labels a record and cuts it to `max_length` tokens; picklable.

    `tokens_per_image` is what the model makes of one image, or with anyres of one view.
    """

    labeller: Labeller
    images: ImageSource | None
    tokens_per_image: int
    max_length: int | None

    def __call__(self, record: dict[str, Any]) -> Fitted:
        """Raises SampleError for a record that cannot be trained on, ImageError for an image whose
        size cannot be read (with anyres, where it decides the tokens)."""
        names = self.images_of(record)
        labelled = self.labelled(record, names)
        named = IMAGE_TOKEN_INDEX in labelled.input_ids
        each = self.images.tokens(names, self.tokens_per_image) if named else []
        fitted = fit(labelled, names if named else [], each, self.max_length)
        fitted.unseen = bool(names) and not named
        return fitted

    def images_of(self, record: dict[str, Any]) -> list[str]:
        """The record's images; SampleError where nothing could look at them."""
        names = images_of(record)
        if names and self.images is None:
            raise SampleError("has an image, and this model has no vision tower")
        return names

    def labelled(self, record: dict[str, Any], names: Sequence[str]) -> Labelled:
        """Ids and labels, uncut; SampleError where images and placeholders do not go together.

        A record whose text speaks of none of its images is a text (LLaVA ran its tower for
        nothing).
        """
        found = self.labeller(record["conversations"], len(names))
        count = found.input_ids.count(IMAGE_TOKEN_INDEX)
        if count not in (len(names), 0):
            raise SampleError(
                f"{len(names)} images, and {count} places of {DEFAULT_IMAGE_TOKEN} in the text"
            )
        return found


def fit(
    labelled: Labelled, images: list[str], tokens: Sequence[int], max_length: int | None
) -> Fitted:
    """Cuts behind the last token that fits; `tokens` are those of each image.

    Raises SampleError where an image does not fit wholly, or where nothing supervised is left.
    """
    ids, labels = labelled.input_ids, labelled.labels
    whole = len(ids) + sum(tokens) - len(tokens)
    excess = 0 if max_length is None else max(0, whole - max_length)
    if excess:
        kept = len(ids) - excess
        if kept <= _last_image(ids):
            raise SampleError(
                f"too many image tokens: {sum(tokens)} and the text before them exceed the maximum "
                f"length of {max_length}"
            )
        ids, labels = ids[:kept], labels[:kept]
    # the first position is predicted from nothing, so a label there would never count
    supervised = sum(label != IGNORE_INDEX for label in labels[1:])
    if not supervised:
        why = f"within the maximum length of {max_length}" if excess else "no answer says anything"
        raise SampleError(f"nothing is supervised: {why}")
    return Fitted(ids, labels, images, whole - excess, supervised, cut=bool(excess))


def _last_image(ids: list[int]) -> int:
    """Place of the last placeholder; -1 where there is none."""
    return max((place for place, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX), default=-1)
