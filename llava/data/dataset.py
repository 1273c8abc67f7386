"""Records as samples: ids, labels, pixels (or stored tower tokens), made when they are asked for.

An item is `{"input_ids": int64 [T], "labels": int64 [T], "index": record}` and, where its text
speaks of k images, `"images"` with `"image_sizes"`, k times (width, height). Images are float32
[k, 3, S, S], a PixelBatch of several towers, or for anyres a list of k times [1 + tiles, 3, S, S].
`"image_features"` [k, N, C] stand in their place where tower tokens are read from a store.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.fitting import Fitter
from llava.data.images import ImageError, ImageSource
from llava.data.masks import Labeller, SampleError
from llava.data.records import Records
from llava.data.stored import StoredFeatures
from llava.data.survey import Survey
from llava.errors import LawError
from llava.log import get_logger

logger = get_logger("data")


class ConversationDataset(Dataset):
    """The records of a file that are trained on; picklable, so that workers can have it.

    `keep` names them by number; None is all, or what a `survey` kept. `tokens_per_image` is what
    the model makes of one image (with anyres: of one view), and no sample is longer than
    `max_length` tokens. With `features` no image is decoded.

    An image that turns out to be damaged during the run is an error, or under the policy `skip`
    said once, and its sample goes on as text without any label.
    """

    def __init__(
        self,
        records: Records,
        labeller: Labeller,
        images: ImageSource | None,
        tokens_per_image: int,
        max_length: int | None,
        keep: Sequence[int] | None = None,
        survey: Survey | None = None,
        features: StoredFeatures | None = None,
    ):
        self.records = records
        self.images = images
        self.features = features
        self.fitter = Fitter(labeller, images, tokens_per_image, max_length)
        self.survey = survey
        if keep is None:
            keep = range(len(records)) if survey is None else survey.keep
        elif survey is not None and not np.array_equal(keep, survey.keep):
            raise ValueError("keep and survey disagree on the records; give one of them")
        self.keep = np.asarray(keep, np.int64)
        self.damaged: dict[str, str] = {}
        """Image -> why it could not be read, as far as this process met it."""

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, i: int) -> dict[str, Any]:
        index = self.record_index(i)
        record = self.records[index]
        try:
            return self._sample(record, index)
        except ImageError as error:
            if self.images.policy == "error":
                raise LawError(
                    f"{self.records.place(index)}: {error}; mend it, or leave such samples out "
                    "with --image_policy skip"
                ) from error
            self._tell(index, error)
            return self._without_image(record, index)
        except SampleError as error:
            raise LawError(f"{self.records.place(index)}: {error}") from error

    def _sample(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        fitted = self.fitter(record)
        sample = _tensors(fitted.input_ids, fitted.labels, index)
        if not fitted.images:
            return sample
        if self.features is not None:
            read = [self.features.features(self.images.read(name)) for name in fitted.images]
            sample["image_features"] = torch.stack(read)
        else:
            sample["images"], sample["image_sizes"] = self.images.pixels(fitted.images)
        return sample

    def _tell(self, index: int, error: ImageError) -> None:
        if error.name not in self.damaged:
            logger.warning("%s: %s; goes on without it", self.records.place(index), error)
        self.damaged[error.name] = error.why

    def _without_image(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        """The sample's text, unsupervised: a model that saw no image must not learn from it."""
        labelled = self.fitter.labelled(record, self.fitter.images_of(record))
        ids = [token for token in labelled.input_ids if token != IMAGE_TOKEN_INDEX]
        ids = ids[: self.fitter.max_length]
        return _tensors(ids, [IGNORE_INDEX] * len(ids), index)

    def record_index(self, i: int) -> int:
        """The number of a sample's record in the file."""
        return int(self.keep[i])

    def has_image(self, i: int) -> bool:
        """Whether a sample's record has an image."""
        return bool(self.records.image_counts[self.keep[i]])

    def shows_image(self, i: int) -> bool:
        """Whether a sample's text speaks of an image, so that the model sees one."""
        if not self.has_image(i):
            return False
        return bool(self.fitter(self.records[self.record_index(i)]).images)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [samples]: words, and 128 for a sample with an image, as LLaVA counts."""
        return self.records.lengths[self.keep]

    @cached_property
    def modality_lengths(self) -> np.ndarray:
        """int64 [samples]: words, negative without an image."""
        return self.records.modality_lengths[self.keep]

    @property
    def lengths_in_tokens(self) -> np.ndarray:
        """int64 [samples]: tokens in the model, those of images included; needs a survey."""
        if self.survey is None:
            raise LawError("lengths in tokens are what a survey of the data finds; give it one")
        return self.survey.tokens


def _tensors(ids: list[int], labels: list[int], index: int) -> dict[str, Any]:
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "index": index}
