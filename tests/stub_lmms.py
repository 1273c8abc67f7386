"""A model for lmms-eval that is made in no time: it answers by rule and tells what it was asked."""

from typing import Any, ClassVar

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest


class Stub(lmms):
    """Answers `Yes.` to even documents and `no` to odd ones, unless it has another rule."""

    made: ClassVar[list[dict[str, Any]]] = []
    """The arguments of every instance."""
    asked: ClassVar[list[tuple[str, int]]] = []
    """(task, document) of every request."""
    rule: ClassVar[Any] = None
    """(request, document) -> answer; it may raise."""

    def __init__(
        self,
        pretrained: str,
        batch_size: int = 1,
        device: str | None = None,
        conv_template: str | None = None,
        word: str = "",
        whole: bool = False,
        dtype: str | None = None,
        open_api_key: str = "",
    ):
        super().__init__()
        given = {"pretrained": pretrained, "batch_size": batch_size, "conv_template": conv_template}
        Stub.made.append(given | {"word": word})
        self.settings = {"conv_template": conv_template, "dtype": "float32"}

    def generate_until(self, requests):
        """A text for each."""
        return [self._answer(request) for request in requests]

    def loglikelihood(self, requests):
        """The second choice is the likeliest of even documents, the first of odd ones."""
        for request in requests:
            Stub.asked.append((request.task_name, request.doc_id))
        return [
            GenerationResult((float(request.idx != 1 - request.doc_id % 2), False))
            for request in requests
        ]

    def generate_until_multi_round(self, requests):
        """Nobody asks."""
        raise NotImplementedError

    def clean(self):
        """A class that loses its model, as lmms-eval's own do."""
        Stub.asked.append(("cleaned", -1))

    def _answer(self, request):
        Stub.asked.append((request.task_name, request.doc_id))
        if Stub.rule:
            *_, document, task, split = request.args
            return Stub.rule(request, self.task_dict[task][split][document])
        return "no" if request.doc_id % 2 else "Yes."


def register() -> None:
    """Makes it known to lmms-eval as `stub`."""
    manifest = ModelManifest(model_id="stub", simple_class_path="stub_lmms.Stub")
    MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
