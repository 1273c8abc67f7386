"""What the entry point `lmms_eval.models` gives lmms-eval: the model `law_llava`, by its path."""

from typing import Any


def manifests() -> list[Any]:
    """One manifest; nothing of ours is imported until the model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="law_llava", simple_class_path="llava.eval.law_llava.LawLlava")]
