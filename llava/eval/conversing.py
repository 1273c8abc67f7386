"""A conversation with a model: its turns and images so far, and the answer to the next turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from llava.errors import UsageError
from llava.eval.answering import Answering, Decoding, Question


@dataclass
class Conversing:
    """A model, and what was said to it and by it so far."""

    answering: Answering
    decoding: Decoding = field(default_factory=Decoding)
    turns: list[str] = field(default_factory=list)
    """Human, answer, human, ..."""
    images: list[Image.Image] = field(default_factory=list)
    """All that the conversation is about, in order."""

    def ask(self, text: str, images: Sequence[Image.Image] = ()) -> str:
        """The answer to `text`, which comes with `images`; both are kept for the next turn.

        Raises UsageError for images where the model has no vision tower.
        """
        if images and self.answering.cache.processor is None:
            raise UsageError("this model has no vision tower; ask without an image")
        turns = [*self.turns, self.answering.prompts.with_images(text, len(images))]
        seen = [*self.images, *images]
        question = Question(lambda: (turns, seen), len(text))
        answer = self.answering.answers([question], self.decoding)[0].strip()
        self.turns, self.images = [*turns, answer], seen
        return answer
